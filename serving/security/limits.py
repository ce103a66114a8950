"""Token buckets, one for each client, in bounded memory."""

from __future__ import annotations

import time
from collections import OrderedDict

_CLIENTS = 10_000   # remembered; the one not seen for longest is forgotten, and begins with a full bucket


class RateLimits:
    """How many requests each client may still make. For one thread: the event loop's.

    Args:
        rate: requests a second; 0 is no limit.
        burst: requests at once; 0 is two seconds' worth.
    """

    def __init__(self, rate: float, burst: float):
        self._rate, self._burst = rate, burst
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, client: str, rate: float | None = None) -> float:
        """Take one request of a client's; 0, or the seconds until it may make the next."""
        rate = self._rate if rate is None else rate
        if not rate:
            return 0.0
        burst = max(1.0, self._burst or 2 * rate)
        now = time.monotonic()
        left, since = self._buckets.get(client, (burst, now))
        left = min(burst, left + (now - since) * rate)
        allowed = left >= 1
        self._buckets[client] = (left - 1 if allowed else left, now)
        self._buckets.move_to_end(client)
        if len(self._buckets) > _CLIENTS:
            self._buckets.popitem(last=False)
        return 0.0 if allowed else (1 - left) / rate
