"""The 50/50 mix (Kurakin et al. 2017, arXiv 1611.01236): half the attack's price."""

from __future__ import annotations

from torch import Tensor, nn

from redoubt.training.objectives.standard import Attack, surprise


def half(model: nn.Module, x: Tensor, y: Tensor, attack: Attack, *, lam: float, smoothing: float = 0.0) -> Tensor:
    """Every other image of the batch is attacked, the rest stays clean."""
    rows = slice(getattr(attack, "first", 0) % 2, None, 2)   # even numbers in the whole batch
    if len(x[rows]):   # a micro-batch may hold a clean image alone
        attacked = attack(x, y, rows)
        x = x.clone()
        x[rows] = attacked
    return surprise(model(x), y, smoothing)
