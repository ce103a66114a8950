"""What a picture's small detail does to the classifier: the numbers that tell an attack from chance.

Detail is what a smoothed copy has lost. One way to smooth does not fit all: the mean over neighbours takes fine noise
away and leaves coarse, repeated it takes nearly everything; a mean over neighbours of like colour spares a photograph's
edges; and on a plain background, black or white, whatever differs a little from it was added.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from redoubt.detection.benign import blur

MEASURES = 52       # numbers in `measures`
_PART, _FLOATS = 24, 24 * 3 * 32 * 32   # pictures that are tried at once, in twenty ways each; fewer of large ones
_REPEATED = 6       # means over neighbours until squares and waves are gone, which outlast one
_LIKE, _REACH = 0.12, 2   # colours that differ less than this are alike, and how many pixels away they count
_LITTLE = 0.1       # so far from black or white lies what may have been added to a plain background
_WAVES = 8          # each real wave is two of them
_NOTHING = 1e-5     # of a detail; far below a level of 8 bits


@torch.no_grad()
def measures(model: nn.Module, x: Tensor) -> Tensor:
    """What a picture's detail does to the classifier, against what it would do elsewhere or with other signs.

    Costs 25 forward passes and four backward passes, most of them in one batch. The classifier is left as it is.

    Args:
        model: in eval mode, from pictures to logits.
        x: float [N, C, S, S] in [0, 1].

    Returns:
        [N, MEASURES]; every number is free of the scale of logits and finite.
    """
    if len(x) == 0:
        return x.new_zeros(0, MEASURES)
    logits, smooths = model(x), _smooths(x)
    first, once = logits.argmax(1), smooths[0]
    smoothed, gradients, seconds = (
        part.split(len(x)) for part in _at_smoothed(model, torch.cat(smooths), first.repeat(len(smooths))))
    tried = [trial for smooth in smooths for trial in _elsewhere(x, smooth)] + _shaken(x, x - once)
    answers = model(torch.cat(tried).clamp(0, 1)).split(len(x))   # one pass: few inputs at a time are dear
    rows = [number for smooth in (once, *smooths[2:]) for number in _texture(x - smooth)]
    for i, smooth in enumerate(smooths):
        rows += _detail(x - smooth, gradients[i], logits, smoothed[i], seconds[i], answers[4 * i : 4 * i + 4])
    rows += _nearby(logits, answers[4 * len(smooths) :])
    return torch.stack(rows, 1).nan_to_num(0.0, 0.0, 0.0).clamp(-20, 20)


def measured(model: nn.Module, x: Tensor) -> Tensor:
    """`measures` of any number of pictures, in parts: each picture is tried in twenty ways, all of a part at once."""
    return torch.cat([ask() for ask in asking(model, x)])


def asking(model: nn.Module, x: Tensor) -> list[Callable[[], Tensor]]:
    """The parts of `measured`, to be called in any order."""
    size = max(1, min(_PART, _FLOATS // x[:1].numel())) if len(x) else 1
    return [partial(measures, model, part) for part in x.split(size)]


def _smooths(x: Tensor) -> tuple[Tensor, ...]:
    """Smoothed copies of the pictures: the mean over neighbours once and repeated, over like ones, and off a plain
    background."""
    once = blur(x)
    repeated = once
    for _ in range(_REPEATED - 1):
        repeated = blur(repeated)
    return once, repeated, _like(x), _plain(x)


def _like(x: Tensor) -> Tensor:
    """The mean over the neighbours, each weighing by how like in colour it is (Tomasi and Manduchi 1998)."""
    height, width = x.shape[2:]
    around, side = F.pad(x, (_REACH,) * 4, mode="replicate"), range(2 * _REACH + 1)
    total, weights = torch.zeros_like(x), torch.zeros_like(x[:, :1])
    for row in side:
        for column in side:
            near = around[:, :, row : row + height, column : column + width]
            weight = ((near - x).square().mean(1, keepdim=True) / -(_LIKE**2)).exp()
            total, weights = total + weight * near, weights + weight
    return total / weights


def _plain(x: Tensor) -> Tensor:
    """The pictures moved by `_LITTLE` towards black or white, whichever there is more of in each, and no further.

    A plain background loses what was added to it, and the rest a little of its brightness.
    """
    dark, light = ((part < _LITTLE).flatten(1).float().mean(1) for part in (x, 1 - x))
    return torch.where((dark >= light).view(-1, 1, 1, 1), (x - _LITTLE).clamp_min(0), (x + _LITTLE).clamp_max(1))


def _elsewhere(x: Tensor, smooth: Tensor) -> list[Tensor]:
    """The smoothed picture with the detail that it lost, twice under other signs and twice at other places."""
    detail = x - smooth
    third, fourth = max(1, x.shape[-1] // 3), max(1, x.shape[-1] // 4)
    flipped = [smooth + detail * _signs(detail, seed) for seed in (0, 1)]
    return flipped + [smooth + turn * detail.roll((turn * third, fourth), (2, 3)) for turn in (1, -1)]


def _shaken(x: Tensor, detail: Tensor) -> list[Tensor]:
    """The picture under random changes as large as the detail, either way, and under changes twice as large."""
    size = detail.abs().flatten(1).mean(1).view(-1, 1, 1, 1)
    return [x + turn * times * size * _signs(x, 2) for times in (1, 2) for turn in (1, -1)]


def _detail(
    detail: Tensor, gradient: Tensor, logits: Tensor, smoothed: Tensor, second: Tensor, answers: Sequence[Tensor]
) -> list[Tensor]:
    """How the detail lost by smoothing lies to the gradient there, and what it does to the margin of the answer.

    Args:
        smoothed, second: the smoothed picture's logits, and the best class there but the answer.
        answers: logits of what `_elsewhere` gives.
    """
    first = logits.argmax(1)
    unit, own = logits.std(1).clamp_min(1e-6), _margin(logits, first, second)
    margins = [_margin(answer, first, second) for answer in answers]
    flat = detail / (blur(detail.abs()) + 2 / 255)   # edges count no more than a perturbation of a plain area
    pointed = gradient.sign()
    pointed = pointed - blur(pointed)
    aligned, fine = _cosine(flat, pointed), detail - blur(detail)
    fine = torch.where(fine.abs() < _NOTHING, 0.0, fine)   # of a constant detail rounding errors are left
    return [
        aligned, aligned.abs(), _cosine(fine, pointed), _cosine(detail, gradient),
        (own - _margin(smoothed, first, second)) / unit, (own - sum(margins[:2]) / 2) / unit,
        (own - sum(margins[2:]) / 2) / unit, (smoothed.argmax(1) != first).float(),
    ]


def _nearby(logits: Tensor, answers: Sequence[Tensor]) -> list[Tensor]:
    """How sure the answer is, and how it stands random changes: `answers` are logits of what `_shaken` gives."""
    best = logits.topk(2, 1)
    first, second = best.indices.unbind(1)
    unit, own = logits.std(1).clamp_min(1e-6), best.values[:, 0] - best.values[:, 1]
    out = [own / unit]
    for both in (answers[:2], answers[2:]):
        out.append((sum(_margin(answer, first, second) for answer in both) / 2 - own) / unit)
        out.append(sum((answer.argmax(1) != first).float() for answer in both) / 2)
    return out


def _texture(detail: Tensor) -> list[Tensor]:
    """Size of the detail, whether it runs in rows, in columns or in patches, and how much of it is few waves: what
    noise must be compared at."""
    power = detail.square().flatten(1).mean(1).clamp_min(1e-9)
    size = detail.shape[-1]
    rows, columns = (detail.mean(axis).square().flatten(1).mean(1) * size / power for axis in (3, 2))
    near = (detail[..., 1:] * detail[..., :-1]).flatten(1).mean(1) / power
    return [power.log() / 2, rows.clamp_max(20).log1p(), columns.clamp_max(20).log1p(), near, _waving(detail)]


def _waving(detail: Tensor) -> Tensor:
    """The share of the detail's power in the `_WAVES` strongest of its frequencies, of which a constant is none:
    [N, C, S, S] to [N]."""
    power = torch.fft.fft2(detail).abs().square().sum(1).flatten(1)
    return power[:, 1:].topk(min(_WAVES, power.shape[1] - 1)).values.sum(1) / power.sum(1).clamp_min(1e-9)


def _margin(logits: Tensor, first: Tensor, second: Tensor) -> Tensor:
    return (logits.gather(1, first[:, None]) - logits.gather(1, second[:, None]))[:, 0]


def _at_smoothed(model: nn.Module, smooth: Tensor, first: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of the smoothed copy, the gradient there of class `first` over the best other one, and that other one."""
    # A caller may be in inference mode, whose tensors no gradient may meet: outside it a clone is an ordinary one.
    with torch.inference_mode(False), torch.enable_grad():
        smooth, first = smooth.clone().requires_grad_(), first.clone()
        logits = model(smooth)
        second = logits.detach().scatter(1, first[:, None], -math.inf).argmax(1)
        gradient = torch.autograd.grad(_margin(logits, first, second).sum(), smooth)[0]
    return logits.detach(), gradient, second


def _signs(like: Tensor, seed: int) -> Tensor:
    """The same pattern of signs for every picture, so that an answer does not depend on the batch."""
    drawn = torch.rand(like.shape[1:], generator=torch.Generator().manual_seed(seed)) < 0.5
    return drawn.to(like) * 2 - 1


def _cosine(one: Tensor, other: Tensor) -> Tensor:
    return F.cosine_similarity(one.flatten(1), other.flatten(1), eps=1e-12)
