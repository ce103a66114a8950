"""The watch of several replicas: each counts what it sees, the one that leads runs the monitor over the sum.

Sequential statistics do not add up, so there is one monitor. An attack that is spread over ten replicas is seen after
as many inputs as one replica alone would need, and those of one interval.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict

from torch import Tensor

from redoubt.cluster.errors import ClusterError
from redoubt.detection import Monitor, RecentInputs, Verdicts
from redoubt.errors import InvalidInput
from serving.campaigns import Campaigns
from serving.cluster.counts import DIGEST, Counts, Exchange, Tally
from serving.cluster.leadership import Leadership
from serving.cluster.ledger import ConfigMapLedger
from serving.model import LoadedModel
from serving.problems import Problems
from serving.records import LedgerUnavailable
from serving.settings import Settings

log = logging.getLogger("redoubt.serving")
Row = tuple[Tensor | None, str]   # a flagged input's evidence, where it was told, and who sent it
SILENT = 3600.0   # seconds after which a replica that tells nothing is taken for gone
ROOM, CROWDED = 512 * 1024, 60.0   # characters; beyond them so many seconds: nobody counts in a ConfigMap that is full


class SharedWatch:
    """Counts for all, judges where this replica leads. Safe to use from every thread; `tick` belongs to one.

    Args:
        request_made: called after a retraining request was written to the ledger.
    """

    def __init__(
        self, settings: Settings, ledger: ConfigMapLedger, problems: Problems, request_made: Callable[[], None], *,
        leadership: Leadership, exchange: Exchange, clock: Callable[[], float] = time.monotonic,
    ):
        self._settings, self._ledger, self._problems = settings, ledger, problems
        self._request_made, self._leadership, self._exchange, self._clock = request_made, leadership, exchange, clock
        self._tally = Tally(settings.dedupe_window)
        self._loaded: LoadedModel | None = None
        self._judge: Judge | None = None
        self._refresh = threading.Event()
        self._shown: dict | None = None

    def on_model(self, loaded: LoadedModel) -> None:
        """Another version answers from now on. The judge hears of it at the next tick."""
        self._tally.on_model(loaded)
        self._loaded = loaded

    def observe(self, loaded: LoadedModel, x: Tensor, verdicts: Verdicts, clients: list[str] | None = None) -> None:
        """Count the verdicts on x [N, C, H, W]. Never waits for the network."""
        self._tally.observe(loaded, x, verdicts, clients)

    def refresh(self) -> None:
        """A retraining request changed: read it again, at the next tick."""
        self._refresh.set()

    def tick(self) -> None:
        """One interval: tell the others, and judge where this replica leads. Call it about once a second."""
        self._problems.clear("ledger")
        try:
            self._interval()
            self._problems.clear("counts")
        except ClusterError as error:   # totals go on growing: nothing is lost, it is only told later
            self._problems.note("counts", str(error))
        except LedgerUnavailable as error:
            self._problems.note("ledger", str(error))

    def _interval(self) -> None:
        self._exchange.publish(self._tally.counts())
        loaded = self._loaded
        if not self._leadership.leads or loaded is None:
            self._judge = None
            return
        found, state = self._exchange.read()
        if self._judge is None or self._judge.term != self._leadership.term:
            self._ledger.forget()
            campaigns = Campaigns(self._settings, self._ledger, self._problems, self._request_made)
            self._judge = Judge(self._settings, campaigns, self._leadership.term, self._clock)
        judge = self._judge
        if judge.loaded is not loaded:
            judge.on_model(loaded, state)
        if self._refresh.is_set():
            self._refresh.clear()
            judge.campaigns.refresh()
        judge.take(found)
        self._shown = judge.status()
        if judge.changed and self._leadership.leads:
            self._exchange.publish(self._tally.counts(), judge.state())
            judge.changed = False
        for gone in judge.silent(found, SILENT if self._exchange.size < ROOM else CROWDED):
            self._exchange.forget(gone)

    def monitor_status(self) -> dict | None:
        """The monitor's figures; on a replica that does not lead, its own counts. None while there is no detector."""
        counts, loaded = self._tally.counts(), self._loaded
        if counts is None or loaded is None or loaded.detector is None:
            return None
        if self._leadership.leads and self._shown is not None:
            return self._shown
        return {"statistic": None, "threshold": None, "inputs": counts.inputs,
                "distinct": counts.passed + counts.flagged, "flagged": counts.flagged,
                "null_rate": loaded.detector.null_rate}

    def campaign_open(self) -> bool:
        """Whether a campaign is running, on whichever replica it was seen."""
        return any(row["state"] == "open" for row in self.campaigns_status())

    def campaigns_status(self) -> list[dict]:
        """Newest first; empty while the ledger cannot be had."""
        try:
            return [asdict(row) for row in self._ledger.campaigns()]
        except LedgerUnavailable as error:
            self._problems.note("ledger", str(error))
            return []


class Judge:
    """The one monitor and the campaigns, during one term in office.

    Attributes:
        changed: whether anything was taken in since the state was last told.
    """

    def __init__(self, settings: Settings, campaigns: Campaigns, term: str | None, clock: Callable[[], float]):
        self._settings, self.campaigns, self.term, self._clock = settings, campaigns, term, clock
        self.loaded: LoadedModel | None = None
        self.changed = False
        self._monitor: Monitor | None = None
        self._heard: dict[str, tuple[tuple, float]] = {}
        self._begin_afresh()

    def _begin_afresh(self) -> None:
        self._recent = RecentInputs(self._settings.dedupe_window)
        self._taken: dict[str, list[int]] = {}   # by epoch: inputs, passed and flagged that were taken in
        self._inputs = self._distinct = self._flagged = 0

    def on_model(self, loaded: LoadedModel, state: dict | None) -> None:
        """Another version answers, or this replica has begun to lead: go on where the last leader stood."""
        first = self.loaded is None
        self.campaigns.on_model(loaded)   # first: where the ledger fails, the next tick begins here again
        self.loaded = loaded
        self._begin_afresh()
        self._monitor = None
        if loaded.detector is None:
            return
        self._monitor = Monitor(loaded.detector.null_rate, arl=self._settings.alarm_run_length)
        if first and state and state.get("key") == loaded.key:
            try:
                self._monitor = Monitor.from_state(state["monitor"])
                self._taken = {str(epoch): [int(n) for n in taken] for epoch, taken in state["taken"].items()}
                self._inputs, self._distinct, self._flagged = (int(n) for n in state["sums"])
            except (InvalidInput, KeyError, TypeError, ValueError) as error:
                log.warning("the monitor begins afresh: %s", error)
                self._begin_afresh()

    def take(self, found: dict[str, Counts]) -> None:
        """Take in what the replicas told since the last interval."""
        if self._monitor is not None:
            flagged: list[Row] = []
            passed = 0
            for _, counts in sorted(found.items()):
                if counts.key == self.loaded.key:
                    more, rows = self._news(counts)
                    passed, flagged = passed + more, flagged + rows
            if passed or flagged:
                self._interval(passed, flagged)
        if self.campaigns.tick() and self._monitor is not None:
            self._monitor.reset()

    def _news(self, counts: Counts) -> tuple[int, list[Row]]:
        """Distinct inputs of a replica that were not taken in yet: how many passed, and the evidence of the flagged."""
        inputs, passed, flagged = self._taken.get(counts.epoch, (0, 0, 0))
        self._inputs += counts.inputs - inputs
        self._taken[counts.epoch] = [counts.inputs, counts.passed, counts.flagged]
        self.changed |= counts.inputs != inputs
        more, new = counts.passed - passed, counts.flagged - flagged
        told = counts.digests[max(0, len(counts.digests) - new):] if new else ()
        if len(told) < new:   # more than are told one by one: both kinds are thinned alike
            more = round(more * len(told) / new)
        rows_of = zip(() if counts.evidence is None else counts.evidence, counts.clients, strict=True)
        known = dict(zip(counts.at, rows_of, strict=True))
        rows = [known.get(number, (None, "")) for number in range(counts.flagged - len(told) + 1, counts.flagged + 1)]
        return more, [row for one, row in zip(told, rows, strict=True) if self._recent.is_new(one[:DIGEST])]

    def _interval(self, passed: int, flagged: list[Row]) -> None:
        alarm = self._monitor.update_interval(flagged=len(flagged), passed=passed)
        self._distinct += passed + len(flagged)
        self._flagged += len(flagged)
        for row in _spread(passed, flagged):
            evidence, client = row or (None, "")
            if self.campaigns.see(row is not None, evidence, alarm=alarm, inputs=self._distinct, client=client):
                self._monitor.reset()
                alarm = False

    def silent(self, found: dict[str, Counts], longest: float = SILENT) -> list[str]:
        """Replicas that have told nothing for so long that they are taken for gone. One that was only quiet tells its
        totals again, and goes on where it stood."""
        now = self._clock()
        for name, counts in found.items():
            looks = (counts.epoch, counts.inputs)
            if self._heard.get(name, (None, 0.0))[0] != looks:
                self._heard[name] = (looks, now)
        self._heard = {name: heard for name, heard in self._heard.items() if name in found}
        return [name for name, (_, since) in self._heard.items() if now - since > longest]

    def state(self) -> dict:
        """What a successor needs to go on: the monitor, and how far each replica's counts were taken in."""
        newest = dict(list(self._taken.items())[-200:])
        return {"key": self.loaded.key, "monitor": self._monitor.state() if self._monitor else None, "taken": newest,
                "sums": [self._inputs, self._distinct, self._flagged]}

    def status(self) -> dict | None:
        if self._monitor is None:
            return None
        statistic = self._monitor.statistic if self._distinct else None   # minus infinity is no JSON
        return {"statistic": statistic, "threshold": self._monitor.threshold, "inputs": self._inputs,
                "distinct": self._distinct, "flagged": self._flagged, "null_rate": self._monitor.null_rate}


def _spread(passed: int, flagged: list[Row]) -> Iterator[Row | None]:
    """An interval's inputs one by one, the flagged ones evenly among the others: their order is not known."""
    total, at = passed + len(flagged), 0
    for number in range(1, total + 1):
        if at < len(flagged) and at * total < number * len(flagged):
            yield flagged[at]
            at += 1
        else:
            yield None
