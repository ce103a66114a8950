"""The server without HTTP: engine, watch, ledger and their threads, put together, started, stopped and described."""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
import time
from dataclasses import asdict

from torch import Tensor

from redoubt.detection import Verdicts
from redoubt.registry import Registry
from serving.champion import ChampionFollower, Champions
from serving.engine import Engine, LoadedModel
from serving.home import take_home
from serving.launcher import ChildProcessLauncher, Launcher, read_step
from serving.ledger import Ledger, RetrainRequest
from serving.live.feed import Feed
from serving.problems import HomeUnusable, Problems
from serving.retrainer import Retrainer
from serving.settings import Settings
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
        launcher: who carries out retraining runs; child processes when None.

    Raises:
        HomeUnusable: when the home folder or its ledger cannot be used, or another server holds it.
    """

    def __init__(self, settings: Settings, *, registry: Champions | None = None, launcher: Launcher | None = None):
        self.settings, self.problems = settings, Problems()
        # A registry that is down should be noticed within a poll or two, not after minutes of MLflow's own retries.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        self._home = take_home(settings.home)
        try:
            self.ledger = Ledger(settings.home / "ledger.db")
        except (OSError, sqlite3.Error) as error:
            self._home.close()
            raise HomeUnusable(f"the ledger {settings.home / 'ledger.db'} cannot be opened: {error}") from None
        self.watch = Watch(settings, self.ledger, self.problems, self._request_made)
        self.engine = Engine(
            threads=settings.threads, workers=settings.workers, problems=self.problems, observe=self._observe
        )
        self.champion = ChampionFollower(
            registry or Registry(settings.tracking_uri, settings.model_name), self.engine, self.problems,
            folder=settings.home / "models" / settings.model_name, poll_seconds=settings.poll_seconds,
            on_model=self._on_model,
        )
        self.retrainer = Retrainer(
            settings, self.ledger,
            launcher or ChildProcessLauncher(settings.retrain_command, timeout=settings.retrain_timeout_seconds),
            self.problems, self._request_finished,
        )
        self.feed = Feed()
        self._stop = threading.Event()
        self._ticker = threading.Thread(target=self._tick, name="tick", daemon=True)
        self._counting = threading.Lock()
        self._total = self._failed = 0

    def start(self) -> None:
        """Start every thread; the first model is loaded in the background."""
        self.champion.start()
        if self.settings.retrain:
            self.retrainer.start()
        self._ticker.start()

    def stop(self) -> None:
        """Finish what computes, end a running retraining child, close the ledger. What is owed stays written there.

        A second call does nothing.
        """
        if self._stop.is_set():
            return
        self._stop.set()
        self.retrainer.stop()
        self.champion.stop()
        if self._ticker.is_alive():
            self._ticker.join(timeout=5)
        self.engine.stop()
        self.ledger.close()
        self._home.close()

    def count(self, failed: bool) -> None:
        """Count one answered inference request."""
        with self._counting:
            self._total += 1
            self._failed += failed

    def status(self) -> dict:
        """What `/status` shows, as JSON values; times are unix seconds."""
        loaded = self.engine.current
        return {
            "ready": loaded is not None,
            "problem": str(self.problems) or None,
            "champion": None if loaded is None else self._champion(loaded),
            "monitor": self.watch.monitor_status(),
            "campaigns": self.watch.campaigns_status(),
            "retrains": [self._retrain(request) for request in self.ledger.requests()],
            "swaps": list(self.champion.swaps),
            "requests": {"total": self._total, "failed": self._failed},
        }

    def _champion(self, loaded: LoadedModel) -> dict:
        threats = [{"norm": threat.norm, "epsilon": threat.epsilon} for threat in loaded.bundle.threats]
        return {
            "name": self.settings.model_name, "version": loaded.version, "threats": threats,
            "loaded_at": loaded.loaded_at,
        }

    def _retrain(self, request: RetrainRequest) -> dict:
        row = asdict(request)
        step = read_step(self.retrainer.folder(request)) if request.state == "running" else None
        return {name: row[name] for name in _RETRAIN_FIELDS} | {"step": step}

    def _observe(self, loaded: LoadedModel, x: Tensor, verdicts: Verdicts) -> None:
        self.watch.observe(loaded, x, verdicts)
        self.feed.observe(verdicts)

    def _on_model(self, loaded: LoadedModel) -> None:
        self.watch.on_model(loaded)
        self.feed.forget()

    def _request_made(self) -> None:
        self.retrainer.wake()

    def _request_finished(self, request: RetrainRequest) -> None:
        self.watch.refresh()
        if request.state == "promoted":
            self.champion.wake()

    def _tick(self) -> None:
        while not self._stop.wait(1.0):
            began = time.monotonic()
            self.watch.tick()
            self._show()
            self._stop.wait(max(0.0, time.monotonic() - began - 1))   # a slow disk is not asked more often

    def _show(self) -> None:
        """Make the live page's next frame. A page without a frame is no reason to stop the clock."""
        try:
            self.feed.make(self.status(), self.engine.current, self.retrainer.folder_of)
        except (sqlite3.Error, OSError, ValueError) as error:
            log.warning("the live page could not be brought up to date: %s", error)
