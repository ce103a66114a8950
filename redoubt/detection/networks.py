"""The detector's two small networks: one scores an input, the other reads the strength off many inputs' evidence."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import fuse_conv_bn_eval

from redoubt.detection.features import neighbours_mean, neighbours_median

PIXELS = 62     # numbers of pixel evidence kept for each input: a learned projection and, last, the squashed score
CERTAINTY = 3   # numbers in `certainty`
ODDS = PIXELS   # behind them the model's evidence: log odds of an attack; 0 where it was not asked
WHOLE = ODDS + 1   # 1 where the picture holds whole levels, else 0
DETAIL = WHOLE + 1   # and a sketch of its detail, which tells whether others have the same
SKETCH = 32     # numbers in that
EVIDENCE = DETAIL + SKETCH
NORMS = ("Linf", "L2")   # the order of the strength network's outputs
LOGITS = 3   # of the strength network: that the norm is L2, that the changes are harmless, that they are coarse
COARSENESS = 2   # which of them is the last
SPREAD_FLOOR = 0.02   # no estimate of ln(epsilon) is trusted beyond this
_AGAIN = 64   # pictures looked at again in one go, which bounds the memory that they take


class Scorer(nn.Module):
    """A picture and how sure the classifier is of it to one logit, above the threshold for an attack.

    Three strided convolutions over what local differences leave of the picture, pooled over places. Any size of square
    picture will do.

    Buffers:
        doubt: a logit. What exceeds it at first sight is looked at from three more sides, and gets the mean of the
            four: which way round a change lies says nothing of what it is, but one look errs by more.
        mean, scale: of the `certainty` that it learned from, [CERTAINTY].
    """

    def __init__(self, channels: int, width: int = 24):
        super().__init__()
        sizes = ((3 * channels, width, 4), (width, 2 * width, 3), (2 * width, 2 * width, 3))
        self.layers = nn.ModuleList(nn.Conv2d(less, more, side, 2, 1) for less, more, side in sizes)
        self.norms: list[nn.Module] = [nn.Identity()] * len(sizes)
        self.register_buffer("doubt", torch.tensor(math.inf))
        self.register_buffer("mean", torch.zeros(CERTAINTY))
        self.register_buffer("scale", torch.ones(CERTAINTY))
        self.head = nn.Sequential(nn.Linear(4 * width + CERTAINTY, 48), nn.GELU(), nn.Linear(48, 1))
        self.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor, sure: Tensor) -> Tensor:
        """Pictures [N, C, S, S] in [0, 1] and their `certainty` [N, CERTAINTY] to logits [N]."""
        maps, sure = _maps(x), ((sure - self.mean) / self.scale).clamp(-4, 4)
        logit = self._look(maps, sure)
        doubted = (logit > self.doubt).nonzero()[:, 0]
        for rows in doubted.split(_AGAIN) if len(doubted) else ():   # of nothing, split makes one part
            upright = maps[rows]
            turned = upright.flip((2, 3))
            looks = [self._look(side.contiguous(memory_format=torch.channels_last), sure[rows])
                     for side in (turned, upright.transpose(2, 3), turned.transpose(2, 3))]
            logit = logit.index_copy(0, rows, torch.stack([logit[rows], *looks]).mean(0))
        return logit

    def _look(self, hidden: Tensor, sure: Tensor) -> Tensor:
        """Maps [N, 3 C, S, S] and scaled certainty [N, CERTAINTY] to logits [N]."""
        for layer, norm in zip(self.layers, self.norms, strict=True):
            hidden = norm(layer(hidden)).relu()
        return self.head(torch.cat([hidden.mean((2, 3)), hidden.amax((2, 3)), sure], 1))[:, 0]

    def normalised(self) -> list[nn.Module]:
        """Put batch normalisation behind each layer, for learning alone; give it to the optimizer."""
        self.norms = [nn.BatchNorm2d(layer.out_channels, device=layer.weight.device) for layer in self.layers]
        return self.norms

    def settle(self) -> Scorer:
        """Fold the normalisation into the layers and end learning."""
        self.layers = nn.ModuleList(
            fuse_conv_bn_eval(layer.eval(), norm.eval()) for layer, norm in zip(self.layers, self.norms, strict=True))
        self.norms = [nn.Identity()] * len(self.layers)
        return self.eval().requires_grad_(False).to(memory_format=torch.channels_last)


def certainty(probabilities: Tensor) -> Tensor:
    """How sure an answer is: [N, classes] to [N, CERTAINTY].

    The margin as a logarithm of odds, that on a scale which tells small ones apart, and the largest probability. What
    barely crosses a boundary is rarely an honest picture.
    """
    top = probabilities.topk(2, 1).values.nan_to_num(0.0).clamp_min(1e-6)
    margin = (top[:, 0] / top[:, 1]).log()
    return torch.stack([margin, (margin + 0.01).log(), top[:, 0]], 1)


def _maps(x: Tensor) -> Tensor:
    """Local differences, small ones spread apart: [N, C, S, S] to [N, 3 C, S, S].

    To the median of four neighbours, to the mean of nine pixels, and to the nearer of black and white.
    """
    padded = F.pad(x, (1, 1, 1, 1), mode="replicate")
    maps = torch.cat([x - neighbours_median(padded), x - neighbours_mean(padded), torch.minimum(x, 1 - x)], 1)
    return maps.sign() * ((maps.abs() + 0.01).sqrt() - 0.1)


class _Stack(nn.Module):
    """One dense layer for each of several heads at once: [heads, B, inputs] -> [heads, B, outputs]."""

    def __init__(self, heads: int, inputs: int, outputs: int):
        super().__init__()
        bound = 1 / math.sqrt(inputs)
        self.weight = nn.Parameter(torch.empty(heads, inputs, outputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(heads, 1, outputs).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        return torch.baddbmm(self.bias, x, self.weight)


class StrengthNet(nn.Module):
    """Mean evidence of a campaign to the logarithm of epsilon: a deep set with a mean as its pooling.

    Source of the shape: Zaheer et al. 2017, arXiv 1703.06114. Several heads share the projection; head k learns
    from all rehearsed blocks but its own, so that it can be judged on these (the cross-conformal idea of Vovk 2015).
    Not quite: the projection learns from all blocks through the other heads.
    """

    def __init__(self, count: int, *, hidden: int = 128, folds: int = 8):
        super().__init__()
        self.folds = folds
        self.register_buffer("mean", torch.zeros(count))
        self.register_buffer("scale", torch.ones(count))
        self.project = nn.Linear(count, PIXELS - 1)
        self.heads = nn.Sequential(
            _Stack(folds, PIXELS + 1, hidden), nn.GELU(), _Stack(folds, hidden, hidden), nn.GELU(),
            _Stack(folds, hidden, 2 * len(NORMS) + LOGITS),
        )

    def inputs(self, features: Tensor, logit: Tensor) -> Tensor:
        """Features [..., F] standardised and, behind them, the squashed logits [...]: [..., F + 1].

        Squashed, so that one certain input cannot drown the others.
        """
        return torch.cat([(features - self.mean) / self.scale, torch.tanh(logit / 8).unsqueeze(-1)], -1)

    def evidence(self, inputs: Tensor) -> Tensor:
        """`inputs` [..., F + 1] to evidence [..., PIXELS]; linear, so that means of the one give means of the other."""
        return torch.cat([self.project(inputs[..., :-1]), inputs[..., -1:]], -1)

    def forward(self, pooled: Tensor, n: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Read campaigns.

        Args:
            pooled: mean pixel evidence, [B, PIXELS].
            n: inputs behind each mean, [B].

        Returns:
            For each fold: ln(epsilon) in each norm's unit and its standard deviation, both [folds, B, norms], and
            logits, [folds, B, LOGITS]: that the norm is L2, that the changes are harmless, and that they are coarse.
        """
        size = n.clamp(1, 64).log().unsqueeze(-1) / math.log(64)
        out = self.heads(torch.cat([pooled, size], -1).expand(self.folds, -1, -1))
        norms = len(NORMS)
        centre, spread, logits = out[..., :norms] - 2, out[..., norms : 2 * norms], out[..., 2 * norms :]
        spread = (spread.clamp(-5, 3) - 1).exp()
        return centre, spread, logits

    def read(self, pooled: Tensor, n: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What all heads say at once of means [B, PIXELS] over n [B] inputs.

        Where they disagree, the campaign is unlike what they learned, and the spread is wider (deep ensembles:
        Lakshminarayanan et al. 2017, arXiv 1612.01474).

        Returns:
            ln(epsilon) and its standard deviation in each norm, [B, norms], and logits, [B, LOGITS].
        """
        centre, spread, logits = self(pooled, n)
        middle = centre.mean(0)
        variance = (spread.square() + (centre - middle).square()).mean(0)
        return middle, variance.sqrt(), logits.mean(0)


def widen(spread: Tensor) -> Tensor:
    """The network's own standard deviation of ln(epsilon), any shape, kept above a floor."""
    return (spread.square() + SPREAD_FLOOR**2).sqrt()


def scatter(centre: Tensor, spread: Tensor, levels: int) -> Tensor:
    """What single inputs may differ in without being of two strengths: their spread, and the step of the lattice.

    Args:
        centre, spread: ln(epsilon) in Linf and its standard deviation, of one shape.

    Returns:
        Standard deviation of ln(epsilon), of that shape; one level, spread evenly, has one of level / sqrt(12).
    """
    return (spread.square() + (1 / (levels * math.sqrt(12)) / centre.exp()).square()).sqrt()
