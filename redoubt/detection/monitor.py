"""From many doubtful verdicts to one alarm, and from quiet to the all-clear. Pure state machines: no clock, no I/O."""

from __future__ import annotations

import hashlib
import math
from collections import OrderedDict
from collections.abc import Iterable, Sequence

import numpy as np

from redoubt.errors import InvalidInput

_HIGHER = (0.04, 0.08, 0.15, 0.3, 0.6, 0.9)   # flagged shares that an attack may cause, from a trickle to a flood


class Monitor:
    """A sequential test on verdicts with a bound on how often it cries wolf.

    Under normal traffic an input is flagged with a probability of at most `null_rate`, whatever came before. For each
    alternative share q, every verdict multiplies a Shiryaev-Roberts statistic, plus one, by its likelihood ratio of q
    against `null_rate`. The mean over alternatives is an e-detector, so the expected number of inputs until a false
    alarm is at least `arl` (Shin, Ramdas & Rinaldo 2023, arXiv 2203.03532). All sums are kept as logarithms: a flood
    of a million flagged inputs overflows nothing.
    """

    def __init__(self, null_rate: float, arl: float = 1e8):
        """
        Args:
            null_rate: upper bound of the share of normal inputs that are flagged, in (0, 0.5).
            arl: average run length, the least expected number of normal inputs between false alarms, above 1.

        Raises:
            InvalidInput: for values outside these ranges.
        """
        if not 0 < null_rate < 0.5:
            raise InvalidInput(f"null_rate must lie between 0 and 0.5, not {null_rate}")
        if not (math.isfinite(arl) and arl > 1):
            raise InvalidInput(f"arl must be a finite number above 1, not {arl}")
        self.null_rate, self.arl = float(null_rate), float(arl)
        shares = [q for q in _HIGHER if q > 1.5 * null_rate] or [(1 + null_rate) / 2]
        q = np.array(sorted({min(2 * null_rate, 0.9), *shares}))
        self._on_flag = np.log(q / null_rate)
        self._on_pass = np.log((1 - q) / (1 - null_rate))
        self._weight = -math.log(len(q))
        self.reset()

    def reset(self) -> None:
        """Forget everything seen: after an alarm was answered, or a new model version came."""
        self._log = np.full(len(self._on_flag), -np.inf)

    def update(self, flagged: bool | Iterable[bool]) -> bool:
        """Take one verdict, or several in their order.

        Returns:
            Whether the statistic stands at or above the threshold after any of them.
        """
        alarm, threshold = False, self.threshold
        for one in (flagged,) if isinstance(flagged, (bool, np.bool_)) else flagged:
            self._log = np.logaddexp(0.0, self._log) + (self._on_flag if one else self._on_pass)
            alarm = alarm or self.statistic >= threshold
        return bool(alarm)

    def update_interval(self, *, flagged: int, passed: int) -> bool:
        """Take the verdicts of an interval whose order is not known, as the sum of several sources has none.

        They count as if the flagged ones had come first, and the statistic is looked at once, at the interval's end.
        Of all orders this one ends lowest, because the ones that are added on the way are multiplied by the factors
        that follow: the bound on false alarms holds whatever the order was.

        Returns:
            Whether the statistic stands at or above the threshold at the interval's end.
        """
        for count, factor in ((flagged, self._on_flag), (passed, self._on_pass)):
            if count > 0:   # R a^n + a + a^2 + ... + a^n, in logarithms
                largest = np.maximum(factor, count * factor)   # of a, ..., a^n: the last where a > 1, else the first
                rest = np.log1p(-np.exp(-count * np.abs(factor))) - np.log1p(-np.exp(-np.abs(factor)))
                self._log = np.logaddexp(self._log + count * factor, largest + rest)
        return self.statistic >= self.threshold

    @property
    def statistic(self) -> float:
        """Logarithm of the e-detector; -inf before the first verdict."""
        return float(np.logaddexp.reduce(self._log) + self._weight)

    @property
    def threshold(self) -> float:
        """Logarithm of `arl`: an alarm is due from here on."""
        return math.log(self.arl)

    def state(self) -> dict:
        """Everything needed to go on elsewhere, as JSON values."""
        seen = bool(np.isfinite(self._log).all())
        return {"null_rate": self.null_rate, "arl": self.arl, "log": self._log.tolist() if seen else None}

    @classmethod
    def from_state(cls, state: dict) -> Monitor:
        """The monitor that `state` described.

        Raises:
            InvalidInput: when the state is incomplete or was written by another release.
        """
        try:
            monitor = cls(state["null_rate"], state["arl"])
            if state["log"] is not None:
                log = np.array(state["log"], dtype=float)
                if log.shape != monitor._log.shape or not np.isfinite(log).all():
                    raise InvalidInput("the monitor's state does not fit this release: start a fresh monitor")
                monitor._log = log
        except (KeyError, TypeError) as error:
            raise InvalidInput(f"the monitor's state is incomplete ({error}): start a fresh monitor") from None
        return monitor


class RecentInputs:
    """Remembers the last distinct inputs, so that one picture sent a thousand times counts once."""

    def __init__(self, capacity: int):
        """
        Args:
            capacity: how many distinct inputs are remembered; the one not seen for longest is forgotten first.

        Raises:
            InvalidInput: for a capacity below 1.
        """
        if capacity < 1:
            raise InvalidInput(f"capacity must be at least 1, not {capacity}")
        self.capacity = capacity
        self._seen: OrderedDict[bytes, None] = OrderedDict()

    def is_new(self, digest: bytes) -> bool:
        """Whether the input with this digest (`digests`) is not among those remembered. It is from now on."""
        known = digest in self._seen
        self._seen[digest] = None
        self._seen.move_to_end(digest)
        if len(self._seen) > self.capacity:
            self._seen.popitem(last=False)
        return not known

    def __len__(self) -> int:
        return len(self._seen)


def digests(batch: np.ndarray) -> list[bytes]:
    """What tells one input of a batch [N, ...] from another: 16 bytes each, of the values as float32 and the shape."""
    rows = np.ascontiguousarray(batch, dtype=np.float32) + np.float32(0)   # -0.0 becomes 0.0
    begun = hashlib.blake2b(repr(rows.shape[1:]).encode(), digest_size=16)
    found = []
    for row in rows.reshape(len(rows), math.prod(rows.shape[1:])):
        whole = begun.copy()
        whole.update(row)
        found.append(whole.digest())
    return found


def all_clear(recent: Sequence[bool], *, null_rate: float, window: int = 200) -> bool:
    """Whether a campaign is over: the newest `window` distinct inputs hold no more flags than normal traffic would.

    Args:
        recent: verdicts since the alarm, oldest first.
        null_rate: as in `Monitor`.
        window: how many of them decide; fewer than this never give the all-clear.

    Returns:
        True when the count is at most the 95th percentile of Binomial(window, null_rate), so that normal traffic ends
        a campaign at nearly every look.

    Raises:
        InvalidInput: for a null rate outside (0, 0.5) or a window below 1.
    """
    if not 0 < null_rate < 0.5 or window < 1:
        raise InvalidInput(f"all_clear needs a null_rate in (0, 0.5) and a window >= 1, not {null_rate}, {window}")
    if len(recent) < window:
        return False
    return sum(bool(one) for one in recent[-window:]) <= _binomial_quantile(window, null_rate, 0.95)


def _binomial_quantile(n: int, p: float, level: float) -> int:
    term, total, count = (1 - p) ** n, 0.0, 0
    while True:
        total += term
        if total >= level or count == n:
            return count
        term *= (n - count) / (count + 1) * p / (1 - p)
        count += 1
