"""What the page is told: everything once, and then each second what changed."""

from __future__ import annotations

import json
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

from redoubt.detection import Verdicts
from redoubt.names import REPORT
from serving.launcher import PROGRESS
from serving.live.history import Counters, History
from serving.model import LoadedModel

BINS = 24
_ROWS = 50   # of campaigns, retraining runs and swaps that a page shows
_PROGRESS_BYTES = 65536   # the end of a run's progress file that is read


def histogram(values: Iterable[float], bins: int = BINS) -> dict | None:
    """Counts over equal bins from zero to the largest value.

    Returns:
        {edge: width of one bin, counts: [bins]}, None for no values.
    """
    values = [value for value in values if value >= 0]
    if not values:
        return None
    top = max(max(values), 1e-6) * 1.0001
    counts = [0] * bins
    for value in values:
        counts[int(value / top * bins)] += 1
    return {"edge": top / bins, "counts": counts}


def curve(loaded: LoadedModel | None) -> list[dict]:
    """The champion's accuracy over epsilon for each attack in its report; empty when it has none."""
    if loaded is None:
        return []
    return _curve(str(loaded.bundle.folder), loaded.key)


@lru_cache(maxsize=4)
def _curve(folder: str, _key: str) -> list[dict]:
    try:
        rows = json.loads((Path(folder) / REPORT).read_text())["attacks"]
        return [{name: row[name] for name in ("label", "norm", "epsilon", "accuracy", "low", "high")} for row in rows]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def progress(folder: Path) -> dict | None:
    """How far a retraining run is: its steps in order and the newest row of each, from the run's progress file.

    Returns:
        {steps: [{step, state, seconds}], latest: the newest event}; None when nothing was written yet.
    """
    try:
        with (folder / PROGRESS).open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - _PROGRESS_BYTES))
            lines = file.read().splitlines()
    except OSError:
        return None
    steps, latest = {}, None
    for line in lines:
        try:
            event = json.loads(line)
            name = event["step"]
        except (ValueError, KeyError, TypeError):
            continue   # the line that is being written, or the one that the seek cut
        latest = event
        row = steps.setdefault(name, {"step": name, "state": "running", "seconds": None})
        if "state" in event:   # further events of a step count seconds of their own
            row |= {"state": event["state"], "seconds": event.get("seconds")}
    return {"steps": list(steps.values()), "latest": latest} if latest else None


class Feed:
    """The history, and the latest frame for every open page. Safe to use from every thread.

    Args:
        keep: strengths of flagged inputs that the histogram looks back on.

    Attributes:
        readers: pages that are open; without any, no frame need be made.
    """

    def __init__(self, keep: int = 512):
        self.history, self.readers, self.closed = History(), 0, False
        self._strengths: deque[float] = deque(maxlen=keep)
        self._lock = threading.Lock()
        self._number, self._frame = 0, "{}"
        self._row: list = []
        self._campaign = False

    def observe(self, verdicts: Verdicts) -> None:
        """Keep the strengths of the flagged ones among N inputs."""
        found = verdicts.strength[verdicts.is_adversarial].tolist()
        with self._lock:
            self._strengths.extend(found)

    def forget(self) -> None:
        """Another version answers, or a campaign ended: its strengths are of no further interest."""
        with self._lock:
            self._strengths.clear()

    def note(self, now: Counters) -> None:
        """Take the totals down; call it once a second, whether a page is open or not."""
        self._row = self.history.note(now)
        if self._campaign and not now.campaign:
            self.forget()
        self._campaign = now.campaign

    def make(self, status: dict, loaded: LoadedModel | None, folder: Callable[[str], Path]) -> None:
        """Make the next frame, with the row that was noted last.

        Args:
            status: what `/status` shows.
            folder: from a retraining request's id to the folder of its files.
        """
        with self._lock:
            strengths = list(self._strengths)
        retrains = [request | {"progress": progress(folder(request["id"])) if request["state"] == "running" else None}
                    for request in status["retrains"][:_ROWS]]
        frame = status | {"row": self._row, "strengths": histogram(strengths), "curve": curve(loaded),
                          "retrains": retrains, "campaigns": status["campaigns"][:_ROWS],
                          "swaps": status["swaps"][-_ROWS:]}
        text = json.dumps(frame, allow_nan=False, separators=(",", ":"))
        with self._lock:
            self._number, self._frame = self._number + 1, text

    @contextmanager
    def reading(self) -> Iterator[int]:
        """While a page is open; yields the number of the newest frame, which is old news to it."""
        with self._lock:
            self.readers += 1
            number = self._number
        try:
            yield number
        finally:
            with self._lock:
                self.readers -= 1

    def close(self) -> None:
        """The server stops: readers leave at their next look."""
        self.closed = True

    def latest(self) -> tuple[int, str]:
        """The number of the newest frame, and the frame as JSON."""
        with self._lock:
            return self._number, self._frame
