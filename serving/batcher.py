"""Requests wait here in one bounded queue, and a fixed number of threads computes them in batches.

A thread that is free takes what waits, at once: a lone request never waits for company. Under load the queue fills
while a batch computes, and the next batch is what came in the meantime. Only when the batches before held several
requests does a thread give their successors a moment (`delay`) to arrive, because a client that was just answered is
likely to ask again.

What is accepted is answered within its time, so a request is refused at once when the queue is too long for it, by how
long the last batches took (`serving/pace.py`). Where the machine slows down afterwards, those that can no longer be
answered in time make room for those behind them, instead of being computed for nobody.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field

import torch
from torch import Tensor

from serving.model import LoadedModel, Prediction
from serving.pace import Pace
from serving.problems import Busy, Expired, NotReady

log = logging.getLogger("redoubt.serving")
_TOO_LONG = "the queue is longer than the request's time: try again later"
_TOO_SHORT = "the request's time is shorter than an answer takes, and nothing waits before it: give it more"


@dataclass(eq=False, slots=True)
class Job:
    """One request's inputs on their way through the queue.

    Attributes:
        loaded: the version that it was read for, and that answers it.
        x: float32 [N, C, H, W] in [0, 1].
        client: who sent it: the principal, else an address.
        deadline: on the monotonic clock; past it nobody waits any longer.
        names: under which feedback may name the answer.
    """

    loaded: LoadedModel
    x: Tensor
    client: str
    deadline: float
    names: tuple[str, ...] = ()
    future: Future = field(default_factory=Future)

    def __len__(self) -> int:
        return len(self.x)


class Batcher:
    """The queue and its threads.

    Args:
        compute: answers the inputs of one batch for one version.
        answered: called as (prediction, x, jobs) once the answers of a batch are on their way.
        workers: batches computed at a time.
        threads: torch threads within one operation.
        batch_inputs: inputs after which a batch is full; a request is never divided. A batch stays smaller where one
            of its requests would be late otherwise.
        delay: seconds that a batch may wait for company under load.
        queue_inputs: inputs that may wait; a request beyond is refused.
    """

    def __init__(
        self, compute: Callable[[LoadedModel, Tensor], Prediction],
        answered: Callable[[Prediction, Tensor, list[Job]], None], *, workers: int, threads: int, batch_inputs: int,
        delay: float, queue_inputs: int,
    ):
        self._compute, self._answered = compute, answered
        self._batch_inputs, self._delay, self._limit = batch_inputs, delay, queue_inputs
        self._ready = threading.Condition()
        self._queue: deque[Job] = deque()
        self._inputs = self._computing = self._taken = self._settled = 0
        self._expected = 1
        self._pace = Pace(workers)
        self._stopping = False
        torch.set_num_threads(threads)
        self._pool = [
            threading.Thread(target=self._work, args=(threads,), name=f"compute-{i}", daemon=True)
            for i in range(workers)
        ]
        for thread in self._pool:
            thread.start()

    # -- asking -------------------------------------------------------------------------------------------------

    async def ask(self, job: Job) -> Prediction:
        """Queue `job` and wait for its answer; the event loop stays free.

        Raises:
            Busy: when the queue is full, or the wait would be longer than the deadline.
            Expired: when the deadline passed.
            NotReady: when the server ends.
        """
        self.submit(job)
        try:
            async with asyncio.timeout(max(0.0, job.deadline - time.monotonic())):
                return await asyncio.wrap_future(job.future)
        except TimeoutError:
            raise Expired("the request's time ran out before it was computed") from None

    def submit(self, job: Job) -> None:
        """Queue `job`; its future gets the answer."""
        with self._ready:
            if self._stopping:
                raise NotReady("the server is shutting down")
            now = time.monotonic()
            if self._queue and self._inputs + len(job) > self._limit:
                raise Busy(f"the queue holds {self._inputs} inputs: try again later", self._ahead(now))
            if not self._in_time(len(job), job.deadline - now, now):
                raise Busy(_TOO_LONG if self._queue or self._computing else _TOO_SHORT, self._ahead(now))
            self._queue.append(job)
            self._inputs += len(job)
            self._ready.notify()

    def check_room(self, seconds: float) -> None:
        """Whether a request of one input that has so many seconds would be taken now, before its body is read.

        Raises:
            Busy: when it would not.
        """
        with self._ready:
            now = time.monotonic()
            if self._inputs >= self._limit:
                raise Busy("the queue is full: try again later", self._ahead(now))
            if not self._in_time(1, seconds, now):
                raise Busy(_TOO_LONG, self._ahead(now))

    def congestion(self) -> float:
        """Seconds that a request would wait now, by what the last batches took."""
        with self._ready:
            return self._ahead(time.monotonic())

    def _ahead(self, now: float) -> float:
        return self._pace.ahead(self._inputs, now)

    def _in_time(self, inputs: int, left: float, now: float) -> bool:
        """Whether a request can be answered within the seconds that it has left. It will share a batch with others, so
        a full one must have room; where that alone would take half of the time, batches are kept smaller."""
        if not self._queue and not self._computing:
            return left >= 0
        company = min(self._pace.cautious(self._batch_inputs, now), left / 2)
        return self._ahead(now) + max(company, self._pace.cautious(inputs, now)) <= left

    @property
    def depth(self) -> int:
        """Inputs that wait."""
        return self._inputs

    def settle(self, seconds: float = 2.0) -> None:
        """Wait until the batches that were taken by now are computed and told to `answered`."""
        with self._ready:
            taken = self._taken
            self._ready.wait_for(lambda: self._settled >= taken, timeout=seconds)

    # -- computing ----------------------------------------------------------------------------------------------

    def stop(self, seconds: float = 20.0) -> None:
        """Finish what is queued and end the threads; what is not finished within `seconds` fails."""
        with self._ready:
            self._stopping = True
            self._ready.notify_all()
        deadline = time.monotonic() + seconds
        for thread in self._pool:
            thread.join(timeout=max(0.1, deadline - time.monotonic()))
        with self._ready:
            for job in self._queue:
                _fail(job, NotReady("the server is shutting down"))
            self._queue.clear()

    def _work(self, threads: int) -> None:
        torch.set_num_threads(threads)
        while (batch := self._take()) is not None:
            if not batch:
                continue   # their time had run out
            count = sum(map(len, batch))
            try:
                self._answer(batch)
            except BaseException as error:
                log.exception("a batch failed")
                for job in batch:
                    _fail(job, error if isinstance(error, Exception) else RuntimeError("a batch failed"))
            with self._ready:
                self._pace.end(threading.get_ident(), time.monotonic())
                self._computing -= count
                self._settled += 1
                self._ready.notify_all()

    def _take(self) -> list[Job] | None:
        """The next batch, of one version; None when the server ends."""
        with self._ready:
            while not self._queue and not self._stopping:
                self._ready.wait()
            self._wait_for_company()
            if not self._queue:
                return None if self._stopping else []
            batch, count, now = self._gather(time.monotonic())
            if batch:
                self._pace.begin(threading.get_ident(), count, now)
            self._computing += count
            self._taken += bool(batch)
            self._expected = max(1, len(batch))
            return batch

    def _gather(self, now: float) -> tuple[list[Job], int, float]:
        """Take the next batch from the queue: its requests, their inputs together, and the time."""
        batch, count, earliest = [], 0, float("inf")
        while self._queue:
            job = self._queue[0]
            together = count + len(job)
            if batch and (
                job.loaded is not batch[0].loaded or together > self._batch_inputs
                or now + self._pace.cautious(together, now) > earliest   # company must not make it late
            ):
                break
            self._queue.popleft()
            self._inputs -= len(job)
            if now > job.deadline:
                _fail(job, Expired("the request's time ran out in the queue"))
            elif self._queue and now + self._pace.usual(len(job)) > job.deadline:   # the last one is tried: who knows
                _fail(job, Busy(_TOO_LONG, self._ahead(now)))
            elif not job.future.cancelled():
                count = together
                earliest = min(earliest, job.deadline)
                batch.append(job)
        return batch, count, now

    def _wait_for_company(self) -> None:
        expected, until = self._expected, time.monotonic() + self._delay
        while len(self._queue) < expected and self._inputs < self._batch_inputs and not self._stopping:
            left = until - time.monotonic()
            if left <= 0 or not self._ready.wait(left):
                break

    def _answer(self, batch: list[Job]) -> None:
        x = batch[0].x if len(batch) == 1 else torch.cat([job.x for job in batch])
        prediction, start = self._compute(batch[0].loaded, x), 0
        for job in batch:
            rows = prediction if len(batch) == 1 else prediction.rows(start, start + len(job))
            start += len(job)
            with contextlib.suppress(InvalidStateError):   # given up this very moment
                job.future.set_result(rows)
        self._answered(prediction, x, batch)


def _fail(job: Job, error: Exception) -> None:
    with contextlib.suppress(InvalidStateError):
        job.future.set_exception(error)
