"""The challenger, if there is one, computes a share of the traffic for nobody: how it would do is measured."""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

import numpy as np
from torch import Tensor

from redoubt.errors import RedoubtError
from redoubt.registry import CHALLENGER
from serving.engine import Engine, Seen
from serving.model import LoadedModel, version_key
from serving.problems import Problems

log = logging.getLogger("redoubt.serving")
_WAITING = 4        # batches that wait; the next is not taken: the champion's traffic goes first
_REFUSED = 300.0    # seconds before a challenger that cannot be loaded is tried again


class Shadow:
    """A thread that runs the challenger beside the champion. It shares the machine, never an answer.

    Args:
        registry: has `by_alias` and `fetch`.
        folder: where the challenger's files lie while it is looked at.
        share: of the batches that it is shown, in (0, 1].
        count: called as (classes, verdicts, inputs) with how many inputs of a batch were decided alike: `same` or
            `different`, for the class and for the detectors' verdict, the latter `none` where either has no detector.
    """

    def __init__(
        self, registry, engine: Engine, problems: Problems, *, folder: Path, share: float, poll_seconds: float,
        count: Callable[[str, str, int], None] = lambda classes, verdicts, inputs: None,
    ):
        self._count = count
        self._registry, self._engine, self._problems = registry, engine, problems
        self._folder, self._share, self._poll_seconds = folder, share, poll_seconds
        self._ready, self._stopping = threading.Condition(), False
        self._waiting: deque[tuple[Tensor, np.ndarray, np.ndarray | None, float]] = deque()
        self._loaded: LoadedModel | None = None
        self._champion, self._due = "", 0.0
        self._refused: tuple[str, float] = ("", 0.0)
        self._begin_afresh()
        self._thread = threading.Thread(target=self._loop, name="shadow", daemon=True)

    def _begin_afresh(self) -> None:
        self._inputs = self._same = self._flagged = self._flagged_now = self._errors = 0
        self._judged = self._judged_alike = 0
        self._seconds = self._seconds_now = 0.0

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        with self._ready:
            self._stopping = True
            self._ready.notify()
        if self._thread.is_alive():
            self._thread.join(timeout=5)

    def see(self, seen: Seen) -> None:
        """Show it one answered batch, if it is its turn; never blocks."""
        loaded = self._loaded
        if loaded is None or loaded.bundle.architecture.input_shape != seen.loaded.bundle.architecture.input_shape:
            return
        with self._ready:
            if self._champion != seen.loaded.key:   # compared with another champion it is another comparison
                self._champion = seen.loaded.key
                self._begin_afresh()
            self._due += self._share
            if self._due < 1 or len(self._waiting) >= _WAITING:
                self._due = min(self._due, 1.0)
                return
            self._due -= 1
            flags = None if seen.verdicts is None else seen.verdicts.is_adversarial.numpy()
            self._waiting.append((seen.x, seen.predicted, flags, seen.seconds))
            self._ready.notify()

    def status(self) -> dict | None:
        """What was measured, as JSON values; None without a challenger."""
        with self._ready:
            loaded, n = self._loaded, self._inputs
            if loaded is None:
                return None
            return {
                "version": loaded.version, "inputs": n, "errors": self._errors,
                "agreement": self._same / n if n else None,
                "verdict_agreement": self._judged_alike / self._judged if self._judged else None,
                "flagged": self._flagged / n if n else None, "champion_flagged": self._flagged_now / n if n else None,
                "times_as_slow": self._seconds / self._seconds_now if self._seconds_now else None,
            }

    def _loop(self) -> None:
        looked = -self._poll_seconds
        while True:
            with self._ready:
                self._ready.wait_for(lambda: self._waiting or self._stopping, timeout=self._poll_seconds)
                if self._stopping:
                    return
                batch = self._waiting.popleft() if self._waiting else None
            if batch is not None:
                self._run(*batch)
            if time.monotonic() - looked >= self._poll_seconds:
                self._look()
                looked = time.monotonic()

    def _look(self) -> None:
        """Follow the alias."""
        key = ""
        try:
            found = self._registry.by_alias(CHALLENGER)
            key = version_key(str(found.number), found.run_id) if found else ""
            if found is None or (self._engine.current is not None and key == self._engine.current.key):
                self._take(None)
            elif self._refused[0] == key and time.monotonic() < self._refused[1]:
                return   # what was said of it stays true
            elif self._loaded is None or self._loaded.key != key:
                bundle = self._registry.fetch(found, self._folder / key)
                self._take(self._engine.load(bundle, str(found.number), found.run_id))
            self._problems.clear("challenger")
        except (RedoubtError, OSError) as error:
            self._problems.note("challenger", f"it cannot be shadowed: {error}")
            self._refused = (key, time.monotonic() + _REFUSED)

    def _take(self, loaded: LoadedModel | None) -> None:
        if loaded is None and self._loaded is None:
            return
        with self._ready:
            self._loaded = loaded
            self._waiting.clear()
            self._begin_afresh()
        log.info("challenger: %s", "none any more" if loaded is None else f"version {loaded.version} is shadowed")
        for folder in self._folder.iterdir() if self._folder.is_dir() else ():
            if loaded is None or folder.name != loaded.key:
                shutil.rmtree(folder, ignore_errors=True)

    def _run(self, x: Tensor, predicted: np.ndarray, flags: np.ndarray | None, seconds: float) -> None:
        loaded, began = self._loaded, time.perf_counter()
        if loaded is None:
            return
        try:
            probabilities = loaded.probabilities(x)
            same = probabilities.argmax(1).numpy() == predicted
            own = loaded.assess(x, probabilities).is_adversarial.numpy() if loaded.detector is not None else None
        except Exception as error:   # whatever it does, it does to itself
            log.warning("the challenger failed on a batch: %s", error)
            with self._ready:
                self._errors += 1
            return
        took = time.perf_counter() - began
        judged = own is not None and flags is not None
        alike = own == flags if judged else np.zeros(len(x), bool)
        with self._ready:
            self._inputs += len(x)
            self._same += int(same.sum())
            self._judged, self._judged_alike = self._judged + judged * len(x), self._judged_alike + int(alike.sum())
            self._flagged += 0 if own is None else int(own.sum())
            self._flagged_now += 0 if flags is None else int(flags.sum())
            self._seconds, self._seconds_now = self._seconds + took, self._seconds_now + seconds
        for word, rows in (("same", same), ("different", ~same)):
            if not judged:
                self._count(word, "none", int(rows.sum()))
                continue
            self._count(word, "same", int((rows & alike).sum()))
            self._count(word, "different", int((rows & ~alike).sum()))
