"""The gate: whether a new version may become champion. Pure functions from measurements to a decision record.

What is compared are correctness vectors: for each picture of the gate split, whether a model classified it rightly,
clean or under an attack. Champion and challenger see the same pictures, attacks and seeds, so the tests are paired.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from redoubt.errors import InvalidInput
from redoubt.threat import ThreatModel, covers


@dataclass(frozen=True, kw_only=True)
class Policy:
    """What the gate demands.

    Attributes:
        level: of the paired tests, the chance that noise alone passes for a difference.
        clean_allowance: accuracy points (as a fraction) that robustness may cost on clean pictures, for each unit of
            Linf epsilon added to what the champion covers. Measured on Fashion-MNIST; see docs/architecture.md.
        clean_allowance_floor: the same, regardless of epsilon.
        contained_allowance: accuracy that may be lost under a threat model that a larger one of the set contains.
        fpr_slack: the detector's false-positive rate on the gate split may be this many times the chosen one.
    """

    level: float = 0.05
    clean_allowance: float = 0.8
    clean_allowance_floor: float = 0.03
    contained_allowance: float = 0.03
    fpr_slack: float = 3.0


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One model on the gate split.

    Attributes:
        clean: bool [N], right on the clean picture.
        attacked: for each threat model of the requested set, bool [N], right under the gate's attack.
        recall: float [classes], clean recall of each class that occurs.
        trained_for: the threat models that the version carries.
        takes: what inputs it takes and what it answers with: shape and classes.
        false_positives: share of clean pictures that its detector flags; None without a detector.
    """

    clean: Tensor
    attacked: dict[ThreatModel, Tensor]
    recall: Tensor
    trained_for: tuple[ThreatModel, ...]
    false_positives: float | None = None
    takes: str = ""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One line of the decision record: `value` was held against `limit`."""

    rule: str
    value: str
    limit: str
    passed: bool


@dataclass(frozen=True, kw_only=True)
class GateDecision:
    """Whether the version is promoted, and every rule that was judged."""

    promoted: bool
    rules: tuple[Rule, ...]
    n: int
    attack: str

    @property
    def reason(self) -> str:
        """One line: the rules that failed, or that all passed."""
        failed = [f"{rule.rule} is {rule.value}, needs {rule.limit}" for rule in self.rules if not rule.passed]
        return "; ".join(failed) or "every rule passed"

    def to_json(self) -> dict:
        return asdict(self) | {"reason": self.reason}


def paired_p(ours: Tensor, theirs: Tensor) -> float:
    """Exact one-sided McNemar test: the chance of at least so many wins for `ours` if both models were equally good.

    Args:
        ours, theirs: bool [N], correctness on the same pictures.
    """
    wins, losses = int((ours & ~theirs).sum()), int((theirs & ~ours).sum())
    tosses = wins + losses
    if tosses == 0:
        return 1.0
    logs = torch.tensor([math.lgamma(tosses + 1) - math.lgamma(k + 1) - math.lgamma(tosses - k + 1)
                         for k in range(wins, tosses + 1)], dtype=torch.float64)
    return float(torch.exp(torch.logsumexp(logs, 0) - tosses * math.log(2)).clamp(max=1))


def detectable_difference(n: int, discordant: float = 0.15, level: float = 0.05, power: float = 0.95) -> float:
    """The smallest gain in accuracy that a paired test on `n` pictures finds with probability `power` (normal
    approximation), when `discordant` of the pictures divide the two models."""
    normal = torch.distributions.Normal(0.0, 1.0)
    z = normal.icdf(torch.tensor(1 - level)) + normal.icdf(torch.tensor(power))
    return float(z * math.sqrt(discordant / n))


def judge(
    challenger: Measured,
    champion: Measured | None,
    requested: ThreatModel | None,
    *,
    attack: str = "PGD-20",
    fpr: float = 0.01,
    policy: Policy | None = None,
) -> GateDecision:
    """Judge a challenger.

    Args:
        champion: None for the first version of a name, which only has to be a sound classifier.
        requested: the threat model that the run was asked to cover; None for a clean run.
        attack: the attack's name, for the record.
        fpr: the false-positive rate that the detectors were calibrated for.

    Raises:
        InvalidInput: when the two were measured on different pictures or threats.
    """
    policy = policy or Policy()
    rules = _soundness(challenger, fpr, policy)
    if champion is not None:
        if len(champion.clean) != len(challenger.clean) or champion.attacked.keys() != challenger.attacked.keys():
            raise InvalidInput("champion and challenger must be measured on the same pictures and threats")
        rules += _against(challenger, champion, requested, policy)
    return GateDecision(
        promoted=all(rule.passed for rule in rules), rules=tuple(rules), n=len(challenger.clean), attack=attack
    )


def _soundness(challenger: Measured, fpr: float, policy: Policy) -> list[Rule]:
    chance = 1 / len(challenger.recall)
    worst = float(challenger.recall.min())
    rules = [Rule(rule="worst clean recall of a class", value=f"{worst:.3f}", limit=f"at least {chance:.3f} (chance)",
                  passed=worst >= chance)]
    if challenger.false_positives is not None:
        # The limit leaves room for what a sample of this size can do by chance.
        limit = policy.fpr_slack * fpr + 3 * math.sqrt(fpr * (1 - fpr) / len(challenger.clean))
        rules.append(Rule(rule="detector's false positives", value=f"{challenger.false_positives:.4f}",
                          limit=f"at most {limit:.4f}", passed=challenger.false_positives <= limit))
    return rules


def _against(challenger: Measured, champion: Measured, requested: ThreatModel | None, policy: Policy) -> list[Rule]:
    rules = []
    for threat in champion.trained_for:
        rules.append(Rule(rule="the set that it was trained for",
                          value=", ".join(map(str, challenger.trained_for)) or "empty",
                          limit=f"one that contains the champion's {threat}",
                          passed=covers(challenger.trained_for, threat)))
    rules.append(Rule(rule="inputs and classes", value=challenger.takes, limit=f"the champion's, {champion.takes}",
                      passed=challenger.takes == champion.takes))
    for threat, ours in challenger.attacked.items():
        theirs = champion.attacked[threat]
        gain = float(ours.float().mean() - theirs.float().mean())
        if any(covers((other,), threat) for other in challenger.attacked if other != threat):
            rules.append(Rule(rule=f"accuracy under {threat}, which a larger one contains", value=f"{gain:+.4f}",
                              limit=f"a fall of at most {policy.contained_allowance}",
                              passed=gain >= -policy.contained_allowance))
            continue
        p = paired_p(theirs, ours)
        rules.append(Rule(rule=f"accuracy under {threat}, not worse",
                          value=f"{gain:+.4f} (p of being worse {p:.2g})", limit=f"p above {policy.level}",
                          passed=p > policy.level or gain >= 0))
        if requested == threat:
            p = paired_p(ours, theirs)
            smallest = detectable_difference(len(ours), level=policy.level)
            rules.append(Rule(rule=f"accuracy under the requested {threat}, better",
                              value=f"{gain:+.4f} (p {p:.2g})",
                              limit=f"p at most {policy.level}; n {len(ours)} shows gains from about {smallest:.3f}",
                              passed=p <= policy.level))
    if requested is None:
        p = paired_p(challenger.clean, champion.clean)
        rules.append(Rule(rule="clean accuracy, better", value=f"p {p:.2g}", limit=f"p at most {policy.level}",
                          passed=p <= policy.level))
    fall = float(champion.clean.float().mean() - challenger.clean.float().mean())
    allowance = clean_allowance(challenger.trained_for, champion.trained_for, policy)
    rules.append(Rule(rule="fall in clean accuracy", value=f"{fall:+.4f}", limit=f"at most {allowance:.4f}",
                      passed=fall <= allowance))
    return rules


def clean_allowance(ours, theirs, policy: Policy) -> float:
    """How much clean accuracy the challenger may lose: it grows with the Linf epsilon that it covers beyond the
    champion's, and an L2 ball that is new counts as a tenth."""
    added = 0.0
    for threat in ours:
        before = max((other.epsilon for other in theirs if other.norm == threat.norm), default=0.0)
        grown = max(0.0, threat.epsilon - before)
        added = max(added, grown if threat.norm == "Linf" else min(grown, 1.0) * 0.1)
    return policy.clean_allowance_floor + policy.clean_allowance * added
