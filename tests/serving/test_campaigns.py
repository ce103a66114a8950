"""A campaign's findings and its end, with a detector that flags and measures as the test says."""

import time

import pytest
from serving_support import Scene, Scripted, model

from redoubt.threat import ThreatModel


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


def test_people_are_told_of_a_refusal_and_what_they_can_do(scene, caplog):
    scene.send("a" * 100)
    scene.finish("refused", "2")
    told = str(scene.problems)
    assert "the gate refused version 2, which stays challenger: as scripted" in told
    assert '`redoubt promote digits 2 --override "reason"`' in told
    assert told.removeprefix("campaign: ") in caplog.text
    scene.serve(model("2", ThreatModel("Linf", 0.12)))   # a person promoted it against the gate
    assert (scene.campaign["state"], scene.campaign["outcome"]) == ("closed", "answered")
    assert str(scene.problems) == ""


def test_a_version_that_waits_for_a_person_is_not_trained_again(scene):
    scene.send("a" * 100)
    scene.finish("waiting", "2")
    assert "version 2 passed the gate and waits for a person: `redoubt promote digits 2`" in str(scene.problems)
    assert scene.campaign["outcome"] == "unanswered"
    scene.send("a" * 300)
    assert len(scene.ledger.requests()) == 1
    scene.send("c" * 200)
    scene.send("a" * 100)   # the attacker comes back: another campaign, the same champion
    assert len(scene.campaigns) == 2
    assert "version 2 answers Linf 0.1" in scene.campaign["reason"]
    assert len(scene.ledger.requests()) == 1


def test_what_the_gate_refused_is_not_trained_again_for_the_next_campaign(scene):
    scene.send("a" * 100)
    scene.finish("refused", "2")
    scene.send("c" * 200)
    scene.send("a" * 100)
    assert "the gate refused, version 2, what was trained for Linf" in scene.campaign["reason"]
    assert len(scene.ledger.requests()) == 1
    scene.loaded.detector.epsilon = 0.2
    scene.send("a" * 64)
    assert len(scene.ledger.requests()) == 2, "its strength rose"
    scene.finish("refused", "3")
    scene.send("c" * 200)
    scene.serve(model("9", ThreatModel("Linf", 0.05)))   # another champion: another parent
    scene.send("a" * 100)
    assert len(scene.ledger.requests()) == 3


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


def test_a_failure_for_good_may_be_asked_again_after_the_cool_down(settings, monkeypatch):
    scene = Scene(settings(cool_down_seconds=1000, daily_budget=2))
    scene.serve(model("1"))
    scene.send("a" * 100)
    scene.finish("failed")
    scene.send("a" * 100)
    assert "cooling down" in scene.campaign["reason"]
    assert scene.campaign["outcome"] == "unanswered"
    first = scene.ledger.requests()[0]
    scene.ledger.update_request(first, finished_at=1.0)
    monkeypatch.setattr("serving.campaigns.RETRY_SECONDS", -1.0)
    scene.watch.tick()
    second = scene.ledger.requests()[0]
    assert (second.campaign, second.round, second.epsilon) == (first.campaign, 1, first.epsilon)
    assert scene.campaign["outcome"] is None
    scene.finish("failed", ago=2000)
    scene.send("a" * 100)
    assert "daily budget of 2" in scene.campaign["reason"]
    assert len(scene.campaigns) == 1
    scene.ledger.close()


def test_a_promoted_version_that_never_serves_is_a_problem_and_asked_for_again(scene, monkeypatch):
    monkeypatch.setattr("serving.campaigns.RETRY_SECONDS", -1.0)
    scene.send("a" * 100)
    scene.finish("promoted", "2", ago=50)
    scene.watch.tick()
    scene.send("a" * 100)
    assert (str(scene.problems), len(scene.ledger.requests())) == ("", 1)   # it may still come
    scene.finish("promoted", "2", ago=61)
    scene.watch.tick()
    assert "version 2 was promoted for it and did not become the champion within 60 s" in str(scene.problems)
    assert scene.campaign["outcome"] == "unanswered"
    scene.send("a" * 64)
    assert [request.round for request in scene.ledger.requests()] == [1, 0]
    assert (str(scene.problems), scene.campaign["outcome"]) == ("", None)
    scene.serve(model("2", ThreatModel("Linf", 0.2)))   # it came after all
    assert scene.campaign["outcome"] == "answered"


def test_that_problem_ends_with_its_campaign(scene):
    scene.send("a" * 100)
    scene.finish("promoted", "2", ago=61)
    assert "did not become the champion" in str(scene.problems)
    scene.serve(model("3"))
    assert (scene.campaign["state"], scene.campaign["outcome"]) == ("closed", "unanswered")
    assert str(scene.problems) == ""
