"""How long what waits will take, by what the last batches took and by how those under way come on.

The mean alone would promise too much: other work on the machine slows it for seconds at a time, and what was accepted
shortly before must still be answered within its time. So the spread counts, too, and the newest batch as much as all
before it together.
"""

from __future__ import annotations

from dataclasses import dataclass, field

_MEMORY = 0.5     # what a batch still counts once the next one has ended
_CAUTION = 2.0    # times the mean deviation, on top of the mean


@dataclass
class Pace:
    """Seconds and inputs of the last batches. Its owner's lock guards it; times are on the monotonic clock.

    Attributes:
        workers: batches computed at a time.
    """

    workers: int = 1
    _seconds: float = 0.0
    _inputs: float = 0.0
    _deviation: float = 0.0
    _under_way: dict[int, tuple[float, int]] = field(default_factory=dict)   # by whoever computes: began, inputs

    def begin(self, who: int, inputs: int, now: float) -> None:
        """A batch is being computed."""
        self._under_way[who] = (now, inputs)

    def end(self, who: int, now: float) -> None:
        """It has been computed, or has failed."""
        began, inputs = self._under_way.pop(who)
        took = now - began
        deviation = abs(took - self._mean() * inputs) if self._inputs else 0.0
        self._seconds = _MEMORY * self._seconds + took
        self._inputs = _MEMORY * self._inputs + inputs
        self._deviation = _MEMORY * self._deviation + deviation

    def usual(self, inputs: int) -> float:
        """Seconds that a batch of `inputs` takes, which one worker computes, however many there are."""
        return inputs * self._mean()

    def cautious(self, inputs: int, now: float) -> float:
        """The same when it goes less well than it usually does, or has just begun to."""
        return inputs * self._careful(now)

    def ahead(self, waiting: int, now: float) -> float:
        """Cautious seconds until what is under way and `waiting` inputs behind it are computed."""
        careful = self._careful(now)
        left = sum(max(0.0, inputs * careful - (now - began)) for began, inputs in list(self._under_way.values()))
        return (left + waiting * careful) / self.workers

    def _mean(self) -> float:
        return self._seconds / self._inputs if self._inputs else 0.0

    def _careful(self, now: float) -> float:
        """Of one input, by one worker. A batch that takes longer than it should counts before it has ended."""
        mean = self._mean()
        for began, inputs in list(self._under_way.values()):
            mean = max(mean, (_MEMORY * self._seconds + now - began) / (_MEMORY * self._inputs + inputs))
        return mean + (_CAUTION * self._deviation / self._inputs if self._inputs else 0.0)
