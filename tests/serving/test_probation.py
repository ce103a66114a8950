"""A new champion that errs or slows is rolled back, and no request is lost by it."""

from types import SimpleNamespace

import pytest
import torch
from serving_support import wait_until

from serving.probation import BATCHES, Probation

OLD, NEW = (SimpleNamespace(version=version, key=version) for version in ("1", "2"))


@pytest.fixture
def probation():
    made = Probation(60, slow_factor=3)
    made.begin(OLD, None)
    for _ in range(BATCHES):
        assert made.judge(OLD, 4, 0.01) == ""
    made.begin(NEW, OLD)
    return made


def judge(probation, loaded, inputs, seconds, times=64):
    return [reason for _ in range(times) if (reason := probation.judge(loaded, inputs, seconds))]


def test_a_slow_champion_is_convicted_once(probation):
    said = judge(probation, NEW, 4, 0.05)
    assert len(said) == 1
    assert "50 ms" in said[0]


def test_a_quick_one_stays_and_so_does_one_that_stumbles(probation):
    assert judge(probation, NEW, 4, 0.02) == []
    assert judge(probation, NEW, 4, 5.0, times=BATCHES // 4) == []


def test_a_machine_that_is_busy_for_a_while_convicts_nobody(probation):
    for number in range(64):
        assert probation.judge(NEW, 4, 0.05 if number % 5 < 3 else 0.01) == ""


def test_batches_of_another_size_say_nothing(probation):
    assert judge(probation, NEW, 64, 0.16) == []


def test_the_old_one_and_one_whose_time_is_over_are_not_judged(probation):
    assert judge(probation, OLD, 4, 1.0) == []
    over = Probation(0, slow_factor=3)
    over.begin(OLD, None)
    judge(over, OLD, 4, 0.01)
    over.begin(NEW, OLD)
    assert judge(over, NEW, 4, 1.0) == []
    assert over.erred(NEW, ValueError("x")) == ""


def test_three_errors_convict(probation):
    assert [bool(probation.erred(NEW, ValueError("x"))) for _ in range(5)] == [False, False, True, False, False]


@pytest.mark.parametrize("how", ["raises", "nan"])
def test_a_champion_that_errs_loses_no_request_and_its_place(live, light, untrained, monkeypatch, how):
    light.folders |= {2: untrained, 3: untrained}
    running = live(light, accelerate=False)
    engine = running.server.engine
    light.number = 2
    wait_until(lambda: engine.current.version == "2")

    def fail(x):
        if how == "raises":
            raise RuntimeError("out of order")
        return torch.full((len(x), 10), float("nan"))

    monkeypatch.setattr(engine.current.model, "forward", fail)
    answers = [running.infer(torch.zeros(1, 1, 8, 8)) for _ in range(4)]
    assert {answer.status_code for answer in answers} == {200}
    assert {answer.json()["model_version"] for answer in answers} == {"1"}
    wait_until(lambda: running.status()["champion"]["version"] == "1")
    wait_until(lambda: "version 2 was rolled back: 3 batches failed" in (running.status()["problem"] or ""))
    assert b'redoubt_rollbacks_total{model="digits"} 1.0' in running.client.get("/metrics").content
    light.number = 3   # the next one gets its chance
    wait_until(lambda: running.status()["champion"]["version"] == "3")
    assert "rolled back" not in (running.status()["problem"] or "")
