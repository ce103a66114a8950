"""Learning to read strength: from rehearsed attacks, their changes on other pictures, and harmless ones beside them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from redoubt.detection.bounds import narrowed, wider
from redoubt.detection.changes import Changes
from redoubt.detection.drawn import drawn
from redoubt.detection.features import features
from redoubt.detection.flagged import flagged_blocks
from redoubt.detection.group_calibration import calibrate_groups
from redoubt.detection.networks import Scorer, StrengthNet, certainty
from redoubt.detection.rehearsal import Rehearsal, is_coarse
from redoubt.detection.scoring import BATCH, RANDOM, Examples, score, scores
from redoubt.detection.strength import HARMLESS, Rehearsed, calibrate, fit_strength


@dataclass(frozen=True, kw_only=True)
class LearnedStrength:
    """The network that reads strength, with what it was calibrated to; the names are those of `Settings`."""

    net: StrengthNet
    quantiles: Tensor
    l2_logit: float
    harmless_logit: float
    attack_logit: float
    apart: list[float]
    blocks: int


def learn_strength(
    model: nn.Module, scorer: Scorer, threshold: float, x: Tensor, rehearsal: Rehearsal, logits: Tensor, usable: Tensor,
    changes: Changes, changed: Examples, *, kinds: list[str], epsilon: tuple[float, float], levels: int, config,
    seed: int,
) -> LearnedStrength:
    """Fit and calibrate the network that reads strength.

    Args:
        x: trusted pictures, [N, C, S, S].
        rehearsal, logits, usable: attacks, the scorer's logits of them, and which may be learned from, [B, n] both.
        changes: what the attacks added, to be put on other pictures.
        changed: clean and harmlessly changed pictures, of which the mildly changed may be false alarms.
        kinds: the harmless changes that pixels are to know.
        epsilon: the range of Linf.
        config: a `FitConfig`.
    """
    sight = _widened(rehearsal, logits, usable, changes, scorer, threshold, times=config.moved, seed=seed)
    kept = flagged_blocks(x, levels, kinds, partial(score, scorer, model), threshold, seed,
                          count=max(4 * len(kinds), config.blocks // 4), size=config.block_size * (1 + config.moved))
    net = _untaught(rehearsal, kept[0], seed)
    blocks = _blocks(net, rehearsal, sight, *kept, len(kinds))
    count, size = blocks.usable.shape
    del sight, kept   # all of this is large
    suspects = _suspects(net, scorer, changed.rows(changed.weight > RANDOM))
    if config.drawn:
        blocks = _joined(blocks, _judged_drawn(
            model, scorer, threshold, net, x, blocks=config.drawn, size=size, epsilon=epsilon, levels=levels,
            seed=seed + 31))
    learned, blocks = blocks, blocks.head(count)   # of attacks that were drawn no bound is taken
    fit_strength(net, learned, suspects, seed=seed, steps=config.strength_steps)
    seen = blocks.first(config.block_size)   # what serving meets; the others only widen bounds
    quantiles, l2_logit, harmless_logit = calibrate(net, seen, suspects, seed=seed)
    quantiles = wider(quantiles, calibrate(net, blocks, suspects, seed=seed)[0]) if config.moved else quantiles
    apart, attack_logit = calibrate_groups(net, seen, suspects, levels=levels, seed=seed)
    return LearnedStrength(net=net, quantiles=narrowed(*quantiles), l2_logit=l2_logit, harmless_logit=harmless_logit,
                           attack_logit=attack_logit, apart=apart, blocks=len(blocks.norm))


def _untaught(rehearsal: Rehearsal, kept: Tensor, seed: int) -> StrengthNet:
    """A network that knows what features are usual, and nothing else."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = StrengthNet(kept.shape[-1]).to(kept.device)
    usual = torch.cat([rehearsal.seen[rehearsal.real], kept.flatten(0, 1)])
    net.mean.copy_(usual.mean(0))
    net.scale.copy_(usual.std(0) + 0.02)
    return net


@torch.no_grad()
def _widened(rehearsal: Rehearsal, logits: Tensor, usable: Tensor, changes: Changes, scorer: Scorer, threshold: float,
             *, times: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Attack blocks as they were seen, and in each behind them its changes again on other pictures, `times` over.

    Returns:
        Features [B, n (1 + times), F], logits and which are usable, both [B, n (1 + times)].
    """
    size, generator = rehearsal.real.shape[1], torch.Generator().manual_seed(seed + 17)
    parts = [(rehearsal.seen, logits, usable)]
    for _ in range(times):
        seen, found = [], []
        for x, sure, kept in changes.again(max(1, BATCH // size) * size, generator):
            seen.append(features(x).unflatten(0, (-1, size)))
            found.append(torch.where(kept, scorer(x, sure), -torch.inf).view(-1, size))
        found = torch.cat(found)
        usable = rehearsal.real & rehearsal.telling.unsqueeze(1) & (found > threshold)
        parts.append((torch.cat(seen), found.masked_fill(~usable, 0.0), usable))
    return tuple(torch.cat(part, 1) for part in zip(*parts, strict=True))


@torch.no_grad()
def _blocks(net: StrengthNet, rehearsal: Rehearsal, sight: tuple[Tensor, Tensor, Tensor], kept: Tensor, logits: Tensor,
            kinds: int) -> Rehearsed:
    """Attack blocks with their logits, of which usable inputs count, and the harmless ones `kept`, of which all do.

    Args:
        sight: features, logits and which inputs are usable, of attack blocks.
    """
    seen, attacked, usable = sight
    kind = torch.arange(len(kept), device=kept.device) % kinds
    return Rehearsed(
        inputs=torch.cat([net.inputs(seen, attacked), net.inputs(kept, logits)]),
        usable=torch.cat([usable, torch.ones_like(logits, dtype=torch.bool)]),
        log_epsilon=torch.cat([rehearsal.log_epsilon, torch.zeros_like(logits[:, 0])]),
        norm=torch.cat([rehearsal.norm, torch.full_like(kind, HARMLESS)]),
        kind=torch.cat([rehearsal.kind, kind]),
        coarse=torch.cat([rehearsal.coarse, torch.zeros_like(kind, dtype=torch.bool)]),
    )


@torch.no_grad()
def _judged_drawn(model: nn.Module, scorer: Scorer, threshold: float, net: StrengthNet, x: Tensor, **plan) -> Rehearsed:
    """Blocks under attacks along random fields, as `drawn` makes them from `x` by the `plan`.

    They are called the first kind, which means nothing: no bound is taken from them.
    """
    inputs, usable, logs, coarse = [], [], [], []
    for changed, clean, strength in drawn(x, **plan):
        logit = scorer(changed, certainty(model(changed).softmax(1)))
        usable.append(logit > threshold)
        inputs.append(net.inputs(features(changed), logit))
        logs.append(math.log(strength))
        coarse.append(is_coarse(changed - clean))
    zeros = torch.zeros(len(logs), dtype=torch.long, device=x.device)
    return Rehearsed(inputs=torch.stack(inputs), usable=torch.stack(usable), norm=zeros, kind=zeros,
                     log_epsilon=torch.tensor(logs, device=x.device), coarse=torch.tensor(coarse, device=x.device))


def _joined(one: Rehearsed, other: Rehearsed) -> Rehearsed:
    return Rehearsed(**{name: torch.cat([value, getattr(other, name)]) for name, value in vars(one).items()})


@torch.no_grad()
def _suspects(net: StrengthNet, scorer: Scorer, changed: Examples) -> Tensor:
    """Inputs of the fiftieth of clean and mildly changed pictures that score highest: normal false alarms."""
    logits = scores(scorer, changed)
    worst = logits.argsort(descending=True)[: max(16, len(logits) // 50)]
    return net.inputs(torch.cat([features(part.float()) for part in changed.x[worst].split(512)]), logits[worst])
