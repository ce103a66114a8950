"""Attackers who know the detector: one gradient through classifier and pixel evidence, several weights between them.

Each of 60 steps climbs cross-entropy minus weight times the detector's logit above its threshold, with sign steps of
epsilon / 10, then of epsilon / 40. The iterate that is kept is one that fools and passes, if there was any, else one
that fools. Printed for each epsilon and weight: accuracy, the share that fools, the share that fools and is not flagged
(what the attacker wants), and whether a campaign of what is still flagged would be answered. No target: this is what
detection is worth against those who know it.
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor

from benchmarks.common import Report, arguments, table
from benchmarks.detection import fitted
from benchmarks.unseen import EPSILONS, Subject, subjects
from redoubt.attacks import on_lattice
from redoubt.attacks.gradient import input_gradient
from redoubt.detection import Detector, decide
from redoubt.detection.networks import certainty

STEPS = 60
WEIGHTS = (0, 0.01, 0.1, 1)
HEADER = ("champion", "epsilon", "weight", "n", "accuracy", "fooled", "fooled unseen", "flagged", "campaign answered")


def aware(of: Subject, detector: Detector, x: Tensor, y: Tensor, epsilon: float, weight: float, steps: int) -> Tensor:
    """Inputs inside the Linf ball, on the lattice, that fool the classifier and, if they can, pass the detector."""
    levels, best = of.data.levels, x.clone()
    rank = torch.full((len(x),), -1)   # what the kept iterate achieves: nothing, fools, fools unseen
    generator = torch.Generator().manual_seed(0)
    x_adv = (x + epsilon * (2 * torch.rand(x.shape, generator=generator) - 1)).clamp(0, 1)
    for step in range(steps):
        gradient = input_gradient(of.model, x_adv, y)
        if weight:
            gradient = gradient - weight * _away(detector, x_adv)
        alpha = epsilon / (10 if step < 0.6 * steps else 40)
        moved = x_adv + alpha * gradient.sign()
        x_adv = torch.minimum(torch.maximum(moved, x - epsilon), x + epsilon).clamp(0, 1)
        with torch.no_grad():
            sent = on_lattice(x_adv, levels)
            fooled = of.model(sent).argmax(1) != y
            passed = _logit(detector, sent) <= detector.settings.threshold
        now = fooled.long() * (1 + passed.long()) - (~fooled).long()
        better = now >= rank
        best[better], rank = sent[better], torch.maximum(rank, now)
    return best


def _away(detector: Detector, x: Tensor) -> Tensor:
    """Gradient of the logit above the threshold, and of nothing once an input passes with a margin."""
    x = x.detach().requires_grad_()
    above = (_logit(detector, x) - detector.settings.threshold).clamp_min(-1)
    return torch.autograd.grad(above.sum(), x)[0].nan_to_num(0.0, 0.0, 0.0)


def _logit(detector: Detector, x: Tensor) -> Tensor:
    return detector.scorer(x, certainty(detector.model(x).softmax(1)))


def row(of: Subject, detector: Detector, epsilon: float, weight: float, n: int, steps: int) -> list:
    x, y = of.data.tensors("test", n)
    x_adv = aware(of, detector, x, y, epsilon, weight, steps)
    verdicts = detector.assess(x_adv)
    with torch.no_grad():
        fooled = of.model(x_adv).argmax(1) != y
    flagged = verdicts.is_adversarial
    evidence = verdicts.evidence[flagged]
    answered = "-"
    if len(evidence) >= 16:
        draw = torch.randint(len(evidence), (64,), generator=torch.Generator().manual_seed(0))
        answered = "yes" if decide(detector.campaign(evidence[draw]), of.covered).retrain else "no"
    shares = [(~fooled), fooled, fooled & ~flagged, flagged]
    return [of.name, f"{epsilon:.4f}", weight, n, *[share.float().mean().item() for share in shares], answered]


def main() -> int:
    args = arguments(__doc__, n={"type": int, "default": 200},
                     datasets={"nargs": "+", "default": list(EPSILONS), "choices": list(EPSILONS)},
                     champions={"nargs": "+", "default": ["undefended", "robust"], "choices": ["undefended", "robust"]})
    if args.quick:
        args.n, args.datasets, args.champions = 64, ["fashion-mnist"], ["undefended"]
    report, rows = Report(args, "Attackers who know the detector, compact-cnn"), []
    for of in subjects(args.datasets, args.champions, args.seed, args.data_dir, quick=args.quick):
        detector = fitted(of, args.seed, quick=args.quick)
        for epsilon in of.epsilons[2:3] if args.quick else of.epsilons[1:]:
            for weight in WEIGHTS:
                rows.append(row(of, detector, epsilon, weight, args.n, 20 if args.quick else STEPS))
    report.say(f"\n{table(HEADER, rows)}")
    report.figures["rows"] = {"columns": HEADER, "rows": rows}
    return report.close()


if __name__ == "__main__":
    sys.exit(main())
