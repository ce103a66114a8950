"""Pixel evidence: how often small differences of each size occur in one picture.

A perturbation bounded by epsilon piles its changes up at that bound, and a picture has places where they lie bare:
pixels near black or white, flat neighbourhoods, channels that move together. Histograms over the *logarithm* of such
differences turn a stronger attack into the same shape shifted along the axis. No class, label or gradient enters.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

BINS = 40
_LOWEST, _HIGHEST = math.log(0.003), math.log(0.8)   # centres of the first and last bin, as ln(difference)


def feature_count(channels: int) -> int:
    """How many features `features` gives for pictures of so many channels."""
    return (BINS + 1) * (9 if channels > 1 else 8)


def features(x: Tensor) -> Tensor:
    """Root histograms of small differences.

    Args:
        x: pictures, float [N, C, S, S] in [0, 1].

    Returns:
        [N, `feature_count(C)`], each the square root of a share of pixels, which evens out the noise of counting.
    """
    return torch.cat([_log_histogram(part.flatten(1)) for part in _differences(x)], 1).sqrt()


def neighbours_median(padded: Tensor) -> Tensor:
    """The median of each pixel's four neighbours, of pictures with one pixel more on each side: without a sort, the sum
    less the extremes."""
    left, right = padded[..., 1:-1, :-2], padded[..., 1:-1, 2:]
    above, below = padded[..., :-2, 1:-1], padded[..., 2:, 1:-1]
    most = torch.maximum(torch.maximum(left, right), torch.maximum(above, below))
    least = torch.minimum(torch.minimum(left, right), torch.minimum(above, below))
    return (left + right + above + below - most - least) / 2


def _differences(x: Tensor) -> list[Tensor]:
    residual = x - neighbours_median(F.pad(x, (1, 1, 1, 1), mode="replicate"))
    parts = [x, 1 - x, (x[..., 1:] - x[..., :-1]).abs(), (x[..., 1:, :] - x[..., :-1, :]).abs(), residual.abs()]
    half, quarter = F.avg_pool2d(x, 2, ceil_mode=True), F.avg_pool2d(x, 4, ceil_mode=True)
    parts.append((half - neighbours_median(F.pad(half, (1, 1, 1, 1), mode="replicate"))).abs())
    parts += [torch.cat([(small[..., 1:] - small[..., :-1]).abs().flatten(1),
                         (small[..., 1:, :] - small[..., :-1, :]).abs().flatten(1)], 1) for small in (half, quarter)]
    if x.shape[1] > 1:
        parts.append((residual - residual.roll(1, dims=1)).abs())
    return parts


def _log_histogram(values: Tensor) -> Tensor:
    """Shares over log-spaced bins, each value divided between its two neighbours: [N, P] -> [N, BINS + 1].

    The first bin takes everything below the range: differences of nought.
    """
    width = (_HIGHEST - _LOWEST) / (BINS - 1)
    place = values.clamp_min(1e-6).log_().sub_(_LOWEST).div_(width).clamp_(-1, BINS - 1)
    left = place.floor().clamp_max_(BINS - 2)
    share = place.sub_(left)
    left = left.long() + 1
    counts = torch.zeros(len(values), BINS + 1, device=values.device)
    counts.scatter_add_(1, left, 1 - share).scatter_add_(1, left + 1, share)
    return counts / max(values.shape[1], 1)
