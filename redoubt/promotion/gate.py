"""The gate: whether a new version may become champion. Pure functions from measurements to a decision record.

What is compared are correctness vectors: for each picture of the gate split, whether a model classified it rightly,
clean or under an attack. Champion and challenger see the same pictures, attacks and seeds, so the tests are paired.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from redoubt.errors import InvalidInput
from redoubt.promotion.paired import detectable_difference, discordant, paired_p
from redoubt.promotion.policy import Policy
from redoubt.promotion.record import GateDecision, Rule, rule
from redoubt.threat import ThreatModel, covers


@dataclass(frozen=True, kw_only=True)
class Probe:
    """What a version's detector made of pictures attacked under one threat model.

    Attributes:
        threat: with what they were attacked.
        true: how far the attacked pictures lie from the clean ones, in the threat's norm, once they are rounded to what
            a picture can hold: median.
        n, flagged: how many there were, and how many it flagged.
        estimate: the epsilon that it read from the flagged ones; None when they were too few.
        needs: how many flagged ones it reads a strength from.
    """

    threat: ThreatModel
    true: float
    n: int
    flagged: int
    estimate: float | None
    needs: int = 64


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One model on the gate split.

    Attributes:
        clean: bool [N], right on the clean picture.
        attacked: for each threat model of the requested set, bool [N], right under the gate's attack.
        recall: float [classes], clean recall of each class that occurs.
        trained_for: the threat models that the version carries.
        takes: what inputs it takes and what it answers with: shape and classes.
        guarded: it has a detector.
        false_positives: share of clean pictures that its detector flags; None unless the detector was tried.
        probe: its detector on attacked pictures; None likewise.
    """

    clean: Tensor
    attacked: dict[ThreatModel, Tensor]
    recall: Tensor
    trained_for: tuple[ThreatModel, ...]
    takes: str = ""
    guarded: bool = False
    false_positives: float | None = None
    probe: Probe | None = None


def judge(
    challenger: Measured,
    champion: Measured | None,
    requested: ThreatModel | None,
    *,
    attack: str = "PGD-20",
    fpr: float = 0.01,
    policy: Policy | None = None,
    lowered: bool = False,
) -> GateDecision:
    """Judge a challenger.

    Args:
        champion: None for the first version of a name, which only has to be a sound classifier.
        requested: the threat model that the run was asked to cover; None for a clean run.
        attack: the attack's name, for the record.
        fpr: the false-positive rate that the detectors were calibrated for.
        lowered: the run was asked to cover less than the champion, for the sake of clean accuracy.

    Raises:
        InvalidInput: when the two were measured on different pictures or threats.
    """
    policy = policy or Policy()
    if champion is None:
        rules = [_bootstrap(challenger, policy)]
    elif len(champion.clean) != len(challenger.clean) or champion.attacked.keys() != challenger.attacked.keys():
        raise InvalidInput("champion and challenger must be measured on the same pictures and threats")
    else:
        rules = [_same_inputs(challenger, champion), *_coverage(challenger, champion, lowered)]
        rules += _robustness(challenger, champion, requested, policy, lowered)
        rules += _clean(challenger, champion, requested, policy, lowered)
    had = champion is not None and champion.guarded
    rules += [_no_collapse(challenger), _false_positives(challenger, fpr, policy, had),
              *_detection(challenger, policy)]
    return GateDecision(rules=tuple(rules), n=len(challenger.clean), attack=attack)


def _bootstrap(challenger: Measured, policy: Policy) -> Rule:
    """Without a champion there is nothing to be better than: the first version has to be a classifier at all."""
    n, right = len(challenger.clean), int(challenger.clean.sum())
    chance = 1 / max(2, len(challenger.recall))
    floor = max(policy.bootstrap_accuracy, chance)
    # Beyond chance by more than noise (normal approximation, one-sided); a chosen floor is taken as it stands.
    least = floor if policy.bootstrap_accuracy > chance else chance + 1.645 * math.sqrt(chance * (1 - chance) / n)
    return rule("first version of this name, clean accuracy", f"{right / n:.4f}", f"at least {least:.4f}",
                right / n >= least)


def _same_inputs(challenger: Measured, champion: Measured) -> Rule:
    return rule("inputs and classes", challenger.takes, f"the champion's, {champion.takes}",
                challenger.takes == champion.takes)


def _coverage(challenger: Measured, champion: Measured, lowered: bool) -> list[Rule]:
    ours = ", ".join(map(str, challenger.trained_for)) or "nothing"
    name = "threat models that it was trained for"
    return [rule(name, ours, f"a set that contains the champion's {threat}" + (", but less was asked for" * lowered),
                 None if lowered else covers(challenger.trained_for, threat)) for threat in champion.trained_for]


def _robustness(
    challenger: Measured, champion: Measured, requested: ThreatModel | None, policy: Policy, lowered: bool
) -> list[Rule]:
    """One line for each threat model: better on the requested one, not worse on the others."""
    kinds = {threat: _kind(threat, challenger, requested, lowered) for threat in challenger.attacked}
    # The tests on the others share their level, so that a version that is as good everywhere passes them all.
    share = policy.worse_level / max(1, sum(kind == "not worse" for kind in kinds.values()))
    return [_one_threat(threat, kind, challenger, champion, policy, share) for threat, kind in kinds.items()]


def _kind(threat: ThreatModel, challenger: Measured, requested: ThreatModel | None, lowered: bool) -> str:
    if threat == requested:
        return "not worse" if lowered else "better"
    if lowered and not covers(challenger.trained_for, threat):
        return "given up"
    contained = any(covers((other,), threat) for other in challenger.attacked if other != threat)
    return "contained" if contained else "not worse"


def _one_threat(
    threat: ThreatModel, kind: str, challenger: Measured, champion: Measured, policy: Policy, share: float
) -> Rule:
    ours, theirs = challenger.attacked[threat], champion.attacked[threat]
    gain, by_chance = float(ours.float().mean() - theirs.float().mean()), 2 * min(discordant(ours, theirs))
    if kind == "given up":
        return rule(f"accuracy under {threat}, given up", f"{gain:+.4f}", "none: the run was asked for less", None)
    if kind == "contained":
        return rule(f"accuracy under {threat}, which a larger one contains", f"{gain:+.4f}",
                    f"a fall of at most {policy.contained_allowance:g}", gain >= -policy.contained_allowance)
    level = policy.level if kind == "better" else share
    smallest = detectable_difference(len(ours), by_chance / len(ours), level)
    if kind == "better":
        p = paired_p(ours, theirs)
        return rule(f"accuracy under {threat}, which was asked for: better", f"{gain:+.4f} (p {p:.2g})",
                    f"p at most {level:g}; {len(ours)} pictures show gains from about {smallest:.3f}", p <= level)
    p = paired_p(theirs, ours)
    return rule(f"accuracy under {threat}: not worse", f"{gain:+.4f} (p of being worse {p:.2g})",
                f"p above {level:g}; {len(ours)} pictures show losses from about {smallest:.3f}", p > level)


def _clean(
    challenger: Measured, champion: Measured, requested: ThreatModel | None, policy: Policy, lowered: bool
) -> list[Rule]:
    rules = []
    if requested is None or lowered:
        p = paired_p(challenger.clean, champion.clean)
        gain = float(challenger.clean.float().mean() - champion.clean.float().mean())
        rules.append(rule("clean accuracy, which was asked for: better", f"{gain:+.4f} (p {p:.2g})",
                          f"p at most {policy.level:g}", p <= policy.level))
    fall = float(champion.clean.float().mean() - challenger.clean.float().mean())
    allowance = clean_allowance(challenger.trained_for, champion.trained_for, policy)
    return [*rules, rule("fall in clean accuracy", f"{fall:+.4f}", f"at most {allowance:.4f}", fall <= allowance)]


def clean_allowance(ours, theirs, policy: Policy) -> float:
    """How much clean accuracy a challenger that covers `ours` may lose against a champion that covers `theirs`: what
    two versions may always differ by, and what the curve of each norm rises between the two."""
    costs = [policy.allowed(norm, 0.0) for norm in policy.clean_allowance]
    for threat in ours:
        before = max((other.epsilon for other in theirs if other.norm == threat.norm), default=0.0)
        rise = policy.allowed(threat.norm, threat.epsilon) - policy.allowed(threat.norm, before)
        costs.append(policy.allowed(threat.norm, 0.0) + max(0.0, rise))
    return max(costs)


def _no_collapse(challenger: Measured) -> Rule:
    chance, worst = 1 / max(2, len(challenger.recall)), float(challenger.recall.min())
    return rule("worst clean recall of a class", f"{worst:.3f}", f"at least {chance:.3f} (chance)", worst >= chance)


def _false_positives(challenger: Measured, fpr: float, policy: Policy, had: bool) -> Rule:
    """`had`: the champion has a detector. Without one the next champion would see no attack at all."""
    name = "detector's false positives"
    if challenger.false_positives is None:
        return rule(name, "no detector", "a detector, as the champion has", False) if had else (
            rule(name, "no detector", "none", None))
    # The limit leaves room for what a sample of this size can do by chance.
    limit = policy.fpr_slack * fpr + 3 * math.sqrt(fpr * (1 - fpr) / len(challenger.clean))
    return rule(name, f"{challenger.false_positives:.4f}", f"at most {limit:.4f}", challenger.false_positives <= limit)


def _detection(challenger: Measured, policy: Policy) -> list[Rule]:
    probe, least = challenger.probe, policy.detection
    if probe is None:
        return [rule("detector's strength error", "not measured", "none", None)]
    share = probe.flagged / probe.n
    rules = [rule(f"detector under {probe.threat}, share flagged", f"{share:.3f} of {probe.n}", f"at least {least:g}",
                  share >= least)]
    name, limit = f"detector under {probe.threat}, strength error", policy.strength_error
    if probe.estimate is None:
        asked = least > 0 and probe.n >= probe.needs
        return [*rules, rule(name, f"none: {probe.flagged} of {probe.n} flagged, read from {probe.needs} on",
                             f"at most {limit:g}", False if asked else None)]
    readable = min(probe.estimate, probe.true) > 0
    error = math.exp(abs(math.log(probe.estimate / probe.true))) - 1 if readable else math.inf
    return [*rules, rule(name, f"{error:.3f} (reads {probe.estimate:.4g}, is {probe.true:.4g})", f"at most {limit:g}",
                         error <= limit)]
