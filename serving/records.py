"""What a ledger holds, the rules that hold for every ledger, and what a ledger can be asked. No storage here."""

from __future__ import annotations

import math
import secrets
import time
from dataclasses import dataclass
from typing import Protocol

from redoubt.threat import ThreatModel

DAY = 24 * 3600.0
UNFINISHED = ("pending", "running")
FINISHED = ("promoted", "waiting", "refused", "failed")   # states of a retraining request
OUTCOMES = ("answered", "covered", "unanswered", "shift", "faded", "superseded", "dry-run")   # of a closed campaign
SETTLED = ("refused", "waiting")   # the gate has spoken: the same request again would bring nothing new
_ALIKE = 1.01   # epsilons that lie no further apart are one: a whole pixel level may lie next to a point of the grid


@dataclass(frozen=True, kw_only=True)
class Campaign:
    """One continuous attack.

    Attributes:
        state: `open` or `closed`.
        opened_at, closed_at: unix seconds.
        model_version: the version that was attacked.
        inputs_at_alarm: distinct inputs that the monitor had seen when it raised the alarm.
        flagged: distinct flagged inputs that belong to it so far.
        strength: {norm, estimate, low, high, n, harmless, witnessed, shared, levels} as last estimated; None before
            there was enough evidence.
        matched: the epsilon on the grid that answers this strength, asked for or not; None where there is none.
        outcome: finding so far, final once closed; None while undecided. `answered`: a new champion covers it.
            `covered`: the champion already did. `unanswered`: the gate refused, or the run failed, or the ceiling
            forbids. `shift`: a change without malice. `faded`: it ended before there was enough to judge.
            `superseded`: another version took over that does not cover it. `dry-run`: retraining is off.
        reason: the last decision in words.
    """

    id: str
    model_name: str
    model_version: str
    state: str
    opened_at: float
    closed_at: float | None
    inputs_at_alarm: int
    flagged: int
    strength: dict | None
    matched: float | None
    outcome: str | None
    reason: str | None


@dataclass(frozen=True, kw_only=True)
class RetrainRequest:
    """One wish for a stronger model.

    Attributes:
        round: 0, or how many of the campaign's requests came to nothing before this one.
        state: `pending`, `running`, `promoted`, `refused`, `waiting` (passed by the gate, for a person) or `failed`.
        attempts: runs that were started and failed.
        next_attempt_at: unix seconds before which a pending request waits.
    """

    id: str
    campaign: str
    round: int
    model_name: str
    parent_version: str
    norm: str
    epsilon: float
    state: str
    attempts: int
    reason: str | None
    version: str | None
    created_at: float
    finished_at: float | None
    next_attempt_at: float | None

    @property
    def claim(self) -> str:
        """What its runs claim: the campaign; from the campaign's second request on, that one, for the first one's runs
        keep their claims."""
        return f"{self.campaign}.{self.round + 1}" if self.round else self.campaign

    def came_to_nothing(self, now: float, arrival: float) -> bool:
        """Whether its campaign, still open at `now`, may have another request.

        Args:
            arrival: seconds within which a promoted version becomes the one that serves, and closes the campaign.
        """
        if self.state == "promoted":
            return now - self.finished_at > arrival
        return self.state not in UNFINISHED


class LedgerUnavailable(Exception):
    """The ledger cannot be read or written now. What is owed is tried again; no request to the model is lost for it."""


class Ledger(Protocol):
    """Campaigns and retraining requests, where they survive a restart. Safe to use from every thread.

    Two implementations: a SQLite file for one server, a ConfigMap for the replicas of a cluster. Each method raises
    LedgerUnavailable when it cannot be carried out.
    """

    def open_campaign(self, model_name: str, version: str, *, inputs: int, flagged: int) -> Campaign: ...

    def running_campaign(self, model_name: str) -> Campaign | None: ...

    def update_campaign(self, campaign: Campaign, **changes) -> Campaign: ...

    def campaigns(self, limit: int = 50) -> list[Campaign]: ...

    def ask(
        self, campaign: Campaign, threat: ThreatModel, *, cool_down: float, daily_budget: int,
        arrival: float = math.inf,
    ) -> tuple[RetrainRequest | None, str]: ...

    def due(self, model_name: str) -> RetrainRequest | None: ...

    def update_request(self, request: RetrainRequest, **changes) -> RetrainRequest: ...

    def last_request(self, campaign: Campaign) -> RetrainRequest | None: ...

    def promoted_before(self, request: RetrainRequest) -> int: ...

    def requests(self, limit: int = 50) -> list[RetrainRequest]: ...

    def close(self) -> None: ...


def opened(model_name: str, version: str, *, inputs: int, flagged: int) -> Campaign:
    """A campaign as it begins."""
    return Campaign(
        id=new_id("c"), model_name=model_name, model_version=version, state="open", opened_at=time.time(),
        closed_at=None, inputs_at_alarm=inputs, flagged=flagged, strength=None, matched=None, outcome=None, reason=None,
    )


def asked_for(campaign: Campaign, threat: ThreatModel, earlier: list[RetrainRequest], now: float) -> RetrainRequest:
    """A request as it begins.

    Args:
        earlier: the model's requests so far.
    """
    return RetrainRequest(
        id=new_id("r"), campaign=campaign.id, round=sum(past.campaign == campaign.id for past in earlier),
        model_name=campaign.model_name, parent_version=campaign.model_version, norm=threat.norm,
        epsilon=threat.epsilon, state="pending", attempts=0, reason=None, version=None, created_at=now,
        finished_at=None, next_attempt_at=now,
    )


def forbidden(
    earlier: list[RetrainRequest], campaign: Campaign, threat: ThreatModel, cool_down, budget, arrival, now
) -> str:
    """Why no request may be written now; empty if one may."""
    own = [past for past in earlier if past.campaign == campaign.id]
    if not all(past.came_to_nothing(now, arrival) for past in own):
        return "this campaign already has its retraining request"
    settled = [
        past for past in earlier if past.state in SETTLED and past.norm == threat.norm
        and past.epsilon * _ALIKE >= threat.epsilon
        and (past.campaign == campaign.id or past.parent_version == campaign.model_version)
    ]
    if settled:   # the same parent, data and seed would give the same version again
        return f"{_settled(settled[-1], threat)}, and its strength has not risen since"
    if any(past.state in UNFINISHED for past in earlier):
        return "another retraining run is not finished yet"
    wait = max((past.finished_at for past in earlier), default=-cool_down) + cool_down - now
    if wait > 0:
        return f"cooling down for another {wait:.0f} s after the last retraining run"
    if sum(past.created_at > now - DAY for past in earlier) >= budget:
        return f"the daily budget of {budget} retraining runs is spent"
    return ""


def _settled(past: RetrainRequest, threat: ThreatModel) -> str:
    if past.state == "waiting":
        return f"version {past.version} answers {threat} and waits for a person to promote it"
    whose = f", version {past.version}," if past.version else ""
    return f"the gate refused{whose} what was trained for {threat} and version {past.parent_version}"


def new_id(kind: str) -> str:
    return f"{kind}-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(3)}"
