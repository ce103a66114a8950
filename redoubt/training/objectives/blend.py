"""PGD adversarial training that leaves every fourth image of the batch clean: the default."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from redoubt.training.objectives.standard import Attack, surprise

CLEAN_EVERY = 4


def attacked(n: int, first: int, device: torch.device) -> Tensor:
    """Which of `n` images are attacked, as numbers: those whose number in the whole batch is no multiple of
    `CLEAN_EVERY`. By arithmetic, not by a mask: the host would have to wait for how many a mask holds.

    Args:
        first: the number of the first one in the whole batch, of which the `n` may be a part.
    """
    clean = -first % CLEAN_EVERY   # the first clean one
    rows = torch.arange(n - max(0, -(-(n - clean) // CLEAN_EVERY)), device=device)
    return rows + (rows - clean) // (CLEAN_EVERY - 1) + 1


def blend(model: nn.Module, x: Tensor, y: Tensor, attack: Attack, *, lam: float, smoothing: float = 0.0) -> Tensor:
    """Cross-entropy of the partly attacked batch.

    At large epsilons purely adversarial training gives up whole classes, while a few clean images cost hardly any
    robustness and save their share of the attack. Figures: docs/benchmarks.md.
    """
    rows = attacked(len(x), getattr(attack, "first", 0), x.device)
    if len(rows):   # a micro-batch may hold a clean image alone
        x = x.index_copy(0, rows, attack(x, y, rows))
    return surprise(model(x), y, smoothing)
