"""What operators may do: pause, acknowledge, roll back, promote; who may, what is remembered, what the page offers."""

from __future__ import annotations

import sys

import pytest
import torch
from browser import CHROMIUM, Browser
from serving_support import FolderRegistry, wait_until

from redoubt.threat import ThreatModel
from serving.operations import Operations

JUDGE = "import sys; print(' '.join(sys.argv[2:])); print('rule 3 failed'); sys.exit(int(sys.argv[1]))"


def judge(code: int) -> list[str]:
    """A promotion command that ends with this code."""
    return [sys.executable, "-c", JUDGE, str(code)]


@pytest.fixture
def two(undefended, defended) -> FolderRegistry:
    """A registry whose champion is version 2."""
    return FolderRegistry({1: undefended, 2: defended}, 2)


def test_pausing_is_remembered_and_holds_back_what_is_owed(live, registry):
    running = live(registry)
    answer = running.client.post("/operations/pause", json={"why": "maintenance"})
    assert answer.json() == {"done": "retraining is paused"}
    ledger = running.server.ledger
    campaign = ledger.open_campaign("digits", "1", inputs=10, flagged=70)
    ledger.ask(campaign, ThreatModel("Linf", 0.1), cool_down=0, daily_budget=1)
    running.server.retrainer.wake()
    again = live(registry, again=True)
    paused = again.status()["operations"]["paused"]
    assert paused["why"] == "maintenance"
    again.server.retrainer.wake()
    with pytest.raises(AssertionError, match="did not come"):
        wait_until(lambda: again.status()["retrains"][0]["state"] != "pending", 2.5)
    assert again.client.post("/operations/resume").status_code == 200
    wait_until(lambda: again.status()["retrains"][0]["state"] != "pending", what="the run")


def test_acknowledging_names_the_campaign_and_leaves_a_line(live, registry):
    running = live(registry)
    campaign = running.server.ledger.open_campaign("digits", "1", inputs=10, flagged=70)
    assert running.client.post("/operations/acknowledge", json={"campaign": "c-none"}).status_code == 404
    assert running.client.post("/operations/acknowledge", json={"campaign": campaign.id}).status_code == 200
    assert campaign.id in running.status()["operations"]["acknowledged"]
    newest = running.client.get("/audit").json()[0]
    assert newest["action"] == "POST /operations/acknowledge" and newest["campaign"] == campaign.id


def test_rolling_back_swaps_at_once_and_says_when_there_is_nothing_left(live, two):
    running = live(two, poll_seconds=60)
    assert running.status()["champion"]["version"] == "2"
    answer = running.client.post("/operations/rollback", json={"why": "it errs"})
    assert answer.json() == {"done": "version 1 is champion again"}
    assert two.why.startswith("it errs (by ")
    wait_until(lambda: running.status()["champion"]["version"] == "1", what="the swap")
    again = running.client.post("/operations/rollback", json={})
    assert again.status_code == 400 and "no champion before" in again.json()["error"]
    two.down = True


@pytest.mark.parametrize("code, state", [(0, "promoted"), (3, "refused"), (1, "failed")])
def test_the_gate_judges_elsewhere_and_its_word_is_shown(live, registry, code, state):
    running = live(registry, promote_command=judge(code))
    assert running.client.post("/operations/promote", json={"version": "7"}).status_code == 202
    ended = wait_until(lambda: (found := running.status()["operations"]["promotion"])["state"] != "running" and found)
    assert (ended["version"], ended["state"], ended["reason"]) == ("7", state, "rule 3 failed")
    said = (running.server.settings.home / "promotion.log").read_text()
    assert said.startswith("7 --model digits --tracking-uri ")


@pytest.mark.parametrize("body, status, says", [
    ({"version": "latest"}, 400, "whole number"), ({"version": "-1"}, 400, "whole number"), ({}, 400, ""),
    ({"version": "1", "more": 1}, 400, ""),
])
def test_bad_requests_are_explained(limited, body, status, says):
    answer = limited.client.post("/operations/promote", json=body)
    assert answer.status_code == status and says in answer.json()["error"]


def test_a_server_that_cannot_start_the_gate_says_where_to(live, registry):
    running = live(registry, promote_command=[])
    answer = running.client.post("/operations/promote", json={"version": "7"})
    assert answer.status_code == 400 and "redoubt promote digits 7" in answer.json()["error"]


def test_what_cannot_be_remembered_is_not_done(settings, tmp_path):
    made = settings()
    made.home.mkdir(parents=True)
    operations = Operations(made, None, lambda: None)
    (made.home / "operations.json.new").mkdir()   # nothing can be written there
    with pytest.raises(Exception, match="not done"):
        operations.pause("me")
    assert not operations.paused


def press(browser: Browser, button: str, words: str) -> None:
    """Press a button of the page and answer its question."""
    browser.value(f"document.getElementById('{button}').click()")
    browser.value(f"document.getElementById('sure-value').value = '{words}'")
    browser.value("document.getElementById('sure-yes').click()")


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_the_page_pauses_rolls_back_and_shows_flagged_pictures(live, two, digits, tmp_path):
    running = live(two, quarantine=True)
    with Browser(tmp_path / "profile") as browser:
        browser.open(str(running.client.base_url))
        browser.wait("document.getElementById('model').textContent === 'digits v2'")
        press(browser, "pause", "lunch")
        browser.wait("document.getElementById('pause').textContent === 'Resume retraining'")
        assert "lunch" in browser.wait("document.getElementById('switches').textContent")
        press(browser, "rollback", "bad")
        browser.wait("document.getElementById('model').textContent === 'digits v1'")
        x = digits.tensors("test")[0][:8]
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).sign()
        running.infer((x + 0.25 * noise).clamp(0, 1))
        browser.wait("document.querySelectorAll('#quarantine img').length")
        assert not browser.value("document.getElementById('quarantine-section').hidden")
        assert not browser.faults
