"""From the measured strength of an attack to the epsilon to train for, and whether to train at all. Pure functions.

The published ancestor trains at a strength that "matches or slightly exceeds" the attack. Here that is arithmetic: the
one-sided 99 % upper bound of epsilon, rounded up on a geometric grid. Where an attack arrived in whole levels that lie
further apart than that grid, they lie on it: 5 / 255 is answered with 5 / 255. The lower bound alone decides whether to
act.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from redoubt.detection.verdicts import Strength
from redoubt.errors import InvalidInput, one_of
from redoubt.threat import NORMS, ThreatModel, covered_epsilon

FLOOR, CEILING, RATIO = 0.01, 0.3, 1.05
MINIMUM = 64   # flagged inputs before a strength is trusted


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What to do about a campaign.

    Attributes:
        retrain: whether a retraining run is due.
        threat: the matched threat model; None where there is too little evidence to name one, or no attack.
        reason: why, in words for people.
        capped: the attack is stronger than the ceiling allows to train for: people should look.
        shift: a change without malice, shown to people and never answered.
        covered: no stronger than what the champion was trained against.
    """

    retrain: bool
    threat: ThreatModel | None
    reason: str
    capped: bool = False
    shift: bool = False
    covered: bool = False


def match(strength: Strength, *, floor: float = FLOOR, ceiling: float = CEILING, ratio: float = RATIO) -> float:
    """The epsilon to train for.

    Args:
        strength: its `high` is the one-sided 99 % upper bound.
        floor: the grid's first point, floor * ratio^k for k = 0, 1, ...
        ceiling: never more than this.
        ratio: the grid's step, above 1 and at most 1.1.

    Returns:
        The smallest grid point that is not below `strength.high`, or `ceiling` if that is smaller. For a campaign that
        arrived in whole levels (`strength.levels`) those that lie further apart than `ratio` are grid points, too.

    Raises:
        InvalidInput: for bounds out of order or a strength that is not made of finite positive numbers.
    """
    _check_grid(strength.norm, floor, ceiling, ratio)
    _check_strength(strength)
    # A hair of tolerance: a bound that lies on the grid must not be pushed to the next point by rounding.
    step = max(0, math.ceil(math.log(strength.high / floor) / math.log(ratio) - 1e-9))
    point = floor * ratio**step
    if strength.levels and strength.norm == "Linf":
        whole = math.ceil(strength.high * strength.levels - 1e-9)
        if whole > ratio * (whole - 1):
            point = min(point, max(whole / strength.levels, floor))
    return min(point, ceiling)


def decide(
    strength: Strength | None,
    covered: Iterable[ThreatModel],
    *,
    floor: float = FLOOR,
    ceiling: float = CEILING,
    ratio: float = RATIO,
    minimum: int = MINIMUM,
) -> Decision:
    """Whether a campaign calls for a retraining run.

    Args:
        strength: pooled over the campaign's flagged inputs; None when nothing was flagged yet.
        covered: the threat models that the champion was trained against.
        floor, ceiling, ratio: as in `match`.
        minimum: how many flagged inputs must stand behind the strength.

    Returns:
        `retrain` only when there are enough inputs, `strength.low` exceeds what the champion covers in that norm, so
        that noise in the estimate hardly ever climbs the grid, and the model itself bears witness of an attack. An
        attack in whole levels that exceeds a champion's has a whole one more: there `low` must exceed it by half a
        level.

    Raises:
        InvalidInput: as `match` does, and for a minimum below 1.
    """
    if minimum < 1:
        raise InvalidInput(f"minimum must be at least 1 input, not {minimum}")
    if strength is None or strength.n < minimum:
        have = 0 if strength is None else strength.n
        return Decision(retrain=False, threat=None, reason=f"{have} of {minimum} flagged inputs needed for a decision")
    if strength.harmless:
        reason = f"{strength.n} flagged inputs look like noise or a new camera, not like an attack: shift"
        return Decision(retrain=False, threat=None, reason=reason, shift=True)
    covered = tuple(covered)
    threat = ThreatModel(strength.norm, match(strength, floor=floor, ceiling=ceiling, ratio=ratio))
    have = covered_epsilon(covered, strength.norm)
    measured = f"{strength.norm} strength {strength.estimate:.4g} (at least {strength.low:.4g})"
    capped = strength.high > ceiling
    note = f"; it may exceed the ceiling of {ceiling:.4g}, so people should look" if capped else ""
    margin = 0.5 / strength.levels if strength.levels and have else 0.0
    if strength.low <= have + margin:
        within = "lies within" if strength.low <= have else "is less than half a pixel level above"
        reason = f"{measured} {within} the {have:.4g} that the champion covers{note}"
        return Decision(retrain=False, threat=threat, reason=reason, capped=capped, covered=True)
    if not strength.witnessed:
        what = "these changes do no more to the model than random ones"
        if strength.shared:
            what = "most inputs carry one pattern, and it does hardly more to the model than a harmless one may"
        reason = f"{measured}, but {what}: shift"
        return Decision(retrain=False, threat=None, reason=reason, shift=True)
    if threat.epsilon <= have:
        reason = f"{measured} exceeds the {have:.4g} that the champion covers, which is already the ceiling{note}"
        return Decision(retrain=False, threat=threat, reason=reason, capped=capped)
    against = f"the {have:.4g} that the champion covers" if have else "nothing that the champion covers in this norm"
    reason = f"{measured} exceeds {against}: train for {threat.epsilon:.4g}{note}"
    return Decision(retrain=True, threat=threat, reason=reason, capped=capped)


def _check_grid(norm: str, floor: float, ceiling: float, ratio: float) -> None:
    one_of(norm, NORMS, "norm")
    if not 0 < floor <= ceiling < math.inf or (norm == "Linf" and ceiling > 1):
        raise InvalidInput(f"needs 0 < floor <= ceiling (at most 1 in Linf), not floor {floor}, ceiling {ceiling}")
    if not 1 < ratio <= 1.1:
        raise InvalidInput(f"the grid's ratio must lie above 1 and be at most 1.1, not {ratio}")


def _check_strength(strength: Strength) -> None:
    bounds = (strength.low, strength.estimate, strength.high)
    if not all(math.isfinite(value) and value > 0 for value in bounds) or sorted(bounds) != list(bounds):
        raise InvalidInput(f"a strength needs 0 < low <= estimate <= high, all finite, not {bounds}")
