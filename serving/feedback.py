"""Labels that come back later: matched with what was answered, and tested against the champion's recorded accuracy."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from hashlib import sha256

import numpy as np

from redoubt.detection import Monitor
from redoubt.errors import InvalidInput
from redoubt.names import REPORT
from serving.model import LoadedModel

RUN_LENGTH = 1e5   # labels, on average at least, between two false alarms about accuracy
_RECENT = 500      # newest labels, for the figure that people read
_LONG = 128        # characters of a name that is kept as it is; of a longer one a digest is kept


@dataclass(eq=False, slots=True)
class _Answer:
    """What one request was answered with, and the names under which it is found; `chosen` are ids of its body."""

    client: str
    key: str
    predicted: np.ndarray
    chosen: tuple[str | bytes, ...]
    names: set[str | bytes] = field(default_factory=set)


class Feedback:
    """Remembers predictions by request id and judges labels. Safe to use from every thread.

    Errors are counted against the upper bound of the champion's recorded error rate, both as shares in [0, 1], with the
    same sequential test as the detector's verdicts: it may be looked at after every label.

    Clients choose their ids: one that a client used again names the newest of its requests, and one that two clients
    used is nobody's, for one could otherwise answer for the other. An id of the body, such as 1, is easily
    guessed, and so only the client itself and who asks for no predictions may label by it.

    Args:
        capacity: inputs whose predictions are remembered; the oldest go first.
    """

    def __init__(self, capacity: int):
        self._capacity, self._lock = capacity, threading.Lock()
        self._answers: OrderedDict[str | bytes, _Answer | None] = OrderedDict()   # None: two clients used the name
        self._held = 0
        self._loaded: LoadedModel | None = None
        self._monitor: Monitor | None = None
        self._recorded: dict | None = None
        self._begin_afresh()

    def _begin_afresh(self) -> None:
        self._labels = self._wrong = 0
        self._lost = False
        self._recent: deque[bool] = deque(maxlen=_RECENT)

    def on_model(self, loaded: LoadedModel) -> None:
        """Another version answers from now on: count afresh, against its own record."""
        recorded = _recorded(loaded)
        with self._lock:
            self._loaded, self._recorded, self._monitor = loaded, recorded, None
            if recorded is not None and 0 < 1 - recorded["low"] < 0.5:
                self._monitor = Monitor(1 - recorded["low"], arl=RUN_LENGTH)
            self._begin_afresh()

    def remember(self, names: tuple[str, ...], client: str, loaded: LoadedModel, labels: np.ndarray) -> None:
        """One request was answered with these classes, [N].

        Args:
            names: the request's id as the header has it, then any that its body chose; it is found under each.
        """
        answer = _Answer(client, loaded.key, labels.astype(np.uint16), tuple(map(_short, names[1:])))
        with self._lock:
            for name in map(_short, names):
                known = name in self._answers
                old = self._drop(name)
                mine = not known or (old is not None and old.client == client)
                self._answers[name] = answer if mine else None
                if mine:
                    answer.names.add(name)
            self._held += len(labels) if answer.names else 0
            while self._held > self._capacity or len(self._answers) > 2 * self._capacity:
                self._drop(next(iter(self._answers)))

    def _drop(self, name: str | bytes) -> _Answer | None:
        """Forget a name, and with its last one the answer."""
        answer = self._answers.pop(name, None)
        if answer is not None:
            answer.names.remove(name)
            self._held -= 0 if answer.names else len(answer.predicted)
        return answer

    def take(self, request_id: str, labels: list[int | None], by: str | None = None) -> str:
        """The true classes of a request's inputs; None for one that is not known. Each request counts once.

        Args:
            by: the client that sends them; None for one that asks for no predictions and labels those of all.

        Returns:
            `counted`, `unknown` (no such request, too old, or labelled before) or `stale` (another version answered).

        Raises:
            InvalidInput: when the labels do not fit the request.
        """
        with self._lock:
            name = _short(request_id)
            found = self._answers.get(name)
            if found is None or self._loaded is None:
                return "unknown"
            if name in found.chosen and by not in (None, found.client):
                return "unknown"
            predicted = found.predicted
            classes = len(self._loaded.bundle.classes)
            if len(labels) != len(predicted):
                raise InvalidInput(f"request {request_id[:_LONG]!r} had {len(predicted)} inputs, not {len(labels)}")
            if any(label is not None and not 0 <= label < classes for label in labels):
                raise InvalidInput(f"a label is a class from 0 to {classes - 1}, or null")
            for other in tuple(found.names):
                self._drop(other)
            if found.key != self._loaded.key:
                return "stale"
            for label, said in zip(labels, predicted.tolist(), strict=True):
                if label is not None:
                    self._judge(label != said)
            return "counted"

    def _judge(self, wrong: bool) -> None:
        self._labels += 1
        self._wrong += wrong
        self._recent.append(wrong)
        if self._monitor is not None:
            self._lost = self._monitor.update(wrong) or self._lost

    def status(self, campaign: bool = False) -> dict | None:
        """Figures for people; None before a model answers.

        Args:
            campaign: whether one is open: accuracy that is lost meanwhile is evidence for it, otherwise for a shift.
        """
        with self._lock:
            if self._loaded is None:
                return None
            recent = len(self._recent)
            return {
                "recorded": self._recorded, "labels": self._labels, "wrong": self._wrong,
                "accuracy": 1 - self._wrong / self._labels if self._labels else None,
                "recent_accuracy": 1 - sum(self._recent) / recent if recent else None, "recent": recent,
                "statistic": self._monitor.statistic if self._monitor and self._labels else None,
                "threshold": self._monitor.threshold if self._monitor else None,
                "lost": self._lost, "finding": ("attack" if campaign else "shift") if self._lost else None,
            }


def _short(name: str) -> str | bytes:
    """A name as it is kept: what a client may send is longer than what a hundred thousand of them may take."""
    return name if len(name) <= _LONG else sha256(name.encode("utf-8", "surrogatepass")).digest()


def _recorded(loaded: LoadedModel) -> dict | None:
    """Clean accuracy in the version's report, with its interval: shares in [0, 1]."""
    try:
        report = json.loads((loaded.bundle.folder / REPORT).read_text())
        found = {"accuracy": float(report["clean_accuracy"]), "low": float(report["clean_low"])}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return found if 0 <= found["low"] <= found["accuracy"] <= 1 else None
