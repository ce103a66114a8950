"""How fast a run is, how long it will take, and what it says of itself between two epochs."""

from __future__ import annotations

import time
from collections.abc import Callable

from redoubt.training.state import State

Pulse = Callable[[int, dict[str, float]], None]


class Clock:
    """Seconds so far, images a second in this process, and how long the rest will take.

    Args:
        per_epoch: steps.
        pulse: called with a step's number and figures at most every second, later every 300th of the run so far: a
            long run must not flood whoever keeps them.
    """

    def __init__(self, state: State, per_epoch: int, n: int, pulse: Pulse):
        self.state, self.start, self.before, self.first = state, time.perf_counter(), state.seconds, state.step
        self.total, self.images = per_epoch * state.config.epochs, min(state.config.batch_size, n)
        self._pulse, self._last, self._losses = pulse, self.start, []

    def note(self) -> float:
        self.state.seconds = self.before + time.perf_counter() - self.start
        return self.state.seconds

    def read(self) -> dict:
        seconds = self.note()
        rate = (self.state.step - self.first) / max(1e-9, seconds - self.before)
        return {"seconds": seconds, "images_per_second": round(rate * self.images, 1),
                "seconds_left": round((self.total - self.state.step) / rate, 1) if rate else 0.0}

    def heard(self, losses: list[float]) -> None:
        """Take the losses that became known, and pass their mean on when it is time."""
        self._losses += losses
        now = time.perf_counter()
        if not self._losses or now - self._last < max(1.0, (now - self.start) / 300):
            return
        figures = {"loss": sum(self._losses) / len(self._losses), "epoch": self.state.epoch,
                   "learning_rate": self.state.schedule.get_last_lr()[0], **self.read()}
        self._last, self._losses = now, []
        self._pulse(self.state.step, figures)
