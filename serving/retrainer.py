"""Works off the retraining requests in the ledger: one at a time, with retries, across restarts."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

from redoubt.promotion.policy import load_policy
from serving.launcher import Launcher, Result, tidy, write_request
from serving.problems import Problems
from serving.records import Ledger, LedgerUnavailable, RetrainRequest
from serving.settings import Settings

log = logging.getLogger("redoubt.serving")


class Retrainer:
    """A thread that takes each due request to its launcher and writes down how it ended.

    Args:
        on_finished: called with a request that is promoted, refused or given up.
        leads: whether this replica acts for all, now; always true for one server.
        tell: called with what happens, for people elsewhere: one word, a sentence, and whether it is a warning.
        held: whether an operator holds back every start; asked before each.
    """

    def __init__(
        self, settings: Settings, ledger: Ledger, launcher: Launcher, problems: Problems,
        on_finished: Callable[[RetrainRequest], None], *, leads: Callable[[], bool] = lambda: True,
        held: Callable[[], bool] = lambda: False,
        tell: Callable[[str, str, bool], None] = lambda reason, message, warning: None,
    ):
        self._settings, self._ledger, self._launcher, self._problems = settings, ledger, launcher, problems
        self._on_finished, self._leads, self._held, self._tell = on_finished, leads, held, tell
        self._interrupt = threading.Event()   # set to stop following a run, by the end of this server or of its term
        self._policy = load_policy(settings.gate_policy).text() if settings.gate_policy else ""
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
        self.let_go()
        if self._thread.is_alive():
            self._thread.join(timeout=20)

    def let_go(self) -> None:
        """Stop following a run: another replica leads. It stays in the ledger, as what is unfinished."""
        self._interrupt.set()
        self._wake.set()

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
                if self.work_off():
                    continue
                self._problems.clear("retraining")
            except (LedgerUnavailable, OSError) as error:   # a full or broken disk: what is owed is tried again
                self._problems.note("retraining", f"{type(error).__name__}: {error}")
            self._wake.wait(1.0)
            self._wake.clear()

    def work_off(self) -> bool:
        """Carry out the request that is due, if there is one. Whether there was.

        Raises:
            LedgerUnavailable, OSError: when the ledger or the disk fails; the request stays owed.
        """
        request = self._ledger.due(self._settings.model_name) if self._leads() else None
        if request is None or (request.state == "pending" and self._held()):
            return False
        self._carry_out(request)
        return True

    def _tidy_all(self) -> None:
        """What an end between a result and the tidying left."""
        with contextlib.suppress(LedgerUnavailable, OSError):
            for request in self._ledger.requests():
                if request.finished_at is not None:
                    tidy(self.folder(request))

    def _carry_out(self, request: RetrainRequest) -> None:
        settings, folder = self._settings, self.folder(request)
        write_request(folder, {
            "id": request.id, "campaign": self._cause(request), "model_name": request.model_name,
            "tracking_uri": settings.tracking_uri, "home": str(settings.home), "norm": request.norm,
            "epsilon": request.epsilon, "parent_version": request.parent_version,
            "claim": request.claim,
            "from_scratch": settings.retrain_from_scratch,
            "policy": self._policy,
        })
        word = "RetrainStarted" if request.state == "pending" else "RetrainResumed"
        request = self._ledger.update_request(request, state="running")
        self._interrupt.clear()
        if self._stop.is_set() or not self._leads():
            self._interrupt.set()
        self._tell(word, f"{request.id}: {request.norm} {request.epsilon:.4g} for {request.campaign}, attempt "
                         f"{request.attempts + 1}", False)
        try:
            result = self._launcher.run(folder, self._interrupt, request.attempts)
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
        name = self._settings.model_name
        log.info("%s: retraining request %s: %s (%s)", name, request.id, result.status, result.reason)
        now = time.time()
        self._announce(request, result)
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

    def _announce(self, request: RetrainRequest, result: Result) -> None:
        last = request.attempts + 1 >= self._settings.retrain_attempts
        word = {"promoted": "RetrainPromoted", "refused": "RetrainRefused", "waiting": "RetrainWaits"}.get(
            result.status, "RetrainGivenUp" if last else "RetrainFailed")
        made = f", version {result.version}" if result.version else ""
        self._tell(word, f"{request.id} for {request.campaign}{made}: {result.reason}", result.status != "promoted")
