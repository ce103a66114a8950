"""The strongest attack inside a campaign. One mean over weak decoys and a strong attack says little of either.

Inputs are ordered by their own strength, strongest first; candidates are nested upper parts of that order. A campaign
of one kind has such parts too, and they read stronger than the whole by selection alone: how much at most is measured
on rehearsed campaigns of one kind (`group_calibration.py`), and only what exceeds that is another attack; what is
unlike the rest of it is not read with it. In the same way an attack is sought among harmless changes, with the inputs
ordered by how little harmless they look.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

LEAST = 16      # inputs in a group, so that its norm can be told
SHARE = 0.18    # of the campaign that a group must hold, what is unlike it apart: 15 % may be false positives
REST = 1 / 3    # of the campaign that a group must leave, and as many as make one, to be held against these
CUTS = 4        # candidates, each inside the one before
UNLIKE = 3      # fewer than one input in so many of a group may be none of it
WILD = 1.5      # times as much as one of the whole may one input of a group scatter


def least(n: int) -> int:
    """How many of a campaign's n inputs make a group."""
    return max(LEAST, math.ceil(SHARE * n))


def nested(key: Tensor, smallest: int) -> list[Tensor]:
    """Sizes of the candidates: each parts the one before into two as unlike as possible, and keeps the stronger.

    Args:
        key: what inputs are ordered by, such as ln(epsilon) of each, [B, n], descending in each row.
        smallest: inputs in a candidate.

    Returns:
        `CUTS` sizes [B], each at most the one before and at most n.
    """
    size = torch.full((len(key),), key.shape[1], device=key.device)
    sizes = []
    for _ in range(CUTS):
        size = _cut(key, size, smallest)
        sizes.append(size)
    return sizes


def _cut(key: Tensor, size: Tensor, smallest: int) -> Tensor:
    """Where to part the first `size` of each row: the largest variance between two classes (Otsu 1979)."""
    above = torch.arange(1, key.shape[1] + 1, device=key.device)
    below = size.unsqueeze(1) - above
    total = key.cumsum(1)
    rest = total.gather(1, size.unsqueeze(1) - 1) - total
    between = above * below * (total / above - rest / below.clamp_min(1)).square()
    allowed = (above >= smallest) & (below > 0)
    best = between.masked_fill(~allowed, -1).argmax(1) + 1
    return torch.where(allowed.any(1), best, size)


def upper_means(rows: Tensor, sizes: list[Tensor]) -> list[Tensor]:
    """Means of the first `size` rows: [B, n, K] and sizes [B] -> [B, K] each."""
    sums = rows.cumsum(1)
    at = torch.arange(len(rows), device=rows.device)
    return [sums[at, size - 1] / size.unsqueeze(1) for size in sizes]


def near(single: Tensor, group: Tensor, base: Tensor) -> Tensor:
    """Which inputs read at least half as far above the base as the group does: ln(epsilon) of any shapes that
    broadcast, to bool."""
    return single - base >= 0.5 * (group - base)


def excess(group: Tensor, base: Tensor, single: Tensor, scatter: Tensor, size: Tensor) -> Tensor:
    """By how much groups read stronger than what they are held against, in units of what one input scatters: [B].

    What one of the group scatters, since an attack by itself would scatter like that, and the typical one of weak and
    strong inputs together is either; but at most `WILD` times what one of the whole does, or who makes half of his
    inputs hard to read would hide them all. A few strong inputs lift the mean of weak ones: a group of which a third is
    not `near` has no excess.

    Args:
        group, base: ln(epsilon) in Linf, which orders inputs in either norm, pooled, [B].
        single, scatter: the same of each input and its standard deviation, in the order of the groups, [B, n].
        size: inputs in each group, the first so many, [B].
    """
    outside = torch.arange(single.shape[1], device=single.device) >= size.unsqueeze(1)
    unlike = (~near(single, group.unsqueeze(1), base.unsqueeze(1)) & ~outside).sum(1)
    typical = torch.minimum(group, single.masked_fill(outside, torch.nan).nanmedian(1).values)
    unit = scatter.masked_fill(outside, torch.nan).nanmedian(1).values
    unit = torch.minimum(unit, WILD * scatter.median(1).values)
    return ((typical - base) / unit).masked_fill(UNLIKE * unlike >= size, 0.0)
