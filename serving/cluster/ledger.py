"""The ledger that replicas share: one JSON document in a ConfigMap, written by whoever leads, read by all. Beside it
lies an operator's pause, which any replica may write.

Every change is read, made and written back under the resourceVersion that was read, so that of two writers one is sent
back to read again. The document names the term of the leader who wrote last: one who slept and was replaced finds
another name there and is refused, whatever it still wanted to write. What is dropped takes its runs' claims along.
"""

from __future__ import annotations

import json
import logging
import math
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import TypeVar

from redoubt.cluster.claims import claim_name, forget
from redoubt.cluster.errors import ClusterError, Conflict, NotFound
from redoubt.cluster.kubernetes import CONFIG_MAP, Kubernetes
from redoubt.threat import ThreatModel
from serving.cluster.leadership import Leadership
from serving.records import (
    DAY,
    UNFINISHED,
    Campaign,
    LedgerUnavailable,
    RetrainRequest,
    asked_for,
    forbidden,
    opened,
)

log = logging.getLogger("redoubt.serving")
KEY = "ledger.json"
PAUSE = "pause.json"   # beside the document: any replica's operator may write it, the document only who leads
CAMPAIGNS_KEPT, REQUESTS_KEPT = 50, 100
MOST_BYTES = 256 * 1024   # a ConfigMap may have 1 MiB, all its keys together
MOST_WORDS = 500   # characters of a reason
_LABELS = {"app.kubernetes.io/part-of": "redoubt", "redoubt.dev/role": "ledger"}
_TRIES = 8
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Document:
    """Everything in the ledger, oldest first, and the term of the leader who wrote it last."""

    term: str = ""
    campaigns: tuple[Campaign, ...] = ()
    requests: tuple[RetrainRequest, ...] = ()

    def to_json(self) -> str:
        return json.dumps({"schema": 1, "term": self.term, "campaigns": [asdict(row) for row in self.campaigns],
                           "requests": [asdict(row) for row in self.requests]}, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Document:
        """Raises LedgerUnavailable for what this release did not write: what is not understood is not overwritten."""
        try:
            found = json.loads(text)
            if found["schema"] != 1:
                raise ValueError(f"schema {found['schema']}")
            return cls(term=found["term"], campaigns=tuple(Campaign(**row) for row in found["campaigns"]),
                       requests=tuple(RetrainRequest(**row) for row in found["requests"]))
        except (ValueError, KeyError, TypeError) as error:
            raise LedgerUnavailable(f"its content cannot be read ({type(error).__name__}: {error}): put back a backup, "
                                    f"or remove the key {KEY} to begin anew") from None


class ConfigMapLedger:
    """The ledger in one ConfigMap. Safe to use from every thread.

    Args:
        name: the ConfigMap's name; it is made when missing.
        fresh: seconds for which what was read is good enough to answer from, where this replica did not write it.
    """

    def __init__(self, kubernetes: Kubernetes, name: str, leadership: Leadership, *, fresh: float = 2.0,
                 clock: Callable[[], float] = time.monotonic):
        self._kubernetes, self._name, self._leadership = kubernetes, name, leadership
        self._fresh, self._clock = fresh, clock
        self._lock = threading.RLock()
        self._known: tuple[Document, dict | None] | None = None   # as last read or written, with the object
        self._known_at = self._missed_at = -math.inf   # when it was read, and when the API did not answer
        self._missed = ""   # what it said instead
        self._read_in: str | None = None   # our term when it was read; None while another replica led
        self._introduced = ""   # the term of ours that the document has carried
        self._orphans: list[str] = []   # claims of requests that were dropped, until they are removed

    def close(self) -> None:
        """Nothing is held."""

    # -- campaigns ----------------------------------------------------------------------------------------------

    def open_campaign(self, model_name: str, version: str, *, inputs: int, flagged: int) -> Campaign:
        """Write down a new campaign."""
        campaign = opened(model_name, version, inputs=inputs, flagged=flagged)

        def add(document: Document) -> tuple[Document, Campaign]:
            for row in document.campaigns:   # the answer to the first try was lost
                if (row.model_name, row.model_version, row.state) == (model_name, version, "open"):
                    return document, row
            return replace(document, campaigns=(*document.campaigns, campaign)), campaign

        return self._change(add)

    def running_campaign(self, model_name: str) -> Campaign | None:
        """The newest campaign that is not closed; None if all are."""
        open_ones = [row for row in self._read().campaigns if row.model_name == model_name and row.state == "open"]
        return open_ones[-1] if open_ones else None

    def update_campaign(self, campaign: Campaign, **changes) -> Campaign:
        """Write changed fields of a campaign; returns it as it now stands."""
        changes = _clipped(changes)

        def change(document: Document) -> tuple[Document, Campaign]:
            now = replace(_find(document.campaigns, campaign.id) or campaign, **changes)
            return replace(document, campaigns=_with(document.campaigns, now)), now

        return self._change(change)

    def campaigns(self, limit: int = 50) -> list[Campaign]:
        """Newest first."""
        return list(reversed(self._read().campaigns))[:limit]

    # -- requests -----------------------------------------------------------------------------------------------

    def ask(
        self, campaign: Campaign, threat: ThreatModel, *, cool_down: float, daily_budget: int,
        arrival: float = math.inf,
    ) -> tuple[RetrainRequest | None, str]:
        """Write down a retraining request, unless a bound forbids it now; by the rules of `records.forbidden`.

        Returns:
            The request and nothing, or None and what stands against it.
        """
        wish = None

        def add(document: Document) -> tuple[Document, tuple[RetrainRequest | None, str]]:
            nonlocal wish
            if wish is not None and _find(document.requests, wish.id):
                return document, (wish, "")
            now, earlier = time.time(), [row for row in document.requests if row.model_name == campaign.model_name]
            reason = forbidden(earlier, campaign, threat, cool_down, daily_budget, arrival, now)
            if reason:
                return document, (None, reason)
            wish = asked_for(campaign, threat, earlier, now)
            return replace(document, requests=(*document.requests, wish)), (wish, "")

        return self._change(add)

    def due(self, model_name: str) -> RetrainRequest | None:
        """The oldest unfinished request whose time has come; one that was running when a leader ended is among them."""
        return next((row for row in self._read().requests if row.model_name == model_name
                     and row.state in UNFINISHED and row.next_attempt_at <= time.time()), None)

    def update_request(self, request: RetrainRequest, **changes) -> RetrainRequest:
        """Write changed fields of a request; returns it as it now stands."""
        changes = _clipped(changes)

        def change(document: Document) -> tuple[Document, RetrainRequest]:
            now = replace(_find(document.requests, request.id) or request, **changes)
            return replace(document, requests=_with(document.requests, now)), now

        return self._change(change)

    def last_request(self, campaign: Campaign) -> RetrainRequest | None:
        """The campaign's newest request, if it has one."""
        own = [row for row in self._read().requests if row.campaign == campaign.id]
        return max(own, key=lambda row: row.round) if own else None

    def promoted_before(self, request: RetrainRequest) -> int:
        """How many of the campaign's requests before this one ended in a promotion."""
        return sum(row.campaign == request.campaign and row.round < request.round and row.state == "promoted"
                   for row in self._read().requests)

    def requests(self, limit: int = 50) -> list[RetrainRequest]:
        """Newest first."""
        return list(reversed(self._read().requests))[:limit]

    # -- the operator's pause -----------------------------------------------------------------------------------

    def paused(self) -> dict | None:
        """Who paused retraining for all replicas, when and why; None while it goes on, or nothing was ever read."""
        try:
            self._read(self._fresh)   # a leader, too: another replica's operator may have written
        except LedgerUnavailable:
            return None   # nothing starts without the ledger
        holder = self._known[1] or {}
        try:
            return json.loads((holder.get("data") or {}).get(PAUSE) or "null")
        except ValueError:
            return {"by": "unknown", "at": 0.0, "why": f"the key {PAUSE} cannot be read"}

    def pause(self, state: dict | None) -> None:
        """Pause retraining for all replicas, or with None let it go on.

        Raises:
            LedgerUnavailable: when the API does not answer; nothing has changed then.
        """
        with self._lock:
            try:
                for _ in range(_TRIES):
                    self._fetch()
                    document, holder = self._known
                    try:
                        return self._write(document, holder, {PAUSE: json.dumps(state)})
                    except Conflict:
                        continue
            except ClusterError as error:
                self._known_at = -math.inf
                raise LedgerUnavailable(f"the ConfigMap {self._name}: {error}") from error
            raise LedgerUnavailable(f"the ConfigMap {self._name} was changed by others {_TRIES} times in a row")

    def forget(self) -> None:
        """Read anew: this replica has just begun to lead, and another one wrote before it."""
        with self._lock:
            self._known_at = self._missed_at = -math.inf

    # -- the ConfigMap ------------------------------------------------------------------------------------------

    def _read(self, lasts: float | None = None) -> Document:
        known = self._known
        if not self._lock.acquire(blocking=known is None):   # a write is under way: who asks need not wait for the API
            return known[0]
        try:
            if lasts is None:   # a leader is the only one who writes
                lasts = self._fresh * (5 if self._leadership.leads else 1)
            term = self._leadership.term   # in a new one all is read anew: the leader before may have written since
            anew = term is not None and term != self._read_in
            old = self._clock() - self._known_at > lasts and self._clock() - self._missed_at > self._fresh
            if anew or old:
                try:
                    self._fetch()
                except ClusterError as error:   # whoever asks next need not wait for the same silence
                    self._missed_at, self._missed = self._clock(), str(error)
            if self._known is None:
                raise LedgerUnavailable(self._missed)
            return self._known[0]
        finally:
            self._lock.release()

    def _change(self, change: Callable[[Document], tuple[Document, T]]) -> T:
        """Read, change and write back, again while others write in between.

        Raises:
            LedgerUnavailable: when the API does not answer, or another replica leads.
        """
        with self._lock:
            try:
                for attempt in range(_TRIES):
                    if attempt or self._clock() - self._known_at > self._fresh:
                        self._fetch()
                    document, holder = self._known
                    term = self._term(document)   # after reading: whoever slept between the two is refused in writing
                    after, result = change(document)
                    if after is document and document.term == term:
                        return result
                    kept = pruned(replace(after, term=term))
                    try:
                        self._store(kept, holder)
                    except Conflict:
                        continue
                    self._introduced = term
                    self._orphans += claims(set(after.requests) - set(kept.requests))
                    self._tidy()
                    return result
            except ClusterError as error:
                self._known_at = -math.inf   # it may have been written, its answer lost
                raise LedgerUnavailable(f"the ConfigMap {self._name}: {error}") from error
            raise LedgerUnavailable(f"the ConfigMap {self._name} was changed by others {_TRIES} times in a row")

    def _tidy(self) -> None:
        """Remove what claims are left over; what cannot be removed now waits for the next change."""
        try:
            while self._orphans:
                forget(self._kubernetes, self._orphans[0])
                self._orphans.pop(0)
        except ClusterError as error:
            log.warning("the claim %s could not be removed: %s", self._orphans[0], error)

    def _term(self, document: Document) -> str:
        """Our term, where we may write: a new one only with the Lease in hand, as asked after the document was read."""
        term = self._leadership.term
        if term is not None and document.term != term and (
            term == self._introduced or not self._leadership.confirm()
        ):
            self._leadership.resign()
            term = None
        if term is None:
            raise LedgerUnavailable("another replica leads")
        return term

    def _fetch(self) -> None:
        term = self._leadership.term
        try:
            found = self._kubernetes.get(CONFIG_MAP, self._name)
        except NotFound:
            found = None
        text = ((found or {}).get("data") or {}).get(KEY)
        self._known = (Document.from_json(text) if text else Document(), found)
        self._known_at, self._read_in = self._clock(), term

    def _store(self, document: Document, holder: dict | None) -> None:
        self._write(document, holder, {KEY: document.to_json()})

    def _write(self, document: Document, holder: dict | None, data: dict[str, str]) -> None:
        if holder is None:
            holder = self._kubernetes.create(CONFIG_MAP, self._name, {"data": data}, labels=_LABELS)
        else:
            holder = self._kubernetes.replace(CONFIG_MAP, {**holder, "data": (holder.get("data") or {}) | data})
        self._known, self._known_at = (document, holder), self._clock()


def pruned(document: Document, now: float | None = None) -> Document:
    """The document without what nobody asks for any more, and in any case below `MOST_BYTES`.

    Open campaigns, unfinished requests and the requests of the last 24 hours, which the daily budget counts, are kept
    as long as there is anything else to drop.
    """
    now = time.time() if now is None else now
    needed = [row.state in UNFINISHED or row.created_at > now - DAY for row in document.requests]
    asked = {row.campaign for row, need in zip(document.requests, needed, strict=True) if need}
    recent = document.campaigns[-CAMPAIGNS_KEPT:]
    campaigns = [row for row in document.campaigns if row.state == "open" or row.id in asked or row in recent]
    latest = document.requests[-REQUESTS_KEPT:]
    requests = [row for row, need in zip(document.requests, needed, strict=True) if need or row in latest]
    while True:
        found = replace(document, campaigns=tuple(campaigns), requests=tuple(requests))
        if len(found.to_json()) <= MOST_BYTES:
            return found
        closed = [row.id for row in campaigns if row.state != "open"]
        ended = [row.id for row in requests if row.state not in UNFINISHED]
        if not closed and not ended:
            return found
        oldest = {*closed[: len(closed) // 8 + 1], *ended[: len(ended) // 8 + 1]}
        campaigns = [row for row in campaigns if row.id not in oldest]
        requests = [row for row in requests if row.id not in oldest]


def claims(requests: set[RetrainRequest]) -> list[str]:
    """Names of the Leases that the runs of `requests` may have claimed, one for each attempt."""
    return [claim_name(row.claim, attempt) for row in requests for attempt in range(row.attempts + 1)]


def _find(rows: tuple, row_id: str):
    return next((row for row in rows if row.id == row_id), None)


def _with(rows: tuple, changed) -> tuple:
    return tuple(changed if row.id == changed.id else row for row in rows)


def _clipped(changes: dict) -> dict:
    return {key: value[:MOST_WORDS] if isinstance(value, str) else value for key, value in changes.items()}
