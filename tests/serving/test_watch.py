"""The watch with a detector that flags and measures as the test says: the rules, without any model."""

import sqlite3
import time
from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
import torch

from redoubt.detection import Strength, Verdicts
from redoubt.threat import ThreatModel
from serving.engine import LoadedModel
from serving.ledger import Ledger
from serving.problems import Problems
from serving.watch import Watch


@dataclass
class Scripted:
    """A detector whose campaigns measure `epsilon`."""

    null_rate: float = 0.02
    epsilon: float = 0.1
    norm: str = "Linf"
    harmless: bool = False
    seen: int = 0

    def campaign(self, evidence):
        self.seen, e = len(evidence), self.epsilon
        return Strength(
            norm=self.norm, estimate=e, low=0.95 * e, high=1.05 * e, n=len(evidence), harmless=self.harmless
        )


def model(version: str, *threats: ThreatModel, detector=None) -> LoadedModel:
    bundle = SimpleNamespace(threats=threats, architecture=SimpleNamespace(input_shape=(1, 8, 8)))
    return LoadedModel(version=version, bundle=bundle, model=None, detector=detector or Scripted())


class Scene:
    """A watch, its ledger, and traffic as a string: `c` clean, `a` attacked, each input different from the rest."""

    def __init__(self, settings):
        self.ledger = Ledger(settings.home / "ledger.db")
        self.asked = []
        self.watch = Watch(settings, self.ledger, Problems(), lambda: self.asked.append(1))
        self.sent = 0

    def serve(self, loaded: LoadedModel) -> None:
        self.loaded = loaded
        self.watch.on_model(loaded)

    def send(self, traffic: str, same: bool = False) -> None:
        x = torch.zeros(len(traffic), 1, 8, 8)
        for row in x:
            self.sent += not same
            row[0, 0, 0], row[0, 0, 1] = self.sent % 251 / 251, self.sent // 251 / 251
        flags = torch.tensor([letter == "a" for letter in traffic])
        none = torch.zeros(len(x))
        verdicts = Verdicts(score=none, is_adversarial=flags, strength=none, low=none, high=none,
                            evidence=torch.zeros(len(x), 4))
        self.watch.observe(self.loaded, x, verdicts)

    @property
    def campaigns(self) -> list[dict]:
        return self.watch.campaigns_status()

    @property
    def campaign(self) -> dict:
        return self.campaigns[0]

    def finish(self, state: str, version: str | None = None) -> None:
        request = self.ledger.requests()[0]
        self.ledger.update_request(request, state=state, version=version, reason="as scripted", finished_at=1.0)
        self.watch.refresh()


@pytest.fixture
def scene(settings):
    scene = Scene(settings())
    scene.serve(model("1"))
    yield scene
    scene.ledger.close()


def test_clean_traffic_raises_nothing(scene):
    scene.send(("c" * 99 + "a") * 100)
    assert scene.campaigns == []
    assert scene.watch.monitor_status()["flagged"] == 100


def test_one_flagged_picture_a_thousand_times_counts_once(scene):
    scene.send("a" * 1000, same=True)
    status = scene.watch.monitor_status()
    assert (status["inputs"], status["distinct"], status["flagged"]) == (1000, 1, 1)
    assert scene.campaigns == []


def test_an_attack_is_measured_and_asked_for_once(scene):
    scene.send("c" * 200 + "a" * 30)
    assert scene.campaign["state"] == "open"
    assert 200 < scene.campaign["inputs_at_alarm"] < 215
    assert scene.ledger.requests() == []
    scene.send("a" * 40)
    request = scene.ledger.requests()[0]
    assert 0.105 <= request.epsilon <= 0.105 * 1.05
    assert scene.campaign["matched"] == request.epsilon
    assert scene.campaign["strength"]["n"] == 64   # those flagged before the alarm are among them
    scene.send("a" * 600)
    assert len(scene.asked) == len(scene.ledger.requests()) == 1
    assert scene.campaign["flagged"] == 670


def test_evidence_is_bounded_and_recent(settings):
    scene = Scene(settings(lookback=100, campaign_max_inputs=128))
    scene.serve(model("1", ThreatModel("Linf", 0.3)))
    scene.send("a" * 3 + "c" * 400 + "a" * 20)
    assert scene.campaign["flagged"] == 20   # the first three lie too far back
    scene.send("a" * 500)
    assert scene.loaded.detector.seen == 128
    scene.ledger.close()


def test_an_attack_that_the_champion_covers_is_recorded_only(scene):
    scene.serve(model("2", ThreatModel("Linf", 0.2)))
    scene.send("a" * 500)
    assert (scene.campaign["state"], scene.campaign["outcome"]) == ("open", "covered")
    scene.send("c" * 200)
    assert (scene.campaign["state"], scene.campaign["outcome"]) == ("closed", "covered")
    scene.send("c" * 500)
    assert len(scene.campaigns) == 1
    assert scene.asked == []


def test_a_shift_is_shown_and_never_answered(scene):
    scene.loaded.detector.harmless = True
    scene.send("a" * 500)
    assert (scene.campaign["outcome"], scene.campaign["matched"]) == ("shift", None)
    scene.send("c" * 200)
    assert (scene.campaign["state"], scene.campaign["outcome"]) == ("closed", "shift")
    assert scene.asked == []


@pytest.mark.parametrize(("norm", "ceiling"), [("Linf", 0.3), ("L2", 0.8)])
def test_each_norm_has_its_ceiling(scene, norm, ceiling):
    scene.loaded.detector.norm, scene.loaded.detector.epsilon = norm, 1.0
    scene.send("a" * 100)
    request = scene.ledger.requests()[0]
    assert (request.norm, request.epsilon) == (norm, pytest.approx(ceiling))
    assert "people should look" in scene.campaign["reason"]


def test_above_the_ceiling_there_is_nothing_to_ask_for(scene):
    scene.serve(model("2", ThreatModel("Linf", 0.3), detector=Scripted(epsilon=0.4)))
    scene.send("a" * 100)
    assert scene.campaign["outcome"] == "unanswered"
    assert scene.asked == []


def test_a_short_burst_fades(scene):
    scene.send("a" * 30 + "c" * 200)
    assert (scene.campaign["state"], scene.campaign["outcome"]) == ("closed", "faded")


def test_silence_ends_a_campaign_too(settings, monkeypatch):
    scene = Scene(settings(all_clear_seconds=100))
    scene.serve(model("1"))
    scene.send("a" * 30)
    now = time.monotonic()
    monkeypatch.setattr("serving.campaigns.time.monotonic", lambda: now + 99)
    scene.watch.tick()
    assert scene.campaign["state"] == "open"
    monkeypatch.setattr("serving.campaigns.time.monotonic", lambda: now + 102)
    scene.watch.tick()
    assert scene.campaign["outcome"] == "faded"
    scene.ledger.close()


def test_the_promoted_version_answers_and_the_attacker_who_goes_on_is_covered(scene):
    scene.send("a" * 100)
    scene.finish("promoted", "2")
    assert scene.campaign["state"] == "open"   # until that version serves
    scene.serve(model("2", ThreatModel("Linf", scene.campaign["matched"])))
    assert (scene.campaign["state"], scene.campaign["outcome"]) == ("closed", "answered")
    assert scene.campaign["reason"].endswith("; version 2 covers it")
    assert "train for" in scene.campaign["reason"]
    assert scene.watch.monitor_status()["inputs"] == 0
    scene.send("a" * 5000)
    assert [row["outcome"] for row in scene.campaigns] == ["covered", "answered"]
    assert len(scene.ledger.requests()) == 1


def test_the_swap_may_come_before_the_result(scene):
    scene.send("a" * 100)
    scene.ledger.update_request(scene.ledger.requests()[0], state="running")
    scene.serve(model("2", ThreatModel("Linf", 0.2)))
    assert scene.campaign["outcome"] == "answered"
    scene.finish("promoted", "2")
    assert scene.campaign["outcome"] == "answered"


def test_a_swap_that_does_not_help_leaves_the_running_request_in_charge(scene):
    scene.send("a" * 100)
    scene.serve(model("2", ThreatModel("Linf", 0.01)))
    assert scene.campaign["state"] == "open"
    scene.send("a" * 200)
    assert len(scene.campaigns) == 1
    scene.finish("promoted", "3")
    scene.serve(model("3", ThreatModel("Linf", 0.12)))
    assert scene.campaign["outcome"] == "answered"


def test_a_swap_that_does_not_help_ends_a_campaign_without_request(settings):
    scene = Scene(settings(retrain=False))
    scene.serve(model("1"))
    scene.send("a" * 100)
    assert scene.campaign["outcome"] == "dry-run"
    assert scene.ledger.requests() == []
    scene.serve(model("2", ThreatModel("Linf", 0.01)))
    assert scene.campaign["state"] == "closed"
    scene.ledger.close()


def test_a_refusal_leaves_it_unanswered_until_the_attack_grows(scene):
    scene.send("a" * 100)
    scene.finish("refused")
    assert (scene.campaign["state"], scene.campaign["outcome"]) == ("open", "unanswered")
    scene.send("a" * 300)
    assert len(scene.ledger.requests()) == 1
    scene.loaded.detector.epsilon = 0.15
    scene.send("a" * 64)
    assert [request.round for request in scene.ledger.requests()] == [1, 0]
    scene.finish("refused")
    scene.send("c" * 200)
    assert (scene.campaign["state"], scene.campaign["outcome"]) == ("closed", "unanswered")


def test_the_all_clear_waits_for_a_running_request(scene):
    scene.send("a" * 100 + "c" * 400)
    assert scene.campaign["state"] == "open"
    scene.finish("failed")
    scene.watch.tick()
    assert (scene.campaign["state"], scene.campaign["outcome"]) == ("closed", "unanswered")


def test_cooling_down_defers_the_request(settings, monkeypatch):
    scene = Scene(settings(cool_down_seconds=1000))
    scene.serve(model("1"))
    scene.send("a" * 100)
    scene.finish("promoted", "2")
    request = scene.ledger.requests()[0]
    scene.ledger.update_request(request, finished_at=time.time())
    scene.serve(model("2", ThreatModel("Linf", 0.2)))
    scene.loaded.detector.epsilon = 0.25
    scene.send("a" * 100)
    assert "cooling down" in scene.campaign["reason"]
    scene.send("c" * 200)
    assert (scene.campaign["state"], scene.campaign["outcome"]) == ("closed", "unanswered")
    scene.send("a" * 100)
    scene.ledger.update_request(request, finished_at=1.0)
    monkeypatch.setattr("serving.campaigns.RETRY_SECONDS", -1.0)
    scene.watch.tick()
    assert [row.epsilon > 0.25 for row in scene.ledger.requests()] == [True, False]
    scene.ledger.close()


def test_a_restart_goes_on_with_the_same_campaign(settings):
    first = Scene(settings())
    first.serve(model("1"))
    first.send("a" * 100)
    campaign, request = first.campaign, first.ledger.requests()[0]
    first.ledger.close()

    second = Scene(settings())
    second.serve(model("1"))
    second.send("a" * 1000)
    assert [row["id"] for row in second.campaigns] == [campaign["id"]]
    assert second.ledger.requests() == [request]
    second.ledger.update_request(request, state="promoted", version="2", finished_at=1.0)
    second.ledger.close()

    third = Scene(settings())
    third.serve(model("2", ThreatModel("Linf", 0.2)))
    assert third.campaign["outcome"] == "answered"
    third.ledger.close()


def test_a_campaign_from_before_a_restart_ends_by_silence(settings, monkeypatch):
    first = Scene(settings())
    first.serve(model("1"))
    first.send("a" * 30)
    first.ledger.close()
    second = Scene(settings())
    second.serve(model("1"))
    second.watch.tick()
    assert second.campaign["state"] == "open"
    now = time.monotonic()
    monkeypatch.setattr("serving.campaigns.time.monotonic", lambda: now + 901)
    second.watch.tick()
    assert second.campaign["outcome"] == "faded"
    second.ledger.close()


def test_verdicts_of_a_version_that_no_longer_serves_are_left_aside(scene):
    old = scene.loaded
    scene.serve(model("2"))
    scene.loaded = old
    scene.send("a" * 500)
    assert scene.watch.monitor_status()["inputs"] == 0
    assert scene.campaigns == []


def test_a_ledger_that_fails_is_a_problem_and_what_is_owed_is_done_later(scene, monkeypatch):
    def broken(*_, **__):
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr("serving.campaigns.RETRY_SECONDS", -1.0)
    with monkeypatch.context() as patched:
        patched.setattr(scene.ledger, "_insert", broken)
        scene.send("a" * 30)
        assert "disk is full" in str(scene.watch._problems)
        assert scene.campaigns == []
    scene.send("a" * 33)
    with monkeypatch.context() as patched:
        patched.setattr(scene.ledger, "_update", broken)
        scene.send("a")   # the last of 64: the judgement cannot be written, and then the attack stops
        assert scene.ledger.requests() == []
    scene.watch.tick()
    assert len(scene.ledger.requests()) == 1
    assert str(scene.watch._problems) == ""


def test_without_detector_there_is_no_monitor(scene):
    scene.serve(replace(model("2"), detector=None))
    assert scene.watch.monitor_status() is None
    scene.watch.tick()
