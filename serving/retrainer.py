"""Works off the retraining requests in the ledger: one at a time, with retries, across restarts."""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path

from serving.launcher import Launcher, Result, tidy, write_request
from serving.ledger import Ledger, RetrainRequest
from serving.problems import Problems
from serving.settings import Settings

log = logging.getLogger("redoubt.serving")


class Retrainer:
    """A thread that takes each due request to its launcher and writes down how it ended.

    Args:
        on_finished: called with a request that is promoted, refused or given up.
    """

    def __init__(
        self, settings: Settings, ledger: Ledger, launcher: Launcher, problems: Problems,
        on_finished: Callable[[RetrainRequest], None],
    ):
        self._settings, self._ledger, self._launcher, self._problems = settings, ledger, launcher, problems
        self._on_finished = on_finished
        self._stop, self._wake = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._loop, name="retrainer", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        """Look into the ledger now: something was asked for."""
        self._wake.set()

    def stop(self) -> None:
        """End a running child and the thread; what is unfinished stays in the ledger for the next start."""
        self._stop.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(timeout=20)

    def folder(self, request: RetrainRequest) -> Path:
        """Where the request's files lie."""
        return self.folder_of(request.id)

    def folder_of(self, request: str) -> Path:
        """The same, by the request's id."""
        return self._settings.home / "retrains" / request

    def _loop(self) -> None:
        self._tidy_all()
        while not self._stop.is_set():
            try:
                request = self._ledger.due(self._settings.model_name)
                if request is not None:
                    self._carry_out(request)
                    continue
                self._problems.clear("retraining")
            except (sqlite3.Error, OSError) as error:   # a full or broken disk: what is owed is tried again
                self._problems.note("retraining", f"{type(error).__name__}: {error}")
            self._wake.wait(1.0)
            self._wake.clear()

    def _tidy_all(self) -> None:
        """What an end between a result and the tidying left."""
        with contextlib.suppress(sqlite3.Error, OSError):
            for request in self._ledger.requests():
                if request.finished_at is not None:
                    tidy(self.folder(request))

    def _carry_out(self, request: RetrainRequest) -> None:
        settings, folder = self._settings, self.folder(request)
        write_request(folder, {
            "id": request.id, "campaign": self._cause(request), "model_name": request.model_name,
            "tracking_uri": settings.tracking_uri, "home": str(settings.home), "norm": request.norm,
            "epsilon": request.epsilon, "parent_version": request.parent_version,
        })
        request = self._ledger.update_request(request, state="running")
        try:
            result = self._launcher.run(folder, self._stop)
        except Exception as error:   # a launcher is a plug-in: its fault is one failed attempt, not the thread's end
            log.exception("the launcher failed")
            result = Result(status="failed", reason=f"the launcher failed: {error}")
        if result is None:
            self._ledger.update_request(request, state="pending")
            return
        finished = self._record(request, result)
        if finished.finished_at is not None:
            self._on_finished(finished)
            tidy(folder)

    def _cause(self, request: RetrainRequest) -> str:
        """What the run says it answers: the campaign. After a promoted version that never served the name differs,
        because a run takes what was judged under the same name instead of training again."""
        vain = self._ledger.promoted_before(request)
        return f"{request.campaign}.{vain + 1}" if vain else request.campaign

    def _record(self, request: RetrainRequest, result: Result) -> RetrainRequest:
        log.info("retraining request %s: %s (%s)", request.id, result.status, result.reason)
        now = time.time()
        if result.status != "failed":
            return self._ledger.update_request(
                request, state=result.status, version=result.version, reason=result.reason, finished_at=now,
                next_attempt_at=None,
            )
        attempts = request.attempts + 1
        if attempts >= self._settings.retrain_attempts:
            return self._ledger.update_request(
                request, state="failed", attempts=attempts, reason=result.reason, finished_at=now, next_attempt_at=None,
            )
        wait = self._settings.backoff_seconds * 2 ** (attempts - 1)
        return self._ledger.update_request(
            request, state="pending", attempts=attempts, reason=result.reason, next_attempt_at=now + wait,
        )
