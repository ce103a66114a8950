"""The drill's figures: correctness on the whole test split, and whether that is recovery."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor

from pipelines.drill.options import DrillOptions
from redoubt.attacks import fgsm
from redoubt.data import Prepared
from redoubt.evaluation.accuracy import correct, withstands_pgd
from redoubt.promotion.paired import paired_p

ORACLE_SHARE = 0.97
ENOUGH = 5000   # test pictures from which on sampling error is no excuse


def correctness(model, data: tuple[Tensor, Tensor], options: DrillOptions) -> dict[str, Tensor]:
    """For clean, FGSM and PGD-20 pictures at the attacker's threat model: bool [N], right or not. Fresh, white-box."""
    generator = torch.Generator().manual_seed(options.seed + 1)
    return {
        "clean": correct(model, *data),
        "fgsm": correct(model, *data, attack=lambda m, x, y: fgsm(m, x, y, options.threat)),
        "pgd20": withstands_pgd(model, *data, options.threat, steps=20, generator=generator),
    }


def accuracies(right: dict[str, Tensor]) -> dict[str, float]:
    """Shares of right answers."""
    return {name: float(values.float().mean()) for name, values in right.items()}


def oracle(data: Path, folder: Path, options: DrillOptions, progress) -> dict[str, Tensor]:
    """Train from scratch, in the pipeline's default way, with the epsilon that only the drill knows."""
    from components.train.step import run

    bundle = run(data, folder, norm=options.norm, epsilon=options.epsilon, seed=options.seed,
                 progress=progress)
    return correctness(bundle.model(), Prepared.open(data).tensors("test"), options)


def recovery(after: dict[str, Tensor], before: dict[str, Tensor], best: dict[str, Tensor] | None) -> str:
    """Empty when the model recovered under a fresh PGD-20, else why it did not.

    With an oracle: the new champion's accuracy must reach 97 % of the oracle's; on fewer than 5,000 pictures it may lie
    below by the sampling error of the paired difference (one-sided 95 %). Without an oracle: it must beat the
    undefended model by ten points and beyond noise: that it got better, not that it got as good as it can be.
    """
    ours = after["pgd20"].float()
    if best is None:
        gain = float(ours.mean() - before["pgd20"].float().mean())
        if gain < 0.1 or paired_p(after["pgd20"], before["pgd20"]) > 0.01:
            return f"accuracy under a fresh PGD-20 rose by only {gain:.3f}, needs 0.1"
        return ""
    gap = ours - ORACLE_SHARE * best["pgd20"].float()
    slack = 1.645 * float(gap.std()) / math.sqrt(len(gap)) if len(gap) < ENOUGH else 0.0
    if float(gap.mean()) < -slack:
        return (f"accuracy under a fresh PGD-20 is {float(ours.mean()):.3f}, needs "
                f"{ORACLE_SHARE} x the oracle's {float(best['pgd20'].float().mean()):.3f}")
    return ""
