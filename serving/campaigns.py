"""A campaign's life: opened by an alarm, judged on its flagged inputs, answered, closed by the all-clear.

Not thread-safe by itself: the watch calls everything here under its lock.
"""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, replace

from torch import Tensor

from redoubt.detection import Decision, Strength, all_clear, decide
from redoubt.threat import ThreatModel, covered_epsilon, covers
from serving.evidence import Evidence
from serving.model import LoadedModel
from serving.problems import Problems
from serving.records import SETTLED, UNFINISHED, Campaign, Ledger, RetrainRequest
from serving.settings import Settings

log = logging.getLogger("redoubt.serving")
ARRIVAL_SECONDS, ARRIVAL_POLLS = 60.0, 10   # a promoted version serves within the longer of both
RETRY_SECONDS = 5.0   # between two tries at what is owed: a request that was not possible, a ledger that failed


class Campaigns:
    """The running campaign, if there is one. A campaign that a restart interrupted goes on under its old id.

    Args:
        request_made: called after a retraining request was written to the ledger.
    """

    def __init__(self, settings: Settings, ledger: Ledger, problems: Problems, request_made: Callable[[], None]):
        self._settings, self._ledger, self._problems, self._request_made = settings, ledger, problems, request_made
        self._arrival = max(ARRIVAL_SECONDS, ARRIVAL_POLLS * settings.poll_seconds)
        self._loaded: LoadedModel | None = None
        self.current: Campaign | None = ledger.running_campaign(settings.model_name)
        self._request = ledger.last_request(self.current) if self.current else None
        self._evidence = Evidence(
            most=settings.campaign_max_inputs, minimum=settings.campaign_min_inputs, few=settings.few_clients
        )
        self._window: deque[bool] = deque(maxlen=settings.all_clear_inputs)
        self._begin_afresh()

    def _begin_afresh(self) -> None:
        self._evidence.clear()
        self._window.clear()
        self._seen = self._unjudged = 0
        self._last_flagged, self._owed, self._tried_at = time.monotonic(), False, 0.0
        self._waits = False   # whether more clients are waited for before the strength is read

    # -- what happens -------------------------------------------------------------------------------------------

    def on_model(self, loaded: LoadedModel) -> None:
        """Another version answers from now on: evidence begins afresh, and the running campaign may end."""
        self._loaded = loaded
        self._begin_afresh()
        if self.current is None:
            return
        self._request = self._ledger.last_request(self.current)
        if self.current.model_version == loaded.version:   # a restart: it goes on where it stood
            self.refresh()
            return
        if self._answered_by(loaded):
            outcome = "covered" if self.current.outcome == "covered" else "answered"
            self._close(outcome, f"version {loaded.version} covers it")
        elif self._request is None or self._request.state not in UNFINISHED:
            self._close(self.current.outcome or "superseded", f"version {loaded.version} took over")

    def see(
        self, flagged: bool, evidence: Tensor | None, *, alarm: bool, inputs: int, client: str = ""
    ) -> bool:
        """Take in one distinct input, in arrival order.

        Args:
            evidence: [K], the detector's evidence for this input; None where another replica saw it and kept it.
            alarm: whether the monitor's statistic stands above its threshold.
            inputs: distinct inputs since the monitor began.
            client: who sent it.

        Returns:
            True when this was the all-clear.
        """
        self._seen += 1
        if flagged:
            self._last_flagged = time.monotonic()
        if flagged and evidence is not None:
            self._evidence.keep(self._seen, client, evidence)
            self._unjudged += 1
        if self.current is None:
            self._evidence.forget_until(self._seen - self._settings.lookback)
            self._unjudged = len(self._evidence)
            if not alarm:
                return False
            self._open(inputs)
        elif flagged:
            self.current = replace(self.current, flagged=self.current.flagged + 1)
        self._window.append(flagged)
        if self._unjudged >= self._settings.campaign_min_inputs:
            self._judge()
            self._unjudged = self._settings.campaign_min_inputs * 3 // 4 if self._waits else 0
        return self._all_clear()

    def tick(self) -> bool:
        """What time alone brings about; call it about once a second. True when it brought the all-clear."""
        if self.current is None or self._loaded is None:
            return False
        if time.monotonic() - self._tried_at > RETRY_SECONDS:
            self._tried_at = time.monotonic()
            self.refresh()
            if self._owed:
                self._judge()
        return self._all_clear()

    def refresh(self) -> None:
        """Read how the campaign's request stands, and draw the consequence."""
        if self.current is None or self._loaded is None:
            return
        self._request = request = self._ledger.last_request(self.current)
        if request is None:
            return
        if request.state == "promoted" and request.version == self._loaded.version:
            self._close("answered", f"version {request.version} covers it")
        elif request.state in (*SETTLED, "failed"):
            self._problems.note("campaign", f"{self.current.id} is unanswered: {self._what_to_do(request)}")
            if self.current.outcome != "unanswered":
                self._update(outcome="unanswered", reason=request.reason)
        elif request.state == "promoted" and self._came_to_nothing():
            fault = (
                f"version {request.version} was promoted for it and did not become the champion within "
                f"{self._arrival:g} s; version {self._loaded.version} goes on"
            )
            self._problems.note("campaign", f"{self.current.id}: {fault}")
            if self.current.outcome != "unanswered":
                self._update(outcome="unanswered", reason=fault)

    def _what_to_do(self, request: RetrainRequest) -> str:
        """A request that did not bring a champion, in words for the people who have to know."""
        promote = f"`redoubt promote {request.model_name} {request.version}"
        if request.state == "waiting":
            return f"version {request.version} passed the gate and waits for a person: {promote}` makes it champion"
        if request.state == "refused":
            return (f"the gate refused version {request.version}, which stays challenger: {request.reason}. {promote} "
                    '--override "reason"` takes it all the same; no other run is started unless the strength rises')
        return f"its retraining run failed for good: {request.reason}"

    def _came_to_nothing(self) -> bool:
        return self._request.came_to_nothing(time.time(), self._arrival)

    # -- how it is judged ---------------------------------------------------------------------------------------

    def _judge(self, *, patient: bool = True) -> None:
        if len(self._evidence) < self._settings.campaign_min_inputs or self._loaded.detector is None:
            return
        if self._request is not None and not self._came_to_nothing():
            return   # it has its request: strength and matched epsilon stay those that it was asked for
        strength = self._evidence.strength(self._loaded.detector, seen=self._seen, patient=patient)
        if strength is None:
            if not self._waits:
                self._update(reason="few clients sent most of what was flagged: more are waited for before its "
                                    "strength is read")
            self._waits = True
            return
        self._waits = False
        self._owed = True   # until the ledger has taken it
        settings, bundle = self._settings, self._loaded.bundle
        decision = decide(
            strength, bundle.threats, floor=settings.epsilon_floor,
            ceiling=settings.ceiling(strength.norm, math.prod(bundle.architecture.input_shape)),
            ratio=settings.epsilon_ratio, minimum=settings.campaign_min_inputs,
        )
        matched = decision.threat.epsilon if decision.threat is not None else None
        outcome = self._outcome(strength, decision)
        self._update(strength=asdict(strength), matched=matched, outcome=outcome, reason=decision.reason)
        self._owed = decision.retrain and not self._ask(decision)

    def _outcome(self, strength: Strength, decision: Decision) -> str | None:
        if decision.shift:
            return "shift"
        if self._request is not None:
            return "unanswered"   # until the next request is made
        if decision.retrain:
            return None
        return "covered" if decision.covered else "unanswered"

    def _ask(self, decision: Decision) -> bool:
        """Whether the wish is settled: written down, or only a dry run."""
        settings = self._settings
        if not settings.retrain:
            self._update(outcome="dry-run", reason=f"{decision.reason}; retraining is off")
            return True
        request, obstacle = self._ledger.ask(
            self.current, decision.threat, cool_down=settings.cool_down_seconds, daily_budget=settings.daily_budget,
            arrival=self._arrival,
        )
        if request is None:
            self._update(reason=f"{decision.reason}; {obstacle}")
            return False
        self._request = request
        self._problems.clear("campaign")
        self._update(outcome=None)
        self._request_made()
        return True

    # -- how it begins and ends ---------------------------------------------------------------------------------

    def _open(self, inputs: int) -> None:
        self.current = self._ledger.open_campaign(
            self._settings.model_name, self._loaded.version, inputs=inputs, flagged=len(self._evidence)
        )
        self._request = None
        self._window.clear()
        log.warning("%s: campaign %s: alarm after %d inputs", self._settings.model_name, self.current.id, inputs)

    def _all_clear(self) -> bool:
        if self.current is None:
            return False
        full = len(self._window) == self._window.maxlen and self._loaded.detector is not None
        quiet = full and all_clear(
            list(self._window), null_rate=self._loaded.detector.null_rate, window=len(self._window)
        )
        idle = time.monotonic() - self._last_flagged
        if not quiet and idle <= self._settings.all_clear_seconds:
            return False
        if self._waits:
            self._judge(patient=False)   # nobody else will come
        request, outcome = self._request, self.current.outcome or ("unanswered" if self._owed else "faded")
        if request is not None and request.state in UNFINISHED:
            return False   # its end decides
        if request is not None and request.state == "promoted":
            if time.time() - request.finished_at <= self._settings.all_clear_seconds:
                return False   # the new version is on its way
            outcome = "unanswered"
        self._close(outcome)
        return True

    def _answered_by(self, loaded: LoadedModel) -> bool:
        request, strength = self._request, self.current.strength
        if request is not None:
            promoted = request.state == "promoted" and request.version == loaded.version
            return promoted or covers(loaded.bundle.threats, ThreatModel(request.norm, request.epsilon))
        if strength is None:
            return False
        return 0 < (self.current.matched or strength["estimate"]) <= covered_epsilon(
            loaded.bundle.threats, strength["norm"]
        )

    def _close(self, outcome: str, note: str = "") -> None:
        reason = "; ".join(part for part in (self.current.reason, note) if part) or None
        self._update(state="closed", closed_at=time.time(), outcome=outcome, reason=reason)
        log.warning("%s: campaign %s: closed, %s (%s)", self._settings.model_name, self.current.id, outcome, reason)
        self._problems.clear("campaign")
        self.current, self._request = None, None
        self._begin_afresh()

    def _update(self, **changes) -> None:
        self.current = self._ledger.update_campaign(self.current, flagged=self.current.flagged, **changes)
