"""The queue: batches under load, no waiting alone, bounds, deadlines, one version an answer, and an end in order."""

import asyncio
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from serving.batcher import Batcher, Job
from serving.model import Prediction
from serving.problems import Busy, Expired, NotReady


class Model:
    """Computes as slowly as told and remembers its batches."""

    def __init__(self, seconds: float = 0.0):
        self.seconds, self.batches, self.told, self.go = seconds, [], [], threading.Event()
        self.go.set()

    def compute(self, loaded, x):
        self.go.wait(5)
        time.sleep(self.seconds)
        self.batches.append((loaded, len(x)))
        return Prediction(loaded=loaded, outputs={"label": x[:, 0, 0, 0].numpy().copy()})

    def answered(self, prediction, x, jobs):
        self.told.append([job.client for job in jobs])


@pytest.fixture
def batcher():
    made = []

    def make(model, **changes):
        values = {"workers": 1, "threads": 1, "batch_inputs": 64, "delay": 0.05, "queue_inputs": 100, **changes}
        made.append(Batcher(model.compute, model.answered, **values))
        return made[-1]

    yield make
    for one in made:
        one.stop(2)


ONE, TWO = SimpleNamespace(version="1"), SimpleNamespace(version="2")


def job(value: float = 0.0, n: int = 1, loaded=ONE, seconds: float = 10.0, client: str = "") -> Job:
    return Job(loaded, torch.full((n, 1, 2, 2), value), client, time.monotonic() + seconds)


def test_a_lone_request_does_not_wait(batcher):
    model = Model()
    queue = batcher(model, delay=1.0)
    for _ in range(3):
        began = time.monotonic()
        asyncio.run(queue.ask(job()))
        assert time.monotonic() - began < 0.5


def test_requests_that_wait_are_one_batch_and_each_gets_its_own_rows(batcher):
    model = Model()
    queue = batcher(model)
    model.go.clear()

    async def ask():
        first = asyncio.create_task(queue.ask(job(0)))
        await asyncio.sleep(0.1)   # it is being computed
        rest = [asyncio.create_task(queue.ask(job(i, n=i, client=str(i)))) for i in range(1, 6)]
        await asyncio.sleep(0.05)
        model.go.set()
        return await asyncio.gather(first, *rest)

    answers = asyncio.run(ask())
    queue.settle()
    assert [n for _, n in model.batches] == [1, 15]
    for i, answer in enumerate(answers):
        np.testing.assert_array_equal(answer.outputs["label"], np.full(max(i, 1), i))
    assert model.told[1] == ["1", "2", "3", "4", "5"]


def test_a_batch_is_of_one_version_and_of_bounded_size(batcher):
    model = Model()
    queue = batcher(model, batch_inputs=8, delay=0)
    model.go.clear()
    jobs = [job(), *(job(loaded=ONE) for _ in range(3)), *(job(loaded=TWO, n=3) for _ in range(4))]
    for one in jobs:
        queue.submit(one)
        time.sleep(0.02)
    model.go.set()
    for one in jobs:
        assert one.future.result(5).loaded is one.loaded
    assert [(loaded.version, n) for loaded, n in model.batches] == [("1", 1), ("1", 3), ("2", 6), ("2", 6)]


def test_a_full_queue_says_when_to_come_back(batcher):
    model = Model()
    queue = batcher(model, queue_inputs=10)
    model.go.clear()
    queue.submit(job())
    time.sleep(0.05)
    for _ in range(10):
        queue.submit(job())
    with pytest.raises(Busy) as refused:
        queue.submit(job())
    assert int(refused.value.headers["Retry-After"]) >= 1
    with pytest.raises(Busy, match="the queue is full"):   # and whoever comes learns it before sending a body
        queue.check_room(30)
    model.go.set()
    queue.settle()


def test_a_wait_beyond_the_deadline_is_refused_at_once(batcher):
    model = Model(seconds=0.1)
    queue = batcher(model, batch_inputs=1)
    asyncio.run(queue.ask(job()))
    queue.settle()
    for _ in range(5):
        queue.submit(job())
    with pytest.raises(Busy, match="longer than the request's time"):
        queue.submit(job(seconds=0.2))


def test_who_waited_too_long_is_not_computed(batcher):
    model = Model()
    queue = batcher(model, batch_inputs=1)
    model.go.clear()
    queue.submit(job())
    time.sleep(0.05)
    late = job(seconds=0.3)
    queue.submit(late)
    time.sleep(0.4)
    model.go.set()
    with pytest.raises(Expired):
        late.future.result(5)
    assert len(model.batches) == 1


def test_a_request_has_room_for_the_batch_that_it_will_share(batcher):
    model = Model(seconds=0.2)
    queue = batcher(model, batch_inputs=4)
    asyncio.run(queue.ask(job()))   # an input takes 0.2 s, so a batch of four may take 0.8
    queue.settle()
    for _ in range(4):
        queue.submit(job())
    with pytest.raises(Busy):
        queue.submit(job(seconds=1.3))   # 0.8 s ahead of it and 0.2 for itself alone
    with pytest.raises(Busy):
        queue.check_room(1.3)
    queue.check_room(2.5)
    queue.submit(job(seconds=2.5))


def test_company_does_not_make_the_first_of_a_batch_late(batcher):
    model = Model(seconds=0.3)
    queue = batcher(model, delay=0)
    queue.submit(job())
    time.sleep(0.05)
    hurried = job(seconds=1.2)   # an input takes 0.3 s, so three more of them beside it would be too many
    queue.submit(hurried)
    for _ in range(4):
        queue.submit(job(seconds=9))
    assert hurried.future.result(2) is not None
    queue.settle()
    assert model.batches[1][1] < 4


def test_who_can_no_longer_be_answered_makes_room(batcher):
    model = Model(seconds=0.2)
    queue = batcher(model, batch_inputs=1)
    model.go.clear()
    queue.submit(job())
    hopeless, behind = job(seconds=1.0), job()
    queue.submit(hopeless)
    queue.submit(behind)
    time.sleep(0.75)   # the machine is slower than it looked
    model.go.set()
    with pytest.raises(Busy):
        hopeless.future.result(5)
    assert behind.future.result(5) is not None
    assert len(model.batches) == 2


def test_a_wrong_idea_of_the_pace_refuses_nobody_for_good(batcher):
    model = Model(seconds=0.5)
    queue = batcher(model)
    queue.submit(job())
    time.sleep(0.6)
    model.seconds = 0.0
    assert asyncio.run(queue.ask(job(seconds=0.3))) is not None   # idle: it is tried, and the pace is learnt anew


def test_the_one_who_asks_is_not_kept_beyond_the_deadline(batcher):
    model = Model(seconds=0.5)
    queue = batcher(model)
    began = time.monotonic()
    with pytest.raises(Expired):
        asyncio.run(queue.ask(job(seconds=0.1)))
    assert time.monotonic() - began < 0.4


def test_a_batch_that_fails_fails_alone(batcher):
    model = Model()
    queue = batcher(model)
    compute, model.compute = model.compute, None
    queue._compute = lambda loaded, x: 1 / 0
    with pytest.raises(ZeroDivisionError):
        asyncio.run(queue.ask(job()))
    queue._compute = compute
    assert asyncio.run(queue.ask(job(7))).outputs["label"] == [7]


def test_what_is_queued_is_finished_at_the_end(batcher):
    model = Model(seconds=0.02)
    queue = batcher(model, batch_inputs=1)
    jobs = [job() for _ in range(5)]
    for one in jobs:
        queue.submit(one)
    queue.stop()
    assert all(one.future.done() and not one.future.exception() for one in jobs)
    with pytest.raises(NotReady):
        queue.submit(job())
