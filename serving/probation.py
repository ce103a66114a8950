"""A champion that has just taken over is on probation: it must not fail, and not be much slower than the one before."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from serving.model import LoadedModel

ERRORS = 3        # failed batches that convict
BATCHES = 30      # of one size, on both sides, before slowness is suspected
ROUNDS = 5        # side by side, which settles it
_KEPT = 64


class Probation:
    """Compares a new champion with the one before. Safe to use from every thread.

    Computing times in service raise a suspicion: those of batches of like size (powers of two), by their lower
    quartiles. They convict nobody, since the traffic is another than before: a detector has more to do for flagged
    inputs, and a swap is often followed by the attack that led to it. Both models on one batch, in turn, settle it.

    Args:
        seconds: how long it lasts after a swap; 0 turns it off.
        slow_factor: how many times the old time convicts.
    """

    def __init__(self, seconds: float, *, slow_factor: float):
        self._seconds, self._factor = seconds, slow_factor
        self._lock = threading.Lock()
        self._times: dict[str, dict[int, list[float]]] = {}
        self._settled: set[int] = set()   # sizes at which both were compared side by side
        self._on_trial: LoadedModel | None = None
        self._before: LoadedModel | None = None
        self._until, self._errors = 0.0, 0

    def begin(self, loaded: LoadedModel, before: LoadedModel | None) -> None:
        """`loaded` takes over from `before`. Going back to a version that has served is no trial."""
        with self._lock:
            known = loaded.key in self._times
            self._times = {key: rows for key, rows in self._times.items() if before and key == before.key}
            self._times.setdefault(loaded.key, {})
            self._settled.clear()
            self._on_trial = loaded if before is not None and not known else None
            self._before, self._errors = before, 0
            self._until = time.monotonic() + self._seconds

    def suspects(self, loaded: LoadedModel, inputs: int, seconds: float) -> LoadedModel | None:
        """Take in one batch's computing time; the version to compare `loaded` with, if it looks slow. Once a size."""
        with self._lock:
            rows = self._times.get(loaded.key)
            if rows is None:
                return None
            size = inputs.bit_length()
            row = rows.setdefault(size, [])
            row.append(seconds)
            del row[:-_KEPT]
            if loaded is not self._on_trial or not self._running() or size in self._settled or len(row) < BATCHES:
                return None
            old = self._times.get(self._before.key, {}).get(size, [])
            if len(row) % 8 or len(old) < BATCHES or _typical(row) <= self._factor * _typical(old):
                return None
            self._settled.add(size)
            return self._before

    def compare(self, loaded: LoadedModel, before: LoadedModel, run: Callable[[LoadedModel], object]) -> str:
        """Run both in turn; the reason to roll `loaded` back, or nothing.

        Args:
            run: answers one batch with a model. Where it fails, the comparison says nothing.
        """
        try:
            for model in (before, loaded):
                run(model)   # what the first run alone costs is not the model's
            pairs = [(_seconds(run, before), _seconds(run, loaded)) for _ in range(ROUNDS)]
        except Exception:
            return ""
        old, new = (sorted(times)[ROUNDS // 2] for times in zip(*pairs, strict=True))
        with self._lock:
            if new <= self._factor * old or loaded is not self._on_trial:
                return ""
            self._on_trial = None
        return (f"a batch takes {new * 1e3:.3g} ms, more than {self._factor:g} times the {old * 1e3:.3g} ms that "
                f"version {before.version} takes for the same")

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


def _seconds(run: Callable[[LoadedModel], object], model: LoadedModel) -> float:
    began = time.perf_counter()
    run(model)
    return time.perf_counter() - began
