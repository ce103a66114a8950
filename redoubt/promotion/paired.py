"""Paired comparison of two classifiers on the same pictures."""

from __future__ import annotations

import math
from statistics import NormalDist

import torch
from torch import Tensor


def discordant(ours: Tensor, theirs: Tensor) -> tuple[int, int]:
    """Pictures that only `ours` classified rightly, and those that only `theirs` did; bool [N] each."""
    return int((ours & ~theirs).sum()), int((theirs & ~ours).sum())


def paired_p(ours: Tensor, theirs: Tensor) -> float:
    """Exact one-sided McNemar test: the chance of at least so many wins for `ours` if both models were equally good.

    Args:
        ours, theirs: bool [N], correctness on the same pictures.
    """
    wins, losses = discordant(ours, theirs)
    tosses = wins + losses
    if tosses == 0:
        return 1.0
    k = torch.arange(wins, tosses + 1, dtype=torch.float64)
    logs = math.lgamma(tosses + 1) - torch.lgamma(k + 1) - torch.lgamma(tosses - k + 1)
    return float(torch.exp(torch.logsumexp(logs, 0) - tosses * math.log(2)).clamp(max=1))


def detectable_difference(n: int, share: float = 0.15, level: float = 0.05, power: float = 0.95) -> float:
    """The smallest difference in accuracy that a paired test at `level` finds with probability `power` (normal
    approximation).

    Args:
        n: pictures.
        share: of the pictures, those on which exactly one of two models is right that are equally good. A difference
            adds to it: what is solved for is g = z sqrt((share + g) / n).
    """
    z = NormalDist().inv_cdf(1 - level) + NormalDist().inv_cdf(power)
    half = z * z / n / 2
    return min(1.0, half + math.sqrt(half * half + z * z * share / n))
