"""A champion that has just taken over is on probation: it must not fail, and not be much slower than the one before."""

from __future__ import annotations

import threading
import time

from serving.model import LoadedModel

ERRORS = 3        # failed batches that convict
BATCHES = 30      # of one size, on both sides, before slowness convicts
_KEPT = 64


class Probation:
    """Compares a new champion with the one before. Safe to use from every thread.

    Computing times are compared between batches of like size (powers of two), by their lower quartiles: what else runs
    on the machine only ever adds, so neither a slow batch nor a busy half-second says anything.

    Args:
        seconds: how long it lasts after a swap; 0 turns it off.
        slow_factor: how many times the old time convicts.
    """

    def __init__(self, seconds: float, *, slow_factor: float):
        self._seconds, self._factor = seconds, slow_factor
        self._lock = threading.Lock()
        self._times: dict[str, dict[int, list[float]]] = {}
        self._on_trial: LoadedModel | None = None
        self._before: LoadedModel | None = None
        self._until, self._errors = 0.0, 0

    def begin(self, loaded: LoadedModel, before: LoadedModel | None) -> None:
        """`loaded` takes over from `before`. Going back to a version that has served is no trial."""
        with self._lock:
            known = loaded.key in self._times
            self._times = {key: rows for key, rows in self._times.items() if before and key == before.key}
            self._times.setdefault(loaded.key, {})
            self._on_trial = loaded if before is not None and not known else None
            self._before, self._errors = before, 0
            self._until = time.monotonic() + self._seconds

    def judge(self, loaded: LoadedModel, inputs: int, seconds: float) -> str:
        """Take in one batch's computing time; the reason to roll `loaded` back, or nothing."""
        with self._lock:
            rows = self._times.get(loaded.key)
            if rows is None:
                return ""
            size = inputs.bit_length()
            row = rows.setdefault(size, [])
            row.append(seconds)
            del row[:-_KEPT]
            if loaded is not self._on_trial or not self._running() or len(row) < BATCHES or len(row) % 8:
                return ""
            old = self._times.get(self._before.key, {}).get(size, [])
            if len(old) < BATCHES or _typical(row) <= self._factor * _typical(old):
                return ""
            self._on_trial = None
        return (
            f"a batch of {inputs} takes {_typical(row) * 1e3:.3g} ms, more than {self._factor:g} times the "
            f"{_typical(old) * 1e3:.3g} ms of version {self._before.version}"
        )

    def erred(self, loaded: LoadedModel, error: Exception) -> str:
        """Take in one failed batch; the reason to roll `loaded` back, or nothing."""
        with self._lock:
            if loaded is not self._on_trial or not self._running():
                return ""
            self._errors += 1
            if self._errors < ERRORS:
                return ""
            self._on_trial = None
        return f"{ERRORS} batches failed: {type(error).__name__}: {error}"

    def _running(self) -> bool:
        return time.monotonic() < self._until


def _typical(times: list[float]) -> float:
    return sorted(times)[len(times) // 4]
