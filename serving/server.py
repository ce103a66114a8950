"""The server without HTTP: engine, watch, ledger and their threads, put together, started, stopped and described."""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import threading
import time
from dataclasses import asdict

from redoubt.cluster.kubernetes import Kubernetes
from redoubt.errors import RedoubtError
from redoubt.registry import Registry
from redoubt.signing import trusted_keys
from serving.champion import ChampionFollower, Champions
from serving.cluster.replica import join, kfp_launcher
from serving.cluster.watch import SharedWatch
from serving.engine import Engine, Seen
from serving.feedback import Feedback
from serving.home import take_home
from serving.launcher import ChildProcessLauncher, Launcher, read_step
from serving.ledger import SqliteLedger
from serving.live.feed import Feed
from serving.live.history import Counters
from serving.model import LoadedModel
from serving.operations import Operations
from serving.problems import HomeUnusable, NotFound, NotReady, Problems
from serving.quarantine import Quarantine
from serving.records import Ledger, LedgerUnavailable, RetrainRequest
from serving.retrainer import Retrainer
from serving.security import Access, Audit
from serving.settings import Settings
from serving.shadow import Shadow
from serving.telemetry.events import Differences, Webhook
from serving.telemetry.metrics import Metrics
from serving.telemetry.traces import Traces
from serving.watch import Watch

log = logging.getLogger("redoubt.serving")
_RETRAIN_FIELDS = (
    "id", "campaign", "norm", "epsilon", "state", "attempts", "reason", "version", "created_at", "finished_at",
    "next_attempt_at",
)


class Server:
    """Everything behind the HTTP layer.

    Args:
        registry: where champions come from; the settings' MLflow when None.
        launcher: who carries out retraining runs; the one that the settings name when None.
        kubernetes: the API server; that of the cluster that this process runs in when None. Only for the ledger there.
        access: the door, where several servers share one; its own when None.

    Raises:
        HomeUnusable: when the home folder or its ledger cannot be used, or another server holds it.
        InvalidInput: when the settings would let strangers in, or need a library that is missing.
    """

    def __init__(
        self, settings: Settings, *, registry: Champions | None = None, launcher: Launcher | None = None,
        kubernetes: Kubernetes | None = None, access: Access | None = None,
    ):
        self.settings, self.problems = settings, Problems(settings.model_name)
        self.access, self.traces = access or Access(settings), Traces(settings.traces)
        # A registry that is down should be noticed within a poll or two, not after minutes of MLflow's own retries.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        self._home = take_home(settings.home)
        try:
            self.replica = None if settings.ledger == "sqlite" else join(settings, self.problems, kubernetes)
            self.ledger: Ledger = self.replica.ledger if self.replica else _sqlite(settings)
            launcher = launcher or self._launcher()
        except RedoubtError:
            self._home.close()
            raise
        self.draining, self.admission = False, None   # the HTTP layer sets both
        self.connections = lambda: 0   # how many there are now; whoever listens says so
        self._stop, self._counting = threading.Event(), threading.Lock()
        self._total = self._failed = 0
        self._watchers()
        self.watch = self._watch()
        self.engine = Engine(settings, self.problems, self._observe, self._convicted)
        trusted = trusted_keys(settings.trusted_keys)
        registry = registry or Registry(settings.tracking_uri, settings.model_name, trusted=trusted)
        self.shadow = Shadow(
            registry, self.engine, self.problems, folder=settings.home / "challenger" / settings.model_name,
            share=settings.shadow_share, poll_seconds=settings.poll_seconds, count=self.metrics.compared,
        ) if settings.shadow_share else None
        self.champion = ChampionFollower(
            registry, self.engine, self.problems,
            folder=settings.home / "models" / settings.model_name, poll_seconds=settings.poll_seconds,
            on_model=self._on_model, require_decision=settings.require_decision, trusted=trusted,
        )
        self.operations = Operations(settings, registry, self.champion.wake,
                                     shared=self.replica.ledger if self.replica else None)
        self.retrainer = Retrainer(
            settings, self.ledger, launcher, self.problems, self._request_finished, leads=self._leads,
            held=lambda: self.operations.paused, tell=self._event,
        )
        if self.replica is not None:
            self.replica.leadership.on_change = self._elected
        self._ticker = threading.Thread(target=self._tick, name="tick", daemon=True)

    def _watchers(self) -> None:
        """Those who only look on and tell."""
        settings = self.settings
        self.metrics, self.feed = Metrics(self._present), Feed()
        self.audit = Audit(settings.home / "audit.jsonl")
        self.feedback = Feedback(settings.feedback_memory)
        self.quarantine = self.webhook = None
        self._differences = Differences()
        if settings.quarantine:
            self.quarantine = Quarantine(
                settings.home / "quarantine", most=settings.quarantine_count, most_bytes=settings.quarantine_bytes,
                seconds=settings.quarantine_hours * 3600,
                count=lambda result: self.metrics.quarantined.labels(result).inc(),
                fault=lambda text: self._note("quarantine", text),
            )
        if settings.webhook_url:
            self.webhook = Webhook(
                settings.webhook_url, settings.webhook_secret, source=f"redoubt/{settings.model_name}",
                capacity=settings.webhook_queue, count=lambda result: self.metrics.events.labels(result).inc(),
            )

    # -- life ---------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start every thread; the first model is loaded in the background."""
        if self.replica is not None:
            self.replica.leadership.start()
        self.champion.start()
        if self.settings.retrain:
            self.retrainer.start()
        for helper in (self.quarantine, self.webhook, self.shadow):
            if helper is not None:
                helper.start()
        self._ticker.start()

    def stop(self) -> None:
        """Finish what computes, end a running retraining child, close the ledger. What is owed stays written there.

        A second call does nothing.
        """
        if self._stop.is_set():
            return
        self._stop.set()
        self.retrainer.stop()
        self.operations.stop()
        self.champion.stop()
        if self._ticker.is_alive():
            self._ticker.join(timeout=5)
        self.engine.stop()
        for helper in (self.shadow, self.quarantine, self.webhook, self.traces, self.audit):
            if helper is not None:
                helper.stop()
        if self.replica is not None:
            self.replica.stop()
        self.ledger.close()
        self._home.close()

    def close_pages(self) -> None:
        """End the live pages' feeds."""
        self.feed.close()

    # -- what happens -------------------------------------------------------------------------------------------

    def count(self, status: int) -> None:
        """Count one answered inference request."""
        with self._counting:
            self._total += 1
            self._failed += status >= 500 and status not in (503, 504)

    def _observe(self, seen: Seen) -> None:
        """Tell everybody who watches about one computed batch; in a computing thread."""
        flags = strengths = None
        if seen.verdicts is not None:
            self.watch.observe(seen.loaded, seen.x, seen.verdicts, seen.clients)
            self.feed.observe(seen.verdicts)
            flags, strengths = seen.verdicts.is_adversarial.numpy(), seen.verdicts.strength.numpy()
        if self.shadow is not None:
            self.shadow.see(seen)
        self.metrics.batch(len(seen.x), seen.seconds, flags, strengths)
        for job, labels in zip(seen.jobs, seen.labels(), strict=True):
            self.feedback.remember(job.names, job.client, seen.loaded, labels)
        if self.quarantine is not None and flags is not None:
            for row in flags.nonzero()[0].tolist():
                self.quarantine.put(
                    seen.x[row].numpy(), version=seen.loaded.version, strength=float(strengths[row]),
                    score=float(seen.verdicts.score[row]), label=int(seen.predicted[row]), client=seen.clients[row],
                )

    def _on_model(self, loaded: LoadedModel) -> None:
        self.watch.on_model(loaded)
        self.feed.forget()
        self.feedback.on_model(loaded)
        if self.champion.swaps:
            self.metrics.swap.observe(self.champion.swaps[-1]["seconds"])

    def _convicted(self, loaded: LoadedModel, reason: str) -> None:
        self.metrics.rollbacks.inc()
        self.champion.reject(loaded, reason)

    # -- as one of several --------------------------------------------------------------------------------------

    def _launcher(self) -> Launcher:
        settings = self.settings
        if settings.launcher == "kfp":
            return kfp_launcher(settings, self.replica.kubernetes, self.problems)
        return ChildProcessLauncher(settings.retrain_command, timeout=settings.retrain_timeout_seconds)

    def _watch(self) -> Watch | SharedWatch:
        arguments = (self.settings, self.ledger, self.problems, self._request_made)
        if self.replica is None:
            return Watch(*arguments)
        return SharedWatch(*arguments, leadership=self.replica.leadership, exchange=self.replica.exchange)

    def _leads(self) -> bool:
        """Whether this server acts for all: always where it is alone."""
        return self.replica is None or self.replica.leadership.leads

    def _elected(self, leads: bool) -> None:
        if leads:
            self.retrainer.wake()
        else:
            self.retrainer.let_go()

    def _event(self, reason: str, message: str, warning: bool) -> None:
        if self.replica is not None:
            self.replica.events.tell(reason, message, warning=warning)

    # -- what follows -------------------------------------------------------------------------------------------

    def _request_made(self) -> None:
        self.retrainer.wake()

    def _request_finished(self, request: RetrainRequest) -> None:
        self.watch.refresh()
        if request.state == "promoted":
            self.champion.wake()

    def _note(self, part: str, fault: str | None) -> None:
        if fault is None:
            self.problems.clear(part)
        else:
            self.problems.note(part, fault)

    def _tick(self) -> None:
        while not self._stop.wait(1.0):
            began = time.monotonic()
            self.watch.tick()
            self.champion.check_patience()
            with contextlib.suppress(LedgerUnavailable):   # the watch has noted it; what is told is told late, not lost
                self._tell()
            self._show()
            self._stop.wait(max(0.0, time.monotonic() - began - 1))   # a slow disk is not asked more often

    def _show(self) -> None:
        """Note the totals, and make the live page's next frame where somebody looks. A page without a frame is no
        reason to stop the clock."""
        loaded, monitor = self.engine.current, self.watch.monitor_status() or {}
        try:
            self.feed.note(Counters(
                at=time.time(), requests=self._total, failed=self._failed, inputs=monitor.get("distinct", 0),
                flagged=monitor.get("flagged", 0), statistic=monitor.get("statistic"),
                threshold=monitor.get("threshold"), campaign=self.watch.campaign_open(),
                version=loaded.version if loaded else "",
            ))
            if self.feed.readers:
                self.feed.make(self.status(), loaded, self.retrainer.folder_of)
        except (LedgerUnavailable, OSError, ValueError) as error:
            log.warning("the live page could not be brought up to date: %s", error)

    def _tell(self) -> None:
        """Events about what changed since the last look, and faults that only a look shows."""
        accuracy = self.feedback.status()
        if accuracy and accuracy["lost"]:
            self.problems.note("accuracy", "labels say that it fell below what the champion's report promises")
        else:
            self.problems.clear("accuracy")
        if self.webhook is not None:
            self._note("webhook", self.webhook.fault)
        events = self._differences.look(
            self.watch.campaigns_status(), [asdict(row) for row in self.ledger.requests()], list(self.champion.swaps)
        )
        for kind, row in events:
            if kind == "campaign.closed":
                self.metrics.campaigns.labels(row["outcome"] or "none").inc()
            elif kind in ("retrain.promoted", "retrain.waiting", "retrain.refused", "retrain.failed"):
                self.metrics.retrains.labels(row["state"]).inc()
            if self.webhook is not None and self._leads():   # one of the replicas tells it
                self.webhook.send(kind, row)

    # -- how it stands ------------------------------------------------------------------------------------------

    def check_name(self, name: str) -> None:
        """Raises NotFound for another model than the one that is served."""
        if name != self.settings.model_name:
            raise NotFound(f"there is no model {name!r} here: this server has {self.settings.model_name!r}")

    def check_ready(self) -> None:
        """Raises NotReady, with the reason, while no model answers or the server is about to end."""
        if self.draining:
            raise NotReady("the server is shutting down")
        self.engine.require()

    def told(self) -> str:
        """How much of a verdict clients are told."""
        return "none" if self.settings.policy == "shadow" else self.settings.verdict_detail

    def status(self) -> dict:
        """What `/status` shows, as JSON values; times are unix seconds."""
        self.engine.batcher.settle()
        loaded = self.engine.current
        campaigns = self.watch.campaigns_status()
        return {
            "ready": loaded is not None and not self.draining,
            "problem": str(self.problems) or None,
            "problems": self.problems.current(),
            "replica": None if self.replica is None else
            {"name": self.replica.leadership.replica, "leads": self._leads()},
            "champion": None if loaded is None else self._champion(loaded),
            "monitor": self.watch.monitor_status(),
            "campaigns": campaigns,
            "retrains": [self._retrain(request) for request in self._requests()],
            "swaps": list(self.champion.swaps),
            "requests": {"total": self._total, "failed": self._failed},
            "queue": {"inputs": self.engine.batcher.depth, "in_flight": self._in_flight()},
            "feedback": self.feedback.status(campaign=any(row["state"] == "open" for row in campaigns)),
            "challenger": self.shadow.status() if self.shadow else None,
            "policy": self.settings.policy,
            "operations": self.operations.status(),
            "quarantine": self.quarantine is not None,
        }

    def _in_flight(self) -> int:
        return self.admission.requests if self.admission else 0

    def _champion(self, loaded: LoadedModel) -> dict:
        threats = [{"norm": threat.norm, "epsilon": threat.epsilon} for threat in loaded.bundle.threats]
        return {
            "name": self.settings.model_name, "version": loaded.version, "threats": threats,
            "loaded_at": loaded.loaded_at,
        }

    def _requests(self) -> list[RetrainRequest]:
        try:
            return self.ledger.requests()
        except LedgerUnavailable as error:   # of a cluster that does not answer: everything else can be told
            self.problems.note("ledger", str(error))
            return []

    def _retrain(self, request: RetrainRequest) -> dict:
        row = asdict(request)
        step = read_step(self.retrainer.folder(request)) if request.state == "running" else None
        return {name: row[name] for name in _RETRAIN_FIELDS} | {"step": step}

    def _present(self) -> dict:
        """What the metrics' gauges show."""
        loaded, monitor = self.engine.current, self.watch.monitor_status() or {}
        epsilons = [threat.epsilon for threat in loaded.bundle.threats if threat.norm == "Linf"] if loaded else []
        return {
            "queue_depth": self.engine.batcher.depth, "in_flight": self._in_flight(),
            "monitor_statistic": monitor.get("statistic"), "monitor_threshold": monitor.get("threshold"),
            "accuracy_statistic": (self.feedback.status() or {}).get("statistic"),
            "campaign_active": self.watch.campaign_open(), "ready": loaded is not None and not self.draining,
            "champion": (loaded.version, f"{max(epsilons, default=0):g}") if loaded else None,
            "faults": sorted(self.problems.current()),
        }


def _sqlite(settings: Settings) -> SqliteLedger:
    try:
        return SqliteLedger(settings.home / "ledger.db")
    except (OSError, sqlite3.Error) as error:
        raise HomeUnusable(f"the ledger {settings.home / 'ledger.db'} cannot be opened: {error}") from None
