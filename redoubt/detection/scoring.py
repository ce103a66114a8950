"""Learning to score single inputs, attacked against clean and harmlessly changed ones, and where to draw the line."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from redoubt.detection.benign import BENIGN, NOISE, benign
from redoubt.detection.networks import Scorer, certainty

CONFIDENCE = 0.99    # of the bound of the realised false-positive rate
CLEAN, FLOAT, CHANGED, RANDOM = 4.0, 1.0, 0.3, 0.01   # what one picture of each sort weighs
DOUBTED = 0.2        # of clean pictures, and twice those that may be flagged, are looked at from more than one side
NEAR = 0.5           # the same of one that lies just across a boundary, where an attack weighs 1
_STRUCTURED = ("stripes", "coarse")   # noise with the texture of black-box search: scored as it comes
_RATE, _DECAY = 3e-3, 0.05
BATCH = 256          # pictures that the scorer reads at once
_SEEN, _PAIRS = 160, 80   # a step learns from so many pictures as they were made, and so many pairs beside them


@dataclass(frozen=True, kw_only=True)
class Examples:
    """Pictures to learn from.

    Attributes:
        x: float16 [N, C, S, S].
        sure: their `networks.certainty`, [N, CERTAINTY].
        weight: [N].
    """

    x: Tensor
    sure: Tensor
    weight: Tensor

    @classmethod
    def of(cls, model: nn.Module, x: Tensor, weight: float) -> Examples:
        return cls(x=x.half(), sure=answers(model, x), weight=torch.full((len(x),), weight, device=x.device))

    @classmethod
    def joined(cls, parts: list[Examples]) -> Examples:
        return cls(**{name: torch.cat([getattr(part, name) for part in parts]) for name in ("x", "sure", "weight")})

    def rows(self, chosen: Tensor) -> Examples:
        return Examples(x=self.x[chosen], sure=self.sure[chosen], weight=self.weight[chosen])


@torch.no_grad()
def answers(model: nn.Module, x: Tensor) -> Tensor:
    """How sure the model is of each picture: [N, C, S, S] to [N, CERTAINTY]."""
    return torch.cat([certainty(model(part).float().softmax(1)) for part in x.split(BATCH)])


@torch.no_grad()
def score(scorer: Scorer, model: nn.Module, x: Tensor) -> Tensor:
    """The scorer's logits of pictures [N, C, S, S]: [N]."""
    return torch.cat([scorer(part, certainty(model(part).float().softmax(1))) for part in x.split(BATCH)])


@torch.no_grad()
def scores(scorer: Scorer, examples: Examples) -> Tensor:
    """The same of examples."""
    parts = zip(examples.x.split(BATCH), examples.sure.split(BATCH), strict=True)
    return torch.cat([scorer(x.float(), sure) for x, sure in parts])


def harmless(model: nn.Module, x: Tensor, *, levels: int, most: int, generator: torch.Generator) -> Examples:
    """Clean and harmlessly changed pictures, at most so many of each kind.

    Random noise weighs next to nothing: an attack on an input whose gradient has vanished is little else, and that a
    campaign of noise is no attack is for the model's evidence to say, which adds up over inputs. A few clean pictures
    cannot teach what clean means: small splits are changed several times over.
    """
    parts, x = [], x[:most]
    for _ in range(max(1, min(8, 2000 // len(x)))):
        for kind in BENIGN:
            if kind in _STRUCTURED:
                continue
            weight = {"clean": CLEAN, "float": FLOAT}.get(kind, RANDOM if kind in NOISE else CHANGED)
            parts.append(Examples.of(model, benign(kind, x, levels=levels, generator=generator), weight))
    return Examples.joined(parts)


def fit_scorer(
    attacked: list[Examples], changed: list[Examples],
    pairs: Callable[[int, torch.Generator], tuple[Tensor, Tensor]], *, seed: int, steps: int,
) -> Scorer:
    """Learn to tell attacked pictures from the others.

    Half of each step are pairs whose pictures differ in nothing but the change: so the network learns the change, and
    cannot learn by heart the few pictures that were attacked.

    Args:
        attacked, changed: learned from where they lie, since joined they would be held twice; what weighs nothing is
            left out.
        pairs: gives n attacked pictures and behind them the same ones clean, as `Changes.pairs` does.

    Returns:
        The scorer, in eval mode; its logits mean nothing before a threshold is set.
    """
    parts = [*attacked, *changed]
    weight = torch.cat([part.weight for part in parts])
    device, at = weight.device, weight.nonzero()[:, 0]
    sure, weight = torch.cat([part.sure for part in parts])[at], weight[at]
    label = (at < sum(len(part.x) for part in attacked)).float()
    # Both sides weigh the same in all, however many attacks were rehearsed.
    weight = torch.where(label == 1, weight * (weight[label == 0].sum() / weight[label == 1].sum()), weight)
    weight = weight / weight.mean()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        scorer = Scorer(parts[0].x.shape[1]).to(device)
    scorer.mean.copy_(sure.mean(0))
    scorer.scale.copy_(sure.std(0) + 1e-3)
    learned = [*scorer.parameters(), *(part for norm in scorer.normalised() for part in norm.parameters())]
    optimizer = torch.optim.AdamW(learned, lr=_RATE, weight_decay=_DECAY, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _RATE, total_steps=steps)
    generator = torch.Generator().manual_seed(seed)
    which = (torch.arange(2 * _PAIRS, device=device) < _PAIRS).float()
    alike = torch.ones_like(which)
    for _ in range(steps):
        rows = torch.randint(len(at), (_SEEN,), generator=generator).to(device)
        paired, left = pairs(_PAIRS, generator)
        x = torch.cat([_pictures(parts, at[rows]), paired])
        x = _turned(x, generator).contiguous(memory_format=torch.channels_last)
        logit = scorer(x, torch.cat([sure[rows], left]))
        loss = F.binary_cross_entropy_with_logits(
            logit, torch.cat([label[rows], which]), weight=torch.cat([weight[rows], alike]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return scorer.settle()


def _pictures(parts: list[Examples], rows: Tensor) -> Tensor:
    """Those `rows` of all parts, counted one after the other: float [n, C, S, S]."""
    x = torch.empty(len(rows), *parts[0].x.shape[1:], device=rows.device)
    for part in parts:
        here = (rows >= 0) & (rows < len(part.x))
        x[here] = part.x[rows[here]].float()
        rows = rows - len(part.x)
    return x


def _turned(x: Tensor, generator: torch.Generator) -> Tensor:
    """Square pictures [N, C, S, S] mirrored, their axes and their channels exchanged: which way round a change lies and
    in which colour says nothing of what it is, and a few photographs' own colours are learned all too soon."""
    mirrored, upside_down, across = torch.rand(3, generator=generator) < 0.5
    x = x[:, torch.randperm(x.shape[1], generator=generator).to(x.device)] if x.shape[1] > 1 else x
    x = x.transpose(2, 3) if across else x
    return x.flip([axis for axis, turn in ((3, mirrored), (2, upside_down)) if turn])


def doubt(scorer: Scorer, model: nn.Module, clean: Tensor, fpr: float) -> None:
    """Have the scorer look again at `DOUBTED` of such clean pictures, those that score highest.

    A threshold may be set on the same pictures afterwards: the line is one quantile of all of them, and a fresh picture
    among them would have moved it by a rank at most.

    Args:
        clean: pictures that nothing was learned from, [N, C, S, S].
        fpr: share of clean pictures that may be flagged, below 0.5; at least twice as many are looked at again.
    """
    scorer.doubt.copy_(score(scorer, model, clean).quantile(1 - max(DOUBTED, 2 * fpr)))


def conformal_threshold(scores: Tensor, fpr: float) -> tuple[float, float]:
    """The threshold for a false-positive rate, and an upper bound of the rate that it truly has.

    With k of n + 1 exchangeable scores allowed above it, the threshold is the k-th largest of the n given: a fresh one
    exceeds it with probability k / (n + 1) at most (split conformal: Vovk et al. 2005). Given these n, that rate is
    distributed as Beta(k, n + 1 - k); the second value is its 99 % quantile.

    Args:
        scores: of clean pictures that fitting never saw, [n].
        fpr: the rate asked for; k is at least 1.
    """
    n = len(scores)
    k = max(1, math.floor((n + 1) * fpr))
    threshold = scores.sort(descending=True).values[k - 1].item()
    low, high = 0.0, 1.0
    for _ in range(60):   # the rate p at which fewer than k of n exceed with probability 1 - CONFIDENCE
        p = (low + high) / 2
        fewer = sum(math.exp(_log_binomial(n, i, p)) for i in range(k))
        low, high = (p, high) if fewer > 1 - CONFIDENCE else (low, p)
    return threshold, high


def _log_binomial(n: int, i: int, p: float) -> float:
    choose = math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1)
    return choose + i * math.log(p) + (n - i) * math.log1p(-p)
