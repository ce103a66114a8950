"""A new champion that errs or slows is rolled back, and no request is lost by it."""

import asyncio
import time
from types import SimpleNamespace

import pytest
import torch
from serving_support import wait_until

from serving.engine import Engine
from serving.probation import BATCHES, Probation

OLD, NEW = (SimpleNamespace(version=version, key=version) for version in ("1", "2"))


def version(number: str):
    bundle = SimpleNamespace(classes=["a"], architecture=SimpleNamespace(input_shape=(1, 8, 8)))
    return SimpleNamespace(version=number, bundle=bundle)


@pytest.fixture
def probation():
    made = Probation(60, slow_factor=3)
    made.begin(OLD, None)
    for _ in range(BATCHES):
        assert made.suspects(OLD, 4, 0.01) is None
    made.begin(NEW, OLD)
    return made


def judge(probation, loaded, inputs, seconds, times=64):
    said = [probation.suspects(loaded, inputs, seconds) for _ in range(times)]
    return [before for before in said if before]


def test_a_slow_champion_is_suspected_once_at_each_size(probation):
    assert judge(probation, NEW, 4, 0.05) == [OLD]


def test_a_quick_one_stays_and_so_does_one_that_stumbles(probation):
    assert judge(probation, NEW, 4, 0.02) == []
    assert judge(probation, NEW, 4, 5.0, times=BATCHES // 4) == []


def test_a_machine_that_is_busy_for_a_while_is_no_suspicion(probation):
    for number in range(64):
        assert probation.suspects(NEW, 4, 0.05 if number % 5 < 3 else 0.01) is None


def test_batches_of_another_size_say_nothing(probation):
    assert judge(probation, NEW, 64, 0.16) == []


def test_slowness_convicts_where_the_same_batch_shows_it(probation):
    spent = {OLD.key: 0.01, NEW.key: 0.15}   # far apart: with other work at hand a sleep may take long
    reason = probation.compare(NEW, OLD, lambda model: time.sleep(spent[model.key]))
    assert "3 times" in reason
    assert "version 1 takes for the same" in reason
    assert probation.compare(NEW, OLD, lambda model: time.sleep(spent[model.key])) == ""   # it is on its way back


def test_heavier_traffic_acquits(probation):
    """An attack keeps the detector busy: what both take longer for is no fault of the new one."""
    assert judge(probation, NEW, 4, 0.05) == [OLD]
    assert probation.compare(NEW, OLD, lambda model: time.sleep(0.005)) == ""


def test_a_comparison_that_fails_convicts_nobody(probation):
    def run(model):
        if model is OLD:
            raise RuntimeError("out of order")
        time.sleep(0.01)

    assert probation.compare(NEW, OLD, run) == ""


@pytest.mark.parametrize("broken", ["1", "2"])
def test_a_detector_that_fails_acquits_nobody(probation, broken):
    """The one before may have been replaced because of it."""
    def assess(x, probabilities):
        raise RuntimeError("out of order")

    def made(loaded, seconds):
        return SimpleNamespace(
            version=loaded.version, detector=object(), probabilities=lambda x: time.sleep(seconds),
            assess=assess if loaded.version == broken else lambda x, probabilities: None,
        )

    models = {OLD.version: made(OLD, 0.001), NEW.version: made(NEW, 0.006)}
    engine = SimpleNamespace(_settings=SimpleNamespace(detection=True))
    reason = probation.compare(NEW, OLD, lambda model: Engine._run(engine, models[model.version], torch.zeros(1)))
    assert "3 times" in reason


def test_a_large_batch_is_not_computed_a_dozen_times():
    computed = []
    engine = SimpleNamespace(
        device=torch.device("cpu"), _run=lambda model, x: computed.append(len(x)),
        _probation=SimpleNamespace(suspects=lambda *_: version("1"), compare=lambda loaded, before, run: run(loaded)),
    )
    Engine._try(engine, version("2"), torch.zeros(512, 1, 8, 8), 1.0)
    assert computed == [32]


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

    failing = engine.current
    monkeypatch.setattr(failing.model, "forward", fail)
    answers = [running.infer(torch.zeros(1, 1, 8, 8)) for _ in range(4)]
    assert {answer.status_code for answer in answers} == {200}
    assert {answer.json()["model_version"] for answer in answers} == {"1"}
    wait_until(lambda: running.status()["champion"]["version"] == "1")
    wait_until(lambda: "version 2 was rolled back: 3 batches failed" in (running.status()["problem"] or ""))
    read_before = asyncio.run(engine.predict(failing, torch.zeros(1, 1, 8, 8)))   # waited in the queue meanwhile
    assert read_before.loaded.version == "1"
    assert b'redoubt_rollbacks_total{model="digits"} 1.0' in running.client.get("/metrics").content
    light.number = 3   # the next one gets its chance
    wait_until(lambda: running.status()["champion"]["version"] == "3")
    assert "rolled back" not in (running.status()["problem"] or "")


def test_a_champion_that_is_slow_loses_its_place(live, light, untrained, monkeypatch):
    light.folders |= {2: untrained}
    running = live(light, accelerate=False, detection=False)
    engine, x = running.server.engine, torch.zeros(1, 1, 8, 8)
    for _ in range(BATCHES):
        running.infer(x)
    light.number = 2
    wait_until(lambda: engine.current.version == "2")
    forward = engine.current.model.forward

    def slowly(x):
        time.sleep(0.05)
        return forward(x)

    monkeypatch.setattr(engine.current.model, "forward", slowly)
    assert {running.infer(x).status_code for _ in range(BATCHES + 8)} == {200}
    wait_until(lambda: running.status()["champion"]["version"] == "1")
    wait_until(lambda: "version 2 was rolled back: a batch takes" in (running.status()["problem"] or ""))
