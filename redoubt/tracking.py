"""Figures on their way to the tracking server while a run goes on: collected here, sent by a thread of their own.

Nothing here may hold up or end a training run. The server itself is `redoubt.registry`'s matter: `Sink`.
"""

from __future__ import annotations

import threading
import time
import warnings
from collections import deque
from collections.abc import Callable
from typing import Protocol

from redoubt.registry import Registry

ROWS_KEPT = 20_000   # while the server cannot be reached; the oldest go first
Row = tuple[int, float, dict[str, float]]   # step, seconds since 1970, values


def figures(row: dict) -> Row:
    """A row of training's history under the names that it has on the tracking server."""
    values = {f"validation/{name}": value for name, value in row.items() if name.endswith("_accuracy")}
    for name in ("epoch", "seconds"):
        values[f"train/{name}"] = row[name]
    return row["updates"], time.time(), {"train/epoch_loss": row["loss"], **values}


def beat(step: int, values: dict[str, float]) -> Row:
    """Figures between two epochs, likewise."""
    kept = ("loss", "learning_rate", "images_per_second", "seconds_left")
    return step, time.time(), {f"train/{name}": values[name] for name in kept if name in values}


class Sink(Protocol):
    """One tracked run. Every method may take its time and may raise."""

    def begin(self) -> str:
        """Start the run, or take it up again; its id."""

    def send(self, rows: list[Row]) -> None:
        """Write rows down."""

    def end(self, *, failed: bool) -> None:
        """Say that the run has ended."""


class LiveRun:
    """The sink that is a run in the model registry, with the machine's own figures beside the training's.

    Args:
        run_id: a run to take up instead of starting one.
    """

    def __init__(self, registry: Registry, *, name: str, parameters: dict, run_id: str = ""):
        self._registry, self._name, self._parameters, self._run_id = registry, name, parameters, run_id
        self._monitor = None

    def begin(self) -> str:
        self._run_id, self._monitor = self._registry.begin_run(self._name, self._parameters, run_id=self._run_id)
        return self._run_id

    def send(self, rows: list[Row]) -> None:
        self._registry.log_rows(self._run_id, rows)

    def end(self, *, failed: bool) -> None:
        if self._monitor is not None:
            self._monitor.finish()
        self._registry.end_run(self._run_id, failed=failed)


class Tracker:
    """Takes figures at once and sends them in batches.

    A server that cannot be reached is warned of once and tried again every `again` seconds.

    Args:
        delay: seconds before the server is first spoken to: a shorter run is not worth the second that it takes.
        every: seconds between two batches.
        again: seconds after a failure before the next try.
        patience: longest that `close` waits for what is still to be sent.
    """

    def __init__(self, sink: Sink, *, delay: float = 10.0, every: float = 5.0, again: float = 60.0,
                 patience: float = 30.0, warn: Callable[[str], None] = warnings.warn):
        self._sink, self._every, self._again, self._patience, self._warn = sink, every, again, patience, warn
        self._rows: deque[Row] = deque(maxlen=ROWS_KEPT)
        self._due, self._warned, self._failed = time.monotonic() + delay, False, False
        self._closing, self._ended = threading.Event(), False
        self.run_id = ""
        self._thread = threading.Thread(target=self._work, name="tracker", daemon=True)
        self._thread.start()

    def __call__(self, row: Row) -> None:
        """Take a row; returns at once."""
        self._rows.append(row)

    def close(self, *, failed: bool = False) -> str:
        """Send what is left, say that the run has ended, and wait for it no longer than `patience`.

        Returns:
            The tracked run's id; empty when the server never answered, or the run was too short to begin one.
        """
        self._failed = failed
        self._closing.set()
        self._thread.join(self._patience)
        if self._thread.is_alive():
            self._complain("it takes too long to answer")
        return self.run_id

    def _work(self) -> None:
        while not self._closing.wait(max(0.05, min(self._every, self._due - time.monotonic()))):
            if time.monotonic() >= self._due:
                self._try(self._flush)
        if self.run_id and time.monotonic() >= self._due - self._every:   # not in the minute after a failure
            self._try(self._last)

    def _try(self, what: Callable[[], None]) -> None:
        try:
            what()
            self._due = time.monotonic() + self._every
        except Exception as error:   # whatever it is, training goes on
            self._due = time.monotonic() + self._again
            self._complain(str(error) or type(error).__name__)

    def _flush(self) -> None:
        if not self.run_id:
            self.run_id = self._sink.begin()
        rows = list(self._rows)
        if rows:
            self._sink.send(rows)
        for _ in rows:
            self._rows.popleft()

    def _last(self) -> None:
        self._flush()
        self._sink.end(failed=self._failed)

    def _complain(self, reason: str) -> None:
        if not self._warned:
            self._warned = True
            self._warn(f"figures of this run do not reach the tracking server, training goes on: {reason}")
