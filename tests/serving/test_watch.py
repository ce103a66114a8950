"""The watch with a detector that flags and measures as the test says: what it counts, and what it outlives."""

import time
from dataclasses import replace

from serving_support import Scene, model

from redoubt.threat import ThreatModel
from serving.records import LedgerUnavailable


def test_clean_traffic_raises_nothing(scene):
    scene.send(("c" * 99 + "a") * 100)
    assert scene.campaigns == []
    assert scene.watch.monitor_status()["flagged"] == 100


def test_one_flagged_picture_a_thousand_times_counts_once(scene):
    scene.send("a" * 1000, same=True)
    status = scene.watch.monitor_status()
    assert (status["inputs"], status["distinct"], status["flagged"]) == (1000, 1, 1)
    assert scene.campaigns == []


def test_evidence_is_bounded_and_recent(settings):
    scene = Scene(settings(lookback=100, campaign_max_inputs=128))
    scene.serve(model("1", ThreatModel("Linf", 0.3)))
    scene.send("a" * 3 + "c" * 400 + "a" * 20)
    assert scene.campaign["flagged"] == 20   # the first three lie too far back
    scene.send("a" * 500)
    assert scene.loaded.detector.seen == 128
    scene.ledger.close()


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
        raise LedgerUnavailable("database or disk is full")

    monkeypatch.setattr("serving.campaigns.RETRY_SECONDS", -1.0)
    with monkeypatch.context() as patched:
        patched.setattr(scene.ledger, "_insert", broken)
        scene.send("a" * 30)
        assert "disk is full" in str(scene.problems)
        assert scene.campaigns == []
    scene.send("a" * 33)
    with monkeypatch.context() as patched:
        patched.setattr(scene.ledger, "_update", broken)
        scene.send("a")   # the last of 64: the judgement cannot be written, and then the attack stops
        assert scene.ledger.requests() == []
    scene.watch.tick()
    assert len(scene.ledger.requests()) == 1
    assert str(scene.problems) == ""


def test_without_detector_there_is_no_monitor(scene):
    scene.serve(replace(model("2"), detector=None))
    assert scene.watch.monitor_status() is None
    scene.watch.tick()
