"""A campaign's evidence, and which of it says how strong the attack is: a few clients cannot set the strength.

Whether there is an attack is asked of everything that was flagged. How strong it is, only of what many clients agree
on, where many take part: the newest inputs of each client count up to one number for all. The number is the largest
with which a few clients, however much they send, hold no more than `VOICE` of the smallest group of inputs that the
detector would believe for its own sake (`redoubt.detection.groups.least`).
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from redoubt.detection import Strength
from redoubt.detection.groups import least
from redoubt.detection.strength import CONTAMINATION

VOICE = 3 / 16   # of the smallest group: so many inputs at epsilon 0.3 move no strength, four of sixteen do (measured)
ASIDE = 3 / 8    # of the smallest group: inputs that are left aside at most at either end
MEMORY = 2       # times the most inputs that a judgement looks at: kept, so that who sends much displaces nobody soon


class Reader(Protocol):
    """What is asked for a strength: a `redoubt.detection.Detector`."""

    @property
    def null_rate(self) -> float: ...

    def campaign(self, evidence: Tensor) -> Strength: ...

    def strengths(self, evidence: Tensor) -> Tensor: ...


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Inputs that say how strong an attack is.

    Attributes:
        rows: their numbers, in order.
        foreign: how many of them a few clients may have sent.
        level: whether that is too few for a group.
    """

    rows: list[int]
    foreign: int
    level: bool


def select(
    clients: Sequence[str], *, few: int, minimum: int, most: int, false_alarms: float = 0.0
) -> Selection | None:
    """The newest inputs of each client, up to one number for all.

    It is the largest with which a few clients are not heard. Where there is none, for there are too few clients: what
    the median client sent, or more if there would be fewer than `minimum` inputs in all.

    Args:
        clients: who sent each flagged input, oldest first.
        few: clients that may not set the strength between them.
        minimum: the fewest inputs that a strength may stand on.
        most: the most that are looked at.
        false_alarms: expected among them, in the traffic that they were flagged in.

    Returns:
        None where a few clients are the campaign: what the others sent may all be false alarms.
    """
    counts = sorted(Counter(clients).values())
    others = sum(counts[: max(0, len(counts) - few)])
    if others <= max(CONTAMINATION * len(clients), false_alarms):
        return None

    def total(each: int) -> int:
        return sum(min(count, each) for count in counts)

    def largest(holds: Callable[[int], bool]) -> int:
        return bisect_left(range(1, counts[-1] + 1), True, key=lambda each: not holds(each))

    room = max(1, largest(lambda each: total(each) <= most))
    each = min(room, largest(lambda each: few * each <= VOICE * least(total(each))))
    level = total(each) >= minimum
    if not level:
        each = max(1 + largest(lambda each: total(each) < minimum), min(room, counts[len(counts) // 2]))
    rows, taken = [], Counter()
    for row in reversed(range(len(clients))):
        taken[clients[row]] += 1
        if taken[clients[row]] <= each:
            rows.append(row)
    return Selection(rows=rows[:most][::-1], foreign=few * each, level=level)


def arriving(clients: Sequence[str], few: int) -> bool:
    """Whether the newer half of the inputs, given oldest first, has clients that the older half has not. Inputs of the
    few who sent most are left out, or a burst of theirs would be a half in which nobody new comes."""
    busiest = {client for client, _ in Counter(clients).most_common(few)}
    others = [client for client in clients if client not in busiest]
    half = len(others) // 2
    return not set(others[half:]) <= set(others[:half])


class Evidence:
    """Flagged inputs of one campaign, oldest first.

    Args:
        most: the most inputs that a judgement looks at; the newest `MEMORY` times as many are kept.
        minimum: the fewest.
        few: clients that may not set the strength between them; with 0 anybody may.
    """

    def __init__(self, *, most: int, minimum: int, few: int):
        self._most, self._minimum, self._few = most, minimum, few
        self._rows: deque[tuple[int, str, Tensor]] = deque(maxlen=MEMORY * most)

    def __len__(self) -> int:
        return len(self._rows)

    def clear(self) -> None:
        self._rows.clear()

    def keep(self, at: int, client: str, row: Tensor) -> None:
        """Take in one flagged input.

        Args:
            at: its number among all inputs, ascending.
            row: [K], `Verdicts.evidence` of it.
        """
        self._rows.append((at, client, row.clone()))

    def forget_until(self, at: int) -> None:
        """Leave out the inputs up to this number."""
        while self._rows and self._rows[0][0] <= at:
            self._rows.popleft()

    def strength(self, detector: Reader, *, seen: int, patient: bool) -> Strength | None:
        """What the detector reads.

        Args:
            seen: number of the latest input, flagged or not.
            patient: whether to wait for further clients where a few hold too much and new ones still turn up, until
                memory is full.

        Returns:
            None while it is better to wait.
        """
        clients = [client for _, client, _ in self._rows]
        everything = torch.stack([row for _, _, row in self._rows])
        false_alarms = detector.null_rate * (seen - self._rows[0][0] + 1)
        selection = select(
            clients, few=self._few, minimum=self._minimum, most=self._most, false_alarms=false_alarms
        ) if self._few else None
        if selection is None:
            return detector.campaign(everything[-self._most :])
        if patient and not selection.level and len(self._rows) < self._rows.maxlen and arriving(clients, self._few):
            return None
        whole = detector.campaign(everything[-self._most :])
        agreed = _agreed(detector, everything[selection.rows], selection.foreign + round(false_alarms / 2))
        # What many clients send may be harmless where a few attack: then the attack is theirs.
        return whole if agreed.harmless else replace(agreed, witnessed=agreed.witnessed or whole.witnessed)


def _agreed(detector: Reader, evidence: Tensor, foreign: int) -> Strength:
    """The strength of inputs [n, K] without the strongest and the weakest: a trimmed mean.

    Args:
        foreign: inputs of a few clients, and false alarms that read stronger than an attack, or weaker. So many are
            left aside at either end, but no more than `ASIDE` of a group, so that a group of many clients is found.
    """
    aside = min(foreign, int(ASIDE * min(len(evidence), least(len(evidence)))))
    order = detector.strengths(evidence).argsort()
    return replace(detector.campaign(evidence[order[aside : len(order) - aside]]), n=len(evidence))
