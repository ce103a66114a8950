"""Whether the probability that the detector gives comes true.

Fashion-MNIST, its undefended champion with the detector that the pipeline fits. Clean test pictures make up half of the
traffic, attacks on test pictures the other half: the rehearsed mix, made anew of pictures that nothing was fitted to,
which the probability is about, and attacks of the Adversarial Robustness Toolbox that were not rehearsed, which it
makes no promise of. Inputs are put in bins by what is said of them; printed is the mean of what was said, the share
that was attacked, and the expected calibration error, the mean distance of the two over bins.
"""

from __future__ import annotations

import sys
from itertools import pairwise

import torch
from torch import Tensor

from benchmarks.common import Report, arguments, table
from benchmarks.detection import fitted
from benchmarks.rehearsed import rehearsed
from benchmarks.unseen import Subject, adversarial, subjects
from redoubt.detection import Detector
from redoubt.detection.probability import at_share

EDGES = (0.0, 0.01, 0.05, 0.2, 0.4, 0.6, 0.8, 0.95, 0.99, 1.0)
MOST, WIDEST = 0.01, 0.1   # expected calibration error that the rehearsed mix may have; and distance in a single bin
UNSEEN = (("apgd", 0.03), ("apgd", 0.1), ("momentum", 0.05), ("transfer", 0.05), ("transfer", 0.1), ("square", 0.05))
HEADER = ("said", "mean said", "attacked", "share of the traffic")


def reliability(clean: Tensor, attacked: Tensor, weight: Tensor, share: float = 0.5) -> tuple[list, float]:
    """Rows of the table and the expected calibration error.

    Args:
        clean, attacked: probabilities said of either side, [n] and [m].
        weight: what each attacked input weighs, [m].
        share: of attacked traffic.
    """
    said = torch.cat([clean, attacked]).double()
    mass = torch.cat([torch.full_like(clean, (1 - share) / len(clean)), share * weight / weight.sum()]).double()
    true = torch.cat([torch.zeros_like(clean), torch.ones_like(attacked)]).double()
    rows, error = [], 0.0
    for low, high in pairwise(EDGES):
        inside = (said >= low) & ((said < high) | (high == 1.0))
        held = mass[inside].sum().item()
        if held:
            mean = (mass[inside] @ said[inside]).item() / held
            seen = (mass[inside] @ true[inside]).item() / held
            rows.append((f"{low:g} to {high:g}", mean, seen, held))
            error += held * abs(mean - seen)
    return rows, error


def unseen(of: Subject, detector: Detector, n: int, seed: int) -> Tensor:
    """Probabilities of inputs under attacks that were not rehearsed, [m]."""
    return torch.cat([detector.assess(adversarial(of, *attack, n, seed)[0]).probability for attack in UNSEEN])


def main() -> int:
    args = arguments(__doc__, n={"type": int, "default": 300, "help": "test pictures under each attack (default 300)"})
    report = Report(args, "Probability of an attack, Fashion-MNIST, compact-cnn")
    of = next(subjects(["fashion-mnist"], ["undefended"], args.seed, args.data_dir, quick=args.quick))
    detector = fitted(of, args.seed, quick=args.quick)
    clean = detector.assess(of.data.tensors("test")[0]).probability
    mix = rehearsed(of, detector, 36 if args.quick else 240, args.seed + 500).examples()
    said = detector.assess(mix.x.float()).probability
    for share in (0.5, 0.01):
        rows, error = reliability(at_share(clean, share), at_share(said, share), mix.weight, share)
        report.say(f"\nrehearsed mix, {len(said)} inputs, {share:.0%} of the traffic\n{table(HEADER, rows)}")
        report.say(f"expected calibration error {error:.4f}")
        report.figures[f"rehearsed mix {share}"] = {"columns": HEADER, "rows": rows, "error": error}
        report.require(error <= MOST, f"expected calibration error {error:.4f} at {share:.0%}, at most {MOST}")
        for name, mean, seen, _ in rows if share == 0.5 and not args.quick else ():   # a small version's bins are thin
            report.require(abs(mean - seen) <= WIDEST, f"{name}: {mean:.3f} said, {seen:.3f} attacked")
    if not args.quick:
        other = unseen(of, detector, args.n, args.seed)
        rows, error = reliability(clean, other, torch.ones_like(other))
        report.say(f"\nnot rehearsed, {len(other)} inputs, half of the traffic\n{table(HEADER, rows)}")
        report.say(f"expected calibration error {error:.4f}, nothing is promised")
        report.figures["not rehearsed"] = {"columns": HEADER, "rows": rows, "error": error}
    return report.close()


if __name__ == "__main__":
    sys.exit(main())
