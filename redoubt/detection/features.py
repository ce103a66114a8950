"""Pixel evidence: how often small differences of each size occur in one picture.

A perturbation bounded by epsilon piles its changes up at that bound, and a picture has places where they lie bare:
pixels near black or white, flat neighbourhoods, channels that move together. Histograms over the *logarithm* of such
differences turn a stronger attack into the same shape shifted along the axis. In colour so do the largest differences
within windows, for what is smooth over some pixels. No class, label or gradient enters.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Scale:
    """Bins evenly spaced in the logarithm, the centres of the first and the last of them as differences."""

    bins: int
    lowest: float
    highest: float


WIDE = Scale(bins=40, lowest=0.003, highest=0.8)
NARROW = Scale(bins=64, lowest=0.5 / 255, highest=0.4)   # 9 % a bin: where a picture is flat, a bound shows as an edge
FLAT = (0.0, 0.2, 0.5)   # the flattest fifth of a picture, and what comes next up to half of it
SPANS = Scale(bins=64, lowest=1 / 255, highest=0.9)
SHIFTS = (1, 2, 4, 8)   # by so much windows of 2 x 2 are shifted, one after the other, to make those of 3, 5, 9 and 17
_AT_ONCE = 2**20         # numbers of pictures looked at in one go: fewer stay in the caches, and bound the memory


def feature_count(channels: int) -> int:
    """How many features `features` gives for pictures of so many channels."""
    if channels == 1:
        return (WIDE.bins + 1) * 8
    return (WIDE.bins + 1) * 9 + (NARROW.bins + 1) * 3 * (len(FLAT) - 1) + (SPANS.bins + 1) * 2 * len(SHIFTS)


def features(x: Tensor) -> Tensor:
    """Root histograms of small differences.

    Args:
        x: pictures, float [N, C, S, S] in [0, 1].

    Returns:
        [N, `feature_count(C)`], each the square root of a share of pixels or windows, which evens out the noise of
        counting.
    """
    if x.numel() > _AT_ONCE and len(x) > 1:
        return torch.cat([features(part) for part in x.split(max(1, _AT_ONCE // x[0].numel()))])
    residual = x - neighbours_median(F.pad(x, (1, 1, 1, 1), mode="replicate"))
    whole = [_log_histogram(part.flatten(1), WIDE) for part in _differences(x, residual)]
    if x.shape[1] > 1:
        whole += [_log_histogram(part, NARROW) for part in _where_flat(x, residual)]
        whole += [_log_histogram(part.flatten(1), SPANS) for part in _spans(x)]
    return torch.cat(whole, 1).sqrt()


def neighbours_median(padded: Tensor) -> Tensor:
    """The median of each pixel's four neighbours, of pictures with one pixel more on each side: without a sort, the sum
    less the extremes."""
    left, right = padded[..., 1:-1, :-2], padded[..., 1:-1, 2:]
    above, below = padded[..., :-2, 1:-1], padded[..., 2:, 1:-1]
    most = torch.maximum(torch.maximum(left, right), torch.maximum(above, below))
    least = torch.minimum(torch.minimum(left, right), torch.minimum(above, below))
    return (left + right + above + below - most - least) / 2


def neighbours_mean(padded: Tensor) -> Tensor:
    """The mean of each pixel and its eight neighbours, of pictures with one pixel more on each side.

    What `avg_pool2d` gives, of float32 on a CPU to the last bit and in a half to a fifteenth of the time.
    """
    height, width = padded.shape[2] - 2, padded.shape[3] - 2
    parts = [padded[..., row : row + height, column : column + width] for row in range(3) for column in range(3)]
    total = parts[0] + parts[1]
    for part in parts[2:]:
        total += part
    return total / 9


def _differences(x: Tensor, residual: Tensor) -> list[Tensor]:
    parts = [x, 1 - x, (x[..., 1:] - x[..., :-1]).abs(), (x[..., 1:, :] - x[..., :-1, :]).abs(), residual.abs()]
    half, quarter = F.avg_pool2d(x, 2, ceil_mode=True), F.avg_pool2d(x, 4, ceil_mode=True)
    parts.append((half - neighbours_median(F.pad(half, (1, 1, 1, 1), mode="replicate"))).abs())
    parts += [torch.cat([(small[..., 1:] - small[..., :-1]).abs().flatten(1),
                         (small[..., 1:, :] - small[..., :-1, :]).abs().flatten(1)], 1) for small in (half, quarter)]
    if x.shape[1] > 1:
        parts.append((residual - residual.roll(1, dims=1)).abs())
    return parts


def _where_flat(x: Tensor, residual: Tensor) -> list[Tensor]:
    """The residual, the step to the right and the difference of channels where the picture is flat, [N, P] each.

    Flat is where the mean over 5 x 5 pixels has little slope: there what was added lies bare, and nothing else piles up
    at its bound. Each picture is compared with itself, so that all have flat places. Of colour alone: with more numbers
    than they need, strengths of grey ones are learned by heart.
    """
    mean = F.avg_pool2d(F.pad(x, (3, 3, 3, 3), mode="replicate"), 5, 1)
    slope = (mean[..., 1:-1, 2:] - mean[..., 1:-1, :-2]).abs() + (mean[..., 2:, 1:-1] - mean[..., :-2, 1:-1]).abs()
    order = slope.sum(1).flatten(1).argsort(1)
    right = (x - F.pad(x, (0, 1, 0, 0), mode="replicate")[..., 1:]).abs()
    parts = [residual.abs(), right, (residual - residual.roll(1, dims=1)).abs()]
    cuts = [round(share * order.shape[1]) for share in FLAT]
    places = [order[:, low:high].unsqueeze(1).expand(-1, x.shape[1], -1) for low, high in pairwise(cuts)]
    return [part.flatten(2).gather(2, at).flatten(1) for at in places for part in parts]


def _spans(x: Tensor) -> Iterator[Tensor]:
    """The largest less the smallest in windows of 3, 5, 9 and 17 pixels a side, of channels and of what they differ in.

    A change that is smooth over some pixels moves neighbours alike, and flattens its own plateaus. Where it reaches its
    bound at both ends within a window, the span is twice the bound give or take what the picture has there, and of
    channels that move against each other four times. Of colour alone, as `_where_flat`; of a small picture windows are
    as large as there is room.
    """
    x = _without_specks(x)
    most = torch.stack([x, x - x.roll(1, dims=1)])
    most, least = _largest(most, 1), _largest(-most, 1)   # windows of 2 x 2
    for shift in SHIFTS:
        most, least = _largest(most, shift), _largest(least, shift)
        yield from (most + least).unbind()


def _without_specks(x: Tensor) -> Tensor:
    """Every pixel drawn to the range of its eight neighbours: one that sticks out would do so in all windows round it,
    and four could cover every window of 17 in 32 x 32."""
    return torch.minimum(torch.maximum(x, -_around(-x)), _around(x))


def _around(x: Tensor) -> Tensor:
    """The largest of each pixel's eight neighbours; what lies beyond the border is not one."""
    padded = F.pad(x, (1, 1, 1, 1), value=-torch.inf)
    beside = torch.maximum(padded[..., :-2], padded[..., 2:])
    row = torch.maximum(beside, padded[..., 1:-1])
    return torch.maximum(torch.maximum(row[..., :-2, :], row[..., 2:, :]), beside[..., 1:-1, :])


def _largest(x: Tensor, shift: int) -> Tensor:
    """The largest of each place and those so many further on, or as many as there are, along both axes.

    Of windows of s pixels with a shift of s - 1 it makes windows of 2 s - 1, far cheaper than `max_pool2d` on a CPU.
    [..., H, W] to [..., H - shift, W - shift].
    """
    for axis in (-2, -1):
        step = min(shift, x.shape[axis] - 1)
        length = x.shape[axis] - step
        x = torch.maximum(x.narrow(axis, 0, length), x.narrow(axis, step, length))
    return x


def _log_histogram(values: Tensor, scale: Scale) -> Tensor:
    """Shares over the scale's bins, each value divided between its two neighbours: [N, P] -> [N, bins + 1].

    The first bin takes everything below the range: differences of nought.
    """
    lowest, bins = math.log(scale.lowest), scale.bins
    width = (math.log(scale.highest) - lowest) / (bins - 1)
    place = values.clamp_min(1e-6).log_().sub_(lowest).div_(width).clamp_(-1, bins - 1)
    left = place.floor().clamp_max_(bins - 2)
    share = place.sub_(left)
    left = left.long() + 1
    counts = torch.zeros(len(values), bins + 1, device=values.device)
    counts.scatter_add_(1, left, 1 - share).scatter_add_(1, left + 1, share)
    return counts / max(values.shape[1], 1)
