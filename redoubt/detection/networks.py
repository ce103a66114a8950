"""The detector's two small networks: one scores an input, the other reads the strength off many inputs' evidence."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

PIXELS = 63     # numbers of pixel evidence kept for each input: a learned projection and, last, the squashed score
EVIDENCE = PIXELS + 1   # and, behind them, the model's evidence: log odds of an attack; 0 where it was not asked
NORMS = ("Linf", "L2")   # the order of the strength network's outputs


class Scorer(nn.Module):
    """Features of one input to one logit, above the threshold for an attack.

    Standardisation is inside, so that saved weights are all that is needed.
    """

    def __init__(self, count: int, hidden: int = 96):
        super().__init__()
        self.register_buffer("mean", torch.zeros(count))
        self.register_buffer("scale", torch.ones(count))
        self.layers = nn.Sequential(
            nn.Linear(count, hidden), nn.GELU(), nn.Linear(hidden, hidden // 2), nn.GELU(), nn.Linear(hidden // 2, 1)
        )

    def standardise(self, features: Tensor) -> Tensor:
        return (features - self.mean) / self.scale

    def forward(self, features: Tensor) -> Tensor:
        """[N, F] -> [N]."""
        return self.layers(self.standardise(features))[:, 0]


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

    Source of the shape: Zaheer et al. 2017, arXiv 1703.06114. Several heads share the projection; head k learns from
    all rehearsed blocks but those of fold k, so that it can be judged on these (the cross-conformal idea of Vovk 2015).
    """

    def __init__(self, count: int, *, hidden: int = 128, folds: int = 4):
        super().__init__()
        self.folds = folds
        self.project = nn.Linear(count, PIXELS - 1)
        self.heads = nn.Sequential(
            _Stack(folds, PIXELS + 1, hidden), nn.GELU(), _Stack(folds, hidden, hidden), nn.GELU(),
            _Stack(folds, hidden, 2 * len(NORMS) + 2),
        )

    def evidence(self, standardised: Tensor, logit: Tensor) -> Tensor:
        """Standardised features [..., F] and logits [...] to evidence [..., PIXELS]; linear, but for the score."""
        return torch.cat([self.project(standardised), torch.tanh(logit / 8).unsqueeze(-1)], -1)

    def forward(self, pooled: Tensor, n: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Read campaigns.

        Args:
            pooled: mean pixel evidence, [B, PIXELS].
            n: inputs behind each mean, [B].

        Returns:
            For each head: ln(epsilon) in each norm's unit and its standard deviation, both [folds, B, norms], and two
            logits, [folds, B, 2]: that the norm is L2, and that the changes are harmless.
        """
        size = n.clamp(1, 64).log().unsqueeze(-1) / math.log(64)
        out = self.heads(torch.cat([pooled, size], -1).expand(self.folds, -1, -1))
        norms = len(NORMS)
        centre, spread = out[..., :norms] - 2, out[..., norms : 2 * norms]
        return centre, (spread.clamp(-5, 3) - 1).exp(), out[..., 2 * norms :]
