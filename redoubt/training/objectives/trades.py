"""TRADES (Zhang et al. 2019, arXiv 1901.08573): accuracy by the label, robustness by agreement with oneself."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from redoubt.training.objectives.standard import Attack, surprise


def trades(model: nn.Module, x: Tensor, y: Tensor, attack: Attack, *, lam: float, smoothing: float = 0.0) -> Tensor:
    """Clean cross-entropy plus `lam` times KL(p(x) || p(x_adv)); the attack maximises that divergence, not a label's.

    `lam` is the paper's 1/lambda; 6 is its value for CIFAR-10. Smoothing touches the label's term alone. The paper
    starts its attack from tiny Gaussian noise; here it starts anywhere in the ball, as PGD does.
    """
    logits = model(x)
    apart = F.kl_div(F.log_softmax(model(attack(x, None)), 1), F.log_softmax(logits, 1),
                     reduction="none", log_target=True).sum(1)
    return surprise(logits, y, smoothing) + lam * apart
