"""One place that sees every verdict in order: repeats are set aside, the rest feed the monitor and the campaign."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import asdict, replace

from torch import Tensor

from redoubt.detection import Monitor, RecentInputs, Verdicts, digests
from serving.campaigns import Campaigns
from serving.model import LoadedModel
from serving.problems import Problems
from serving.records import Ledger, LedgerUnavailable
from serving.settings import Settings


class Watch:
    """Monitor and campaigns of the served model. Safe to use from every thread.

    Args:
        request_made: called after a retraining request was written to the ledger.
    """

    def __init__(self, settings: Settings, ledger: Ledger, problems: Problems, request_made: Callable[[], None]):
        self._settings, self._ledger, self._problems = settings, ledger, problems
        self._lock = threading.Lock()
        self._campaigns = Campaigns(settings, ledger, problems, request_made)
        self._loaded: LoadedModel | None = None
        self._monitor: Monitor | None = None
        self._begin_afresh()

    def _begin_afresh(self) -> None:
        self._recent = RecentInputs(self._settings.dedupe_window)
        self._inputs = self._distinct = self._flagged = 0

    def on_model(self, loaded: LoadedModel) -> None:
        """Another version answers from now on: count afresh, by its own detector's false-positive rate."""
        with self._lock:
            self._loaded = loaded
            self._monitor = None
            if loaded.detector is not None:
                self._monitor = Monitor(loaded.detector.null_rate, arl=self._settings.alarm_run_length)
            self._begin_afresh()
            self._guarded(self._campaigns.on_model, loaded)

    def observe(self, loaded: LoadedModel, x: Tensor, verdicts: Verdicts, clients: list[str] | None = None) -> None:
        """Take in the verdicts on x [N, C, H, W]; those of a version that no longer serves are left aside.

        Args:
            clients: who sent each of the N inputs; nobody in particular when None.
        """
        flags, known = verdicts.is_adversarial.tolist(), digests(x.numpy())
        with self._lock:
            if loaded is not self._loaded or self._monitor is None:
                return
            self._inputs += len(x)
            senders = clients or [""] * len(x)
            for own, flagged, evidence, client in zip(known, flags, verdicts.evidence, senders, strict=True):
                if not self._recent.is_new(own):
                    continue
                self._distinct += 1
                self._flagged += flagged
                alarm = self._monitor.update(flagged)
                if self._guarded(
                    self._campaigns.see, flagged, evidence, alarm=alarm, inputs=self._distinct, client=client
                ):
                    self._monitor.reset()

    def tick(self) -> None:
        """What time alone brings about; call it about once a second."""
        with self._lock:
            self._problems.clear("ledger")   # noted again below, or by the next input, while it lasts
            if self._guarded(self._campaigns.tick) and self._monitor is not None:
                self._monitor.reset()

    def refresh(self) -> None:
        """A retraining request changed: read it again."""
        with self._lock:
            self._guarded(self._campaigns.refresh)

    def _guarded(self, step: Callable, *args, **named):
        """Run a step that writes to the ledger. A disk that fails is a problem to show, not a request to lose."""
        try:
            return step(*args, **named)
        except LedgerUnavailable as error:
            self._problems.note("ledger", str(error))
            return None

    def monitor_status(self) -> dict | None:
        """The monitor's figures; None while the model has no detector."""
        with self._lock:
            if self._monitor is None:
                return None
            statistic = self._monitor.statistic if self._distinct else None   # minus infinity is no JSON
            return {
                "statistic": statistic, "threshold": self._monitor.threshold, "inputs": self._inputs,
                "distinct": self._distinct, "flagged": self._flagged, "null_rate": self._monitor.null_rate,
            }

    def campaign_open(self) -> bool:
        """Whether a campaign is running."""
        return self._campaigns.current is not None

    def campaigns_status(self) -> list[dict]:
        """Newest first, the running one with its latest count."""
        with self._lock:
            current = self._campaigns.current
        rows = self._ledger.campaigns()
        if current is not None:
            rows = [replace(row, flagged=current.flagged) if row.id == current.id else row for row in rows]
        return [asdict(row) for row in rows]
