"""Learning to read strength: from rehearsed attacks, their changes on other pictures, and harmless ones beside them."""

from __future__ import annotations

import math
from collections.abc import Iterator
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
from redoubt.detection.strength import AT_ONCE, HARMLESS, Rehearsed, calibrate, fit_strength


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
    size = config.block_size * (1 + config.moved)
    kept = flagged_blocks(x, levels, kinds, partial(score, scorer, model), threshold, seed,
                          count=max(4 * len(kinds), config.blocks // 4), size=size)
    net = _untaught(rehearsal, kept[0], seed)
    suspects = _suspects(net, scorer, changed.rows(changed.weight > RANDOM))
    learned = _empty(net, len(rehearsal.real) + len(kept[0]) + config.drawn, size)
    blocks = learned.head(len(learned.norm) - config.drawn)   # of attacks that are drawn no bound is taken
    _fill_rehearsed(blocks, net, rehearsal, logits, usable)
    _fill_moved(blocks, net, rehearsal, changes, scorer, threshold, seed)
    _fill_harmless(blocks.tail(len(kept[0])), net, *kept, len(kinds))
    _fill_drawn(learned.tail(config.drawn), net, model, scorer, threshold, drawn(
        x, blocks=config.drawn, size=size, epsilon=epsilon, levels=levels, seed=seed + 31))
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


def _empty(net: StrengthNet, count: int, size: int) -> Rehearsed:
    """Blocks to be filled, of which nothing is usable yet: all that is learned from is held once, since it is large."""
    zeros = partial(torch.zeros, device=net.mean.device)
    return Rehearsed(
        inputs=zeros(count, size, len(net.mean) + 1), usable=zeros(count, size, dtype=torch.bool),
        log_epsilon=zeros(count), norm=zeros(count, dtype=torch.long), kind=zeros(count, dtype=torch.long),
        coarse=zeros(count, dtype=torch.bool))


@torch.no_grad()
def _fill_rehearsed(blocks: Rehearsed, net: StrengthNet, rehearsal: Rehearsal, logits: Tensor, usable: Tensor) -> None:
    """Attack blocks as they were seen, in the first places of the first `blocks`."""
    count, size = usable.shape
    for rows in torch.arange(count).split(AT_ONCE):
        blocks.inputs[rows, :size] = net.inputs(rehearsal.seen[rows], logits[rows])
    blocks.usable[:count, :size] = usable
    for name in ("norm", "kind", "log_epsilon", "coarse"):
        getattr(blocks, name)[:count] = getattr(rehearsal, name)


@torch.no_grad()
def _fill_moved(blocks: Rehearsed, net: StrengthNet, rehearsal: Rehearsal, changes: Changes, scorer: Scorer,
                threshold: float, seed: int) -> None:
    """Behind each of them its changes again on other pictures, as often as there is room."""
    (count, size), generator = rehearsal.real.shape, torch.Generator().manual_seed(seed + 17)
    real = rehearsal.real & rehearsal.telling.unsqueeze(1)
    for first in range(size, blocks.usable.shape[1], size):
        here, rows = slice(first, first + size), torch.arange(count).split(max(1, BATCH // size))
        for at, (x, sure, kept) in zip(rows, changes.again(len(rows[0]) * size, generator), strict=True):
            logit = torch.where(kept, scorer(x, sure), -torch.inf).view(-1, size)
            blocks.usable[at, here] = usable = real[at] & (logit > threshold)
            seen = features(x).unflatten(0, (-1, size))
            blocks.inputs[at, here] = net.inputs(seen, logit.masked_fill(~usable, 0.0))


@torch.no_grad()
def _fill_harmless(blocks: Rehearsed, net: StrengthNet, seen: Tensor, logits: Tensor, kinds: int) -> None:
    """Harmless blocks, of which all inputs count."""
    blocks.inputs.copy_(net.inputs(seen, logits))
    blocks.usable.fill_(True)
    blocks.norm.fill_(HARMLESS)
    blocks.kind.copy_(torch.arange(len(seen)) % kinds)


@torch.no_grad()
def _fill_drawn(blocks: Rehearsed, net: StrengthNet, model: nn.Module, scorer: Scorer, threshold: float,
                made: Iterator[tuple[Tensor, Tensor, float]]) -> None:
    """Blocks under attacks along random fields, as `drawn` makes them.

    They are called the first kind, which means nothing: no bound is taken from them.
    """
    for i, (changed, clean, strength) in enumerate(made):
        logit = scorer(changed, certainty(model(changed).softmax(1)))
        blocks.usable[i] = logit > threshold
        blocks.inputs[i] = net.inputs(features(changed), logit)
        blocks.log_epsilon[i] = math.log(strength)
        blocks.coarse[i] = is_coarse(changed - clean)


@torch.no_grad()
def _suspects(net: StrengthNet, scorer: Scorer, changed: Examples) -> Tensor:
    """Inputs of the fiftieth of clean and mildly changed pictures that score highest: normal false alarms."""
    logits = scores(scorer, changed)
    worst = logits.argsort(descending=True)[: max(16, len(logits) // 50)]
    return net.inputs(torch.cat([features(part.float()) for part in changed.x[worst].split(512)]), logits[worst])
