"""The live page: its history, its feed, its files, and the page in a real browser."""

from __future__ import annotations

import json

import httpx
import pytest
import torch
from browser import CHROMIUM, Browser
from serving_support import wait_until

from serving.live.feed import histogram, progress
from serving.live.history import COLUMNS, Counters, History
from serving.live.routes import FILES


def named(row: list) -> dict:
    return dict(zip(COLUMNS, row, strict=True))


def test_history_holds_what_was_added_since_the_last_second():
    history = History()
    history.note(Counters(at=60.0, requests=10, inputs=10, version="1"))
    row = named(history.note(Counters(at=61.0, requests=25, failed=1, inputs=20, flagged=4, version="1")))
    assert (row["requests"], row["failed"], row["inputs"], row["flagged"]) == (15, 1, 10, 4)


def test_a_new_version_counts_from_zero_again():
    history = History()
    history.note(Counters(at=1.0, inputs=100, flagged=90, version="1"))
    row = named(history.note(Counters(at=2.0, inputs=7, flagged=1, version="2")))
    assert (row["inputs"], row["flagged"]) == (7, 1)


def test_minutes_add_up_and_keep_the_highest_statistic():
    history = History()
    for second, statistic in enumerate((0.0, 8.0, 3.0, None)):
        history.note(Counters(at=120.0 + second, requests=10 * second, statistic=statistic, threshold=9.0,
                              campaign=second == 1))
    [minute] = history.rows()["minutes"]
    assert named(minute) == {"at": 120, "requests": 30, "failed": 0, "inputs": 0, "flagged": 0, "statistic": 8.0,
                             "threshold": 9.0, "campaign": True, "version": ""}


def test_a_day_of_seconds_takes_no_more_room_than_a_quarter_of_an_hour():
    history = History()
    for second in range(26 * 3600):
        history.note(Counters(at=float(second), requests=second, version="1"))
    rows = history.rows()
    assert len(rows["seconds"]) == 900 and len(rows["minutes"]) == 1440
    assert sum(named(row)["requests"] for row in rows["minutes"]) == 1440 * 60


def test_histogram_counts_every_value_once():
    found = histogram([0.0, 0.1, 0.1, 0.2], bins=4)
    assert sum(found["counts"]) == 4 and found["counts"][0] == 1 and found["counts"][3] == 1
    assert found["edge"] * 4 == pytest.approx(0.2, rel=1e-3)
    assert histogram([]) is None


def test_progress_reads_steps_in_order_and_skips_half_a_line(tmp_path):
    assert progress(tmp_path) is None
    rows = [{"step": "prepare_data", "state": "running"}, {"step": "prepare_data", "state": "done", "seconds": 1.5},
            {"step": "train", "state": "running"}, {"step": "train", "epoch": 2, "seconds": 7, "robust_accuracy": 0.5}]
    (tmp_path / "progress.jsonl").write_text("\n".join(map(json.dumps, rows)) + '\n{"step": "tr')
    found = progress(tmp_path)
    assert found["steps"] == [{"step": "prepare_data", "state": "done", "seconds": 1.5},
                              {"step": "train", "state": "running", "seconds": None}]
    assert found["latest"]["epoch"] == 2


def events(client: httpx.Client, wanted: int) -> list[tuple[str, dict]]:
    """The first events of the feed."""
    found, name = [], ""
    with client.stream("GET", "/live/events") as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        for line in answer.iter_lines():
            if line.startswith("event: "):
                name = line[7:]
            elif line.startswith("data: "):
                found.append((name, json.loads(line[6:])))
                if len(found) == wanted:
                    break
    return found


def test_the_feed_tells_the_history_and_then_each_second(live, registry, digits):
    running = live(registry)
    (first, history), *frames = events(running.client, 3)
    assert first == "history" and history["columns"] == list(COLUMNS)
    assert [name for name, _ in frames] == ["frame", "frame"]
    before = frames[-1][1]
    assert before["ready"] and before["champion"]["version"] == "1" and before["strengths"] is None
    x = digits.tensors("test")[0][:40]
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).sign()
    running.infer((x + 0.3 * noise).clamp(0, 1))

    def seen() -> list[dict]:
        return [frame for _, frame in events(running.client, 2)[1:] if frame["monitor"]["distinct"] == 40]

    after = wait_until(seen, what="a frame with the inputs")[0]
    assert 0 < after["monitor"]["flagged"] == sum(after["strengths"]["counts"])
    seconds = [named(row) for row in events(running.client, 1)[0][1]["seconds"]]
    assert sum(row["inputs"] for row in seconds) == 40 and sum(row["requests"] for row in seconds) == 1


def test_the_page_is_small_and_brings_everything_with_it(limited):
    total, text = 0, ""
    for path in ("/", *(f"/live/{name}" for name in FILES if name != "page.html")):
        answer = limited.client.get(path)
        assert answer.status_code == 200
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert limited.client.get(path, headers={"If-None-Match": answer.headers["etag"]}).status_code == 304
        total += len(answer.content)
        text += answer.text
    assert total < 200_000
    assert "http://" not in text.replace("http://www.w3.org/2000/svg", "") and "https://" not in text
    assert limited.client.get("/live/secrets.txt").status_code == 404


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_a_browser_shows_how_things_stand(live, registry, digits, tmp_path):
    running = live(registry)
    with Browser(tmp_path / "profile") as browser:
        browser.open(str(running.client.base_url))
        browser.wait("document.getElementById('banner').textContent.startsWith('All clear')")
        assert browser.value("document.getElementById('model').textContent") == "digits v1"
        x = digits.tensors("test")[0][:100]
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).sign()
        running.infer((x + 0.3 * noise).clamp(0, 1))
        browser.wait("document.getElementById('banner').textContent.startsWith('Campaign since')")
        assert browser.value("document.querySelectorAll('#campaigns tbody tr').length") == 1
        label = browser.wait("document.querySelector('#strength svg').getAttribute('aria-label')")
        assert label.startswith("strength of the last")
        ledger = running.server.ledger
        asked = wait_until(lambda: [row for row in ledger.requests() if row.finished_at], what="the end of the run")
        ledger.update_request(asked[0], state="waiting", version="2")
        browser.wait("document.getElementById('retrains').textContent.includes('waits for a person')")
        browser.wait("document.getElementById('banner').textContent.includes('version 2 passed the gate and waits')")
        assert browser.value("document.querySelectorAll('#inputs path').length") == 2
        browser.value("document.querySelector('[data-span=\"86400\"]').click()")
        assert browser.value("document.querySelector('[data-span=\"86400\"]').getAttribute('aria-pressed')") == "true"
        assert not browser.faults
