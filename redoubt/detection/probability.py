"""From a score to the probability of an attack: two slopes and an offset, learned on pictures that nothing else saw.

The score's margin over the threshold says which of two inputs is the likelier attack, not how likely it is. Beta
calibration (Kull, Silva Filho & Flach 2017) of the margin's sigmoid makes a probability of it: monotone, with one slope
below the threshold and another above. It holds for traffic of which half is attacked with the mix of attacks that was
rehearsed, and half is clean; `at_share` gives it for another share.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from redoubt.errors import InvalidInput

_ROUNDS = 200


def probability(margin: Tensor, numbers: list[float]) -> Tensor:
    """The probability of an attack where half of the traffic is attacked.

    Args:
        margin: logits above the threshold, of any shape.
        numbers: what `calibrate_probability` gave: the slope below the threshold, the one above, and the offset.

    Returns:
        The same shape, in [0, 1]; nowhere falling as the margin rises.
    """
    below, above, offset = numbers
    return torch.sigmoid(above * F.softplus(margin) - below * F.softplus(-margin) + offset)


def at_share(half: Tensor, share: float) -> Tensor:
    """The probability of an attack where another share of the traffic is attacked, by Bayes' rule.

    Args:
        half: `Verdicts.probability`, which is that for a share of one half.
        share: of attacked inputs, in (0, 1).

    Raises:
        InvalidInput: for a share outside (0, 1).
    """
    if not 0 < share < 1:
        raise InvalidInput(f"share must lie between 0 and 1, not {share}")
    return half * share / (half * share + (1 - half) * (1 - share))


def calibrate_probability(clean: Tensor, attacked: Tensor, weight: Tensor) -> list[float]:
    """Fit the two slopes and the offset by maximum likelihood, both sides weighing the same.

    Args:
        clean: margins of clean pictures, [n].
        attacked: margins of attacked ones, [m].
        weight: what each attacked one weighs, [m].

    Returns:
        The slope below the threshold and the one above, neither negative, and the offset.
    """
    margin = torch.cat([clean, attacked]).double().cpu()
    # Targets short of 0 and 1 keep the slopes finite where the sides do not overlap (Platt 1999).
    target = torch.cat([torch.full_like(clean, 1 / (len(clean) + 2)),
                        torch.full_like(attacked, (len(attacked) + 1) / (len(attacked) + 2))]).double().cpu()
    share = torch.cat([torch.full_like(clean, 0.5 / len(clean)), weight / weight.sum() / 2]).double().cpu()
    pieces = torch.stack([-F.softplus(-margin), F.softplus(margin), torch.ones_like(margin)])
    roots = torch.tensor([1.0, 1.0, 0.0], dtype=torch.double, requires_grad=True)   # of the slopes, and the offset
    optimizer = torch.optim.LBFGS([roots], max_iter=_ROUNDS, line_search_fn="strong_wolfe", tolerance_grad=1e-9)

    def numbers() -> Tensor:
        return torch.cat([roots[:2].square(), roots[2:]])

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.binary_cross_entropy_with_logits(numbers() @ pieces, target, weight=share, reduction="sum")
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(loss)
    return numbers().tolist()
