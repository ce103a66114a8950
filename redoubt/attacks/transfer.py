"""Black-box by transfer: attack a surrogate, send the result to the target."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from redoubt.attacks.gradient import momentum_pgd
from redoubt.threat import ThreatModel


def transfer(
    surrogate: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, *, attack: Callable = momentum_pgd, **options
) -> Tensor:
    """Adversarial inputs made on `surrogate` alone (Papernot et al. 2016, arXiv 1605.07277).

    The target is never asked: whoever calls sends the result to it. Momentum transfers best of the simple attacks.
    """
    return attack(surrogate, x, y, threat, **options)
