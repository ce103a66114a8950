"""What the replicas tell each other about their inputs: sums, and of the flagged ones digests and some evidence.

Each replica has one key in a ConfigMap that all share, and merges its own into it. What it writes are totals since it
began, with the tail of its flagged inputs: a reader who missed an interval misses nothing, it takes the difference.
Every write stores the whole ConfigMap anew, and is answered with it, the leader's state included: flagged inputs that
the leader has taken in are not told again.
"""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
import threading
from collections import Counter, deque
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from redoubt.cluster.errors import Conflict, NotFound
from redoubt.cluster.kubernetes import CONFIG_MAP, Kubernetes
from redoubt.detection import RecentInputs, Verdicts, digests
from serving.model import LoadedModel

TAIL, WITH_EVIDENCE = 1024, 64   # flagged inputs whose digest is told, and those of them that come with their evidence
DIGEST = 8   # bytes of a digest that are told
STATE = "leader"   # the key under which the leader keeps what its successor goes on with
_LABELS = {"app.kubernetes.io/part-of": "redoubt", "redoubt.dev/role": "counts"}


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What one replica has seen of one model version since it began to serve it.

    Attributes:
        epoch: another one for each beginning, so that totals that start again are not taken for progress.
        key: the version that gave the verdicts.
        inputs: all inputs; `passed` and `flagged` are the distinct ones.
        digests: of the newest flagged inputs, oldest first; the last is number `flagged`.
        evidence: [n, K] of n of them.
        clients: who sent those n; digests of the names, for names are nobody's business.
        at: the numbers of those n among the flagged, ascending.
    """

    epoch: str
    key: str
    inputs: int
    passed: int
    flagged: int
    digests: tuple[bytes, ...]
    evidence: Tensor | None
    clients: tuple[str, ...] = ()
    at: tuple[int, ...] = ()

    def after(self, taken: int) -> Counts:
        """The same without the flagged inputs up to number `taken`, and with as much evidence as is told."""
        new = max(0, self.flagged - taken)
        rows = _level([row for row, at in enumerate(self.at) if at > taken], self.clients)
        return replace(self, digests=self.digests[max(0, len(self.digests) - new):],
                       evidence=self.evidence[rows] if rows else None,
                       clients=tuple(self.clients[row] for row in rows), at=tuple(self.at[row] for row in rows))

    def to_json(self) -> str:
        rows = None if self.evidence is None else self.evidence.to(torch.float32).numpy()
        return json.dumps({
            "epoch": self.epoch, "key": self.key, "inputs": self.inputs, "passed": self.passed, "flagged": self.flagged,
            "digests": base64.b64encode(b"".join(self.digests)).decode(),
            "clients": list(self.clients), "at": list(self.at),
            "evidence": None if rows is None else [len(rows), base64.b64encode(rows.tobytes()).decode()],
        }, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Counts:
        """Raises ValueError, KeyError or TypeError for what no replica wrote."""
        found = json.loads(text)
        packed, evidence = base64.b64decode(found["digests"]), found["evidence"]
        if evidence is not None:
            flat = np.frombuffer(base64.b64decode(evidence[1]), dtype=np.float32).copy()
            evidence = torch.from_numpy(flat).reshape(evidence[0], -1)
        digests = tuple(packed[at : at + DIGEST] for at in range(0, len(packed), DIGEST))
        numbers = {name: int(found[name]) for name in ("inputs", "passed", "flagged")}
        clients = tuple(str(client) for client in found["clients"])
        flagged = numbers["flagged"]
        at = tuple(int(number) for number in found.get("at", range(flagged - len(clients) + 1, flagged + 1)))
        if not len(clients) == len(at) == (0 if evidence is None else len(evidence)):
            raise ValueError("clients and evidence differ in number")
        return cls(epoch=str(found["epoch"]), key=str(found["key"]), digests=digests, evidence=evidence,
                   clients=clients, at=at, **numbers)


def _level(rows: list[int], clients: tuple[str, ...]) -> list[int]:
    """Of each client's rows, oldest first, the newest up to one number for all, `WITH_EVIDENCE` in all: who sends much
    at the end of an interval leaves the others theirs."""
    counts = Counter(clients[row] for row in rows).values()
    each = max(1, *(most for most in range(WITH_EVIDENCE + 1)
                    if sum(min(count, most) for count in counts) <= WITH_EVIDENCE))
    kept, taken = [], Counter()
    for row in reversed(rows):
        taken[clients[row]] += 1
        if taken[clients[row]] <= each:
            kept.append(row)
    return sorted(kept[:WITH_EVIDENCE])


class Tally:
    """This replica's own counts. Safe to use from every thread."""

    def __init__(self, dedupe_window: int):
        self._window, self._lock = dedupe_window, threading.Lock()
        self._loaded: LoadedModel | None = None
        self._begin_afresh()

    def _begin_afresh(self) -> None:
        self._epoch = secrets.token_hex(6)
        self._recent = RecentInputs(self._window)
        self._inputs = self._passed = self._flagged = 0
        self._digests: deque[bytes] = deque(maxlen=TAIL)
        self._evidence: deque[Tensor] = deque(maxlen=TAIL)
        self._clients: deque[str] = deque(maxlen=TAIL)

    def on_model(self, loaded: LoadedModel) -> None:
        """Another version answers from now on: count afresh."""
        with self._lock:
            self._loaded = loaded
            self._begin_afresh()

    def observe(self, loaded: LoadedModel, x: Tensor, verdicts: Verdicts, clients: list[str] | None = None) -> None:
        """Take in the verdicts on x [N, C, H, W]; those of a version that no longer serves are left aside."""
        flags, senders = verdicts.is_adversarial.tolist(), clients or [""] * len(x)
        known = digests(x.numpy())
        with self._lock:
            if loaded is not self._loaded:
                return
            self._inputs += len(x)
            for own, flagged, evidence, client in zip(known, flags, verdicts.evidence, senders, strict=True):
                if not self._recent.is_new(own):
                    continue
                if flagged:
                    self._flagged += 1
                    self._digests.append(own[:DIGEST])
                    self._evidence.append(evidence.detach().clone())
                    self._clients.append(_who(client))
                else:
                    self._passed += 1

    def counts(self) -> Counts | None:
        """How it stands; None while there is no model with a detector."""
        with self._lock:
            if self._loaded is None or self._loaded.detector is None:
                return None
            return Counts(
                epoch=self._epoch, key=self._loaded.key, inputs=self._inputs, passed=self._passed,
                flagged=self._flagged, digests=tuple(self._digests),
                evidence=torch.stack(list(self._evidence)) if self._evidence else None, clients=tuple(self._clients),
                at=tuple(range(self._flagged - len(self._clients) + 1, self._flagged + 1)),
            )


def _who(client: str) -> str:
    return hashlib.sha256(client.encode()).hexdigest()[:10] if client else ""


class Exchange:
    """The ConfigMap through which counts go. Its methods raise ClusterError where the API does not answer.

    Attributes:
        size: characters in it, as last read.
    """

    def __init__(self, kubernetes: Kubernetes, name: str, replica: str):
        self._kubernetes, self._name, self._replica = kubernetes, name, replica
        self._told: str | None = None
        self._taken: dict[str, int] = {}   # by epoch: flagged inputs that the leader has taken in
        self.size = 0

    def publish(self, counts: Counts | None, state: dict | None = None) -> None:
        """Tell the others this replica's counts where they have changed, and the leader's state where it is given."""
        text = None if counts is None else counts.after(self._taken.get(counts.epoch, 0)).to_json()
        changed: dict = {} if text == self._told else {self._replica: text}
        if state is not None:
            changed[STATE] = json.dumps(state, separators=(",", ":"))
        if changed:
            self._learn(self._merge(changed))
            self._told = text

    def read(self) -> tuple[dict[str, Counts], dict | None]:
        """What every replica has told, and the leader's state. What cannot be understood is left out."""
        try:
            data = self._kubernetes.get(CONFIG_MAP, self._name).get("data") or {}
        except NotFound:
            return {}, None
        self.size = sum(map(len, data.values()))
        found, state = {}, None
        for name, text in data.items():
            try:
                if name == STATE:
                    state = json.loads(text)
                else:
                    found[name] = Counts.from_json(text)
            except (ValueError, KeyError, TypeError, RuntimeError):
                continue
        return found, state

    def forget(self, replica: str) -> None:
        """Remove what a replica told that has not been heard of for long."""
        self._merge({replica: None})

    def _learn(self, answer: dict) -> None:
        """What the leader had taken in when this replica last wrote."""
        try:
            taken = json.loads((answer.get("data") or {}).get(STATE) or "{}").get("taken") or {}
            self._taken = {str(epoch): int(numbers[2]) for epoch, numbers in taken.items()}
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            self._taken = {}   # no leader wrote this: tell everything

    def _merge(self, data: dict) -> dict:
        try:
            return self._kubernetes.merge(CONFIG_MAP, self._name, {"data": data})
        except NotFound:
            try:
                told = {key: value for key, value in data.items() if value is not None}
                return self._kubernetes.create(CONFIG_MAP, self._name, {"data": told}, labels=_LABELS)
            except Conflict:   # another replica made it in between
                return self._kubernetes.merge(CONFIG_MAP, self._name, {"data": data})
