"""What training minimises. An objective maps (model, x, y, attack) to a scalar loss.

`attack(x, y)` returns adversarial inputs for the threat model of this step, without touching weight gradients.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Attack = Callable[[Tensor, Tensor], Tensor]
CLEAN_EVERY = 4


def standard(model: nn.Module, x: Tensor, y: Tensor, attack: Attack, *, lam: float) -> Tensor:
    """Cross-entropy on clean inputs: an undefended model."""
    return F.cross_entropy(model(x), y)


def pgd(model: nn.Module, x: Tensor, y: Tensor, attack: Attack, *, lam: float) -> Tensor:
    """Cross-entropy on adversarial inputs alone (Madry et al. 2018, arXiv 1706.06083)."""
    return F.cross_entropy(model(attack(x, y)), y)


def mixed(model: nn.Module, x: Tensor, y: Tensor, attack: Attack, *, lam: float) -> Tensor:
    """Clean plus `lam` times adversarial cross-entropy (the weighted form of Goodfellow et al. 2015)."""
    return F.cross_entropy(model(x), y) + lam * F.cross_entropy(model(attack(x, y)), y)


def half(model: nn.Module, x: Tensor, y: Tensor, attack: Attack, *, lam: float) -> Tensor:
    """The 50/50 mix: every other image of the batch is attacked, the rest stays clean (Kurakin et al. 2017)."""
    x = x.clone()
    x[::2] = attack(x[::2], y[::2])
    return F.cross_entropy(model(x), y)


def blend(model: nn.Module, x: Tensor, y: Tensor, attack: Attack, *, lam: float) -> Tensor:
    """PGD adversarial training that leaves every fourth image of the batch clean: the default.

    At large epsilons purely adversarial training gives up whole classes, while a few clean images cost hardly any
    robustness and save their share of the attack. Figures: docs/benchmarks.md.
    """
    clean = torch.arange(len(x), device=x.device) % CLEAN_EVERY == 0
    x = x.clone()
    x[~clean] = attack(x[~clean], y[~clean])
    return F.cross_entropy(model(x), y)


OBJECTIVES = {"standard": standard, "pgd": pgd, "mixed": mixed, "half": half, "blend": blend}
