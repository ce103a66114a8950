"""Twenty-four hours of the server's figures in a fixed amount of memory: every second at first, every minute later."""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass

SECONDS, MINUTES = 900, 24 * 60   # a quarter of an hour by the second, a day by the minute
COLUMNS = ("at", "requests", "failed", "inputs", "flagged", "statistic", "threshold", "campaign", "version")


@dataclass(frozen=True, kw_only=True)
class Counters:
    """The server's totals at one moment. `inputs` and `flagged` start again from zero with every model version.

    Attributes:
        at: unix seconds.
        inputs, flagged: distinct inputs that the monitor saw, and how many of them were flagged.
        statistic, threshold: the monitor's, on a logarithmic scale; None without a monitor or before any input.
        campaign: whether one is running.
        version: the version that serves, empty while none does.
    """

    at: float
    requests: int = 0
    failed: int = 0
    inputs: int = 0
    flagged: int = 0
    statistic: float | None = None
    threshold: float | None = None
    campaign: bool = False
    version: str = ""


class History:
    """What was counted in each second and each minute. Safe to use from every thread."""

    def __init__(self, seconds: int = SECONDS, minutes: int = MINUTES):
        self._lock = threading.Lock()
        self._seconds: deque[list] = deque(maxlen=seconds)
        self._minutes: deque[list] = deque(maxlen=minutes)
        self._minute: list | None = None
        self._last: Counters | None = None

    def note(self, now: Counters) -> list:
        """Add what happened since the last call, and return that row in the order of `COLUMNS`.

        The first call only sets the totals to count from; its row holds zeros.
        """
        with self._lock:
            row = self._row(now)
            self._last = now
            self._seconds.append(row)
            self._add_to_minute(row)
            return row

    def _row(self, now: Counters) -> list:
        last = self._last or now
        fresh = now.version != last.version or now.inputs < last.inputs
        inputs, flagged = (0, 0) if fresh else (last.inputs, last.flagged)
        return [round(now.at, 1), now.requests - last.requests, now.failed - last.failed, now.inputs - inputs,
                now.flagged - flagged, now.statistic, now.threshold, now.campaign, now.version]

    def _add_to_minute(self, row: list) -> None:
        minute = row[0] // 60 * 60
        if self._minute is None or minute > self._minute[0]:
            self._minute = [minute, 0, 0, 0, 0, None, None, False, ""]
            self._minutes.append(self._minute)
        whole = self._minute
        for i in range(1, 5):
            whole[i] += row[i]
        if row[5] is not None:   # the highest of the minute: an alarm must not vanish between two points
            whole[5] = row[5] if whole[5] is None else max(whole[5], row[5])
            whole[6] = row[6]
        whole[7], whole[8] = whole[7] or row[7], row[8]

    def rows(self) -> dict[str, list]:
        """`seconds` and `minutes`, each a list of rows in the order of `columns`, oldest first."""
        with self._lock:
            return {"columns": list(COLUMNS), "seconds": [list(row) for row in self._seconds],
                    "minutes": [list(row) for row in self._minutes]}
