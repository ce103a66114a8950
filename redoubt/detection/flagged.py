"""Harmlessly changed pictures as they reach a campaign: of many, those that the scorer flags."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from redoubt.detection.benign import BENIGN, benign
from redoubt.detection.features import features
from redoubt.detection.rehearsal import Dice
from redoubt.detection.witness import measured

_AMOUNTS = (0.3, 0.6, 0.85, 1.1)   # of each harmless change that the model is asked about
_PATTERNS = {"sign": 8, "stripes": 24, "coarse": 16}   # so many fixed patterns of each kind of noise beside
_OFTEN, _FEW = 192, 96   # pictures under each kind and amount for which these many are right; and under each pattern
Judge = Callable[[Tensor], Tensor]   # pictures to the scorer's logits


def flagged_blocks(
    x: Tensor, levels: int, kinds, judge: Judge, threshold: float, seed: int, *, count: int, size: int
) -> tuple[Tensor, Tensor]:
    """Features [count, size, F] and logits [count, size] of blocks, one change with one amount each.

    Only flagged inputs ever reach a campaign: of many changed pictures some flagged ones are kept, or the most
    suspicious where too few are flagged.
    """
    dice, seen, logits = Dice(seed + 7), [], []
    for i in range(count):
        rows = dice.rows(len(x), 8 * size).to(x.device)
        changed = benign(kinds[i % len(kinds)], x[rows], levels=levels, generator=dice.generator,
                         amount=dice.uniform(0, 1))
        logit = judge(changed)
        worst = logit.topk(max(size, int((logit > threshold).sum()))).indices
        kept = worst[dice.rows(len(worst), size).to(x.device)]
        seen.append(features(changed[kept]))
        logits.append(logit[kept])
    return torch.stack(seen), torch.stack(logits)


def flagged_measures(model, x: Tensor, levels: int, judge: Judge, threshold: float, seed: int, *, most: int) -> dict:
    """`witness.measures` by kind, amount and whether the noise is a fixed pattern: of the flagged, or the most
    suspicious eighth.

    What the same pattern does to many pictures does not average out over them: what one wins, a whole campaign wins. So
    there are many patterns, each of few pictures and of an amount of its own.

    Args:
        most: pictures under each kind and amount; the model is asked about half of them at most.
    """
    plan = [(kind, amount, False) for kind in BENIGN for amount in _AMOUNTS]
    for kind, often in _PATTERNS.items():
        count = math.ceil(often * min(most, _OFTEN) / _OFTEN)
        plan += [(kind, _AMOUNTS[-1] * (i + 1) / count, True) for i in range(count)]
    dice, sent = Dice(seed + 11), []
    for kind, amount, fixed in plan:
        n = min(most, _FEW) if fixed else most
        rows = dice.rows(len(x), n).to(x.device)
        changed = benign(kind, x[rows], levels=levels, generator=dice.generator, amount=amount, fixed=fixed)
        logit = judge(changed)
        worst = logit.topk(max(n // 8, int((logit > threshold).sum()))).indices
        sent.append(changed[worst[: n // 2]])
    return dict(zip(plan, measured(model, torch.cat(sent)).split([len(part) for part in sent]), strict=True))
