"""From a reading of ln(epsilon) and its spread to bounds of stated coverage."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from redoubt.detection.networks import SPREAD_FLOOR

SIZES = (1, 4, 16, 32)           # campaign sizes at which bounds are calibrated; in smaller blocks, the block's
LEVELS = (0.01, 0.99)            # quantiles of the scaled error, kept for each norm, size and grain
FLOORS = (SPREAD_FLOOR, 0.05)    # of the spread that scales the error, below and above; see `scaled`
# Of a single input: an interval that holds 92.7 % of those that were rehearsed. It goes farther above than below, since
# others are mostly read too small: so it holds nine in ten of most of these, too.
SINGLE, SINGLE_FLOOR = (0.07, 0.997), 0.1
FINE, COARSE = 0, 1
ANY, OWN = 0, 1   # whose errors: those of every kind of attack, and of kinds along the model's own gradient
SURELY_FINE = -4.0   # the logit of coarseness below which a campaign is judged by the errors of fine ones
ENOUGH = 400    # held-out campaigns, four of a block, without which nothing has a 99 % quantile of its own
_FEWEST, MOST = 0.6, 0.9   # inputs in whole levels: from which share on they count, and count in full
_HAIR = 1e-3    # of a level: float32 puts 8 / 255 on either side of it
_KIND = 40      # of one kind in a grain: what strayed into the other grain has no bias, only noise


def grain(coarse: Tensor) -> Tensor:
    """`FINE` or `COARSE` of logits of coarseness, any shape.

    A change that is smooth over many pixels, or made of squares, hides in what pictures hold anyway. How its strength
    is misread says little of how that of fine ones is.
    """
    return torch.where(coarse < SURELY_FINE, FINE, COARSE)


def scaled(spread: Tensor) -> Tensor:
    """The spread of ln(epsilon) [...] as it scales the error for each of `LEVELS`: [..., LEVELS].

    How sure the network is of what it has never seen says less than how sure it is of what it learned: the larger the
    floor, the more alike the bounds of all (normalised conformal prediction: Papadopoulos & Haralambous 2011). Above,
    the floor keeps room for attacks that reach their bound in few pixels, which are read too small with assurance.
    Below, weak attacks are read too large, and the network knows that it is unsure of them.
    """
    return (spread.unsqueeze(-1).square() + torch.tensor(FLOORS, device=spread.device).square()).sqrt()


def calibrated(error: Tensor, spread: Tensor, coarse: Tensor, kind: Tensor) -> Tensor:
    """Quantiles of a scaled error by grain (Mondrian conformal prediction: Vovk, Gammerman & Shafer 2005).

    Args:
        error: ln epsilon - estimate on held-out campaigns, [M].
        spread: what they were said to err by, [M].
        coarse: their logit of coarseness, [M].
        kind: their kind of attack, [M].

    Returns:
        [2, LEVELS]: of fine ones their own, of coarse ones whichever lies farther out, their own or that of all. Of all
        for both where either has too few.
    """
    error = error.unsqueeze(1) / scaled(spread)
    fine, every = grain(coarse) == FINE, _widest(error, kind, 1)
    if min(fine.sum(), (~fine).sum()) < ENOUGH:
        return every.repeat(2, 1)
    own = [_widest(error[rows], kind[rows], _KIND) for rows in (fine, ~fine)]
    return torch.stack([own[0], wider(own[1], every)])


def scaled_single(spread: Tensor) -> Tensor:
    """The spread of ln(epsilon) as it scales the error of single inputs, the same below and above, any shape."""
    return (spread.square() + SINGLE_FLOOR**2).sqrt()


def of_singles(error: Tensor, spread: Tensor, coarse: Tensor) -> Tensor:
    """Quantiles at `SINGLE` of the scaled error of single inputs, over all kinds of attack together (split conformal
    prediction: Papadopoulos et al. 2002), by grain: [2, 2]; of all for both where either has too few.

    Args:
        error, spread, coarse: as for `calibrated`, of inputs that nothing was learned from, read as in service, [M].
    """
    error, fine = (error / scaled_single(spread)).unsqueeze(1).expand(-1, 2), grain(coarse) == FINE
    if min(fine.sum(), (~fine).sum()) < ENOUGH:
        return _quantiles(error, SINGLE).repeat(2, 1)
    return torch.stack([_quantiles(error[rows], SINGLE) for rows in (fine, ~fine)])


def wider(one: Tensor, other: Tensor) -> Tensor:
    """Of two tables [..., LEVELS] the entries that lie farther out."""
    return torch.where(torch.tensor(LEVELS) < 0.5, torch.minimum(one, other), torch.maximum(one, other))


def narrowed(every: Tensor, own: Tensor) -> Tensor:
    """Tables of `ANY` and `OWN`, [2, ..., LEVELS], from what was calibrated on all and on those along the gradient.

    Whether to train is asked of the lower bound, which stays that of all; how far, of the upper, which is lowered where
    the attack is known better, and never raised.
    """
    return torch.stack([every, torch.where(torch.tensor(LEVELS) < 0.5, every, torch.minimum(every, own))])


def _widest(error: Tensor, kind: Tensor, least: int) -> Tensor:
    """Quantiles of `error` [M, LEVELS] at `LEVELS`, for the kind [M] whose mean error lies farthest out.

    A kind has too few blocks for a 99 % quantile of its own: scatter is pooled over kinds, bias is taken at its worst.
    Kinds of fewer than `least` count as scatter about the mean of all.
    """
    bias, scatter = [error.mean(0)], error - error.mean(0)
    for one in kind.unique():
        rows = kind == one
        if rows.sum() >= least:
            bias.append(error[rows].mean(0))
            scatter[rows] = error[rows] - bias[-1]
    bias = torch.stack(bias)
    return _quantiles(scatter, LEVELS) + torch.where(torch.tensor(LEVELS) < 0.5, bias.amin(0), bias.amax(0))


def _quantiles(error: Tensor, levels: tuple[float, float]) -> Tensor:
    """The quantile of each column of `error` [M, 2] that it is there for: [2]."""
    return torch.stack([column.quantile(level) for column, level in zip(error.unbind(1), levels, strict=True)])


def scaled_error(table: Tensor, coarse: Tensor, n: int) -> Tensor:
    """Quantiles of the scaled error of readings with those logits of coarseness [...] over n inputs: [..., LEVELS].

    Args:
        table: [SIZES, 2, LEVELS], what `calibrated` gives for each size; between two sizes the value lies between
            theirs by the logarithm of n.
    """
    at, place = math.log(min(max(n, SIZES[0]), SIZES[-1])), [math.log(size) for size in SIZES]
    right = next(i for i in range(1, len(place)) if at <= place[i])
    share = (at - place[right - 1]) / (place[right] - place[right - 1])
    return (table[right - 1] * (1 - share) + table[right] * share)[grain(coarse)]


def in_whole_levels(
    low: float, estimate: float, high: float, levels: int, share: float = 1.0
) -> tuple[float, float, float]:
    """The same interval for an attack that arrived in whole levels: its upper bound need not lie between two of them.

    It holds a whole number of levels as often as before. The lower bound stays: a hair decides there whether to
    retrain. An interval without a whole number has missed the truth, and is left as it is.

    Args:
        low, estimate, high: in order; in [0, 1].
        levels: largest stored pixel value.
        share: of the inputs that hold whole levels. The bound is lowered by less where some do not, and not at all
            where two in five do not; gradually, so that a few inputs sent in fractions move it little.
    """
    whole = math.floor(high * levels + _HAIR) / levels
    weight = min(max((share - _FEWEST) / (MOST - _FEWEST), 0.0), 1.0)
    if whole <= 0 or whole < low or weight == 0:
        return low, estimate, high
    most = whole if weight == 1 else high + weight * (whole - high)
    return low, min(estimate, most), most
