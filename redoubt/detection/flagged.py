"""Harmlessly changed pictures as they reach a campaign: of many, those that the scorer flags."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from redoubt.detection.benign import BENIGN, benign
from redoubt.detection.features import features
from redoubt.detection.measures import measured
from redoubt.detection.rehearsal import Dice

_AMOUNTS = (0.3, 0.6, 0.85, 1.1)   # of each harmless change that the model is asked about
_EITHER_WAY = (-0.1, 0.15, 0.85, 1.1)   # the same of those that go either way from 0.5, where they change nothing
_SIGNED = ("brightness", "contrast", "gamma")
# Besides, where `most` is 96 or more: fixed patterns of noise of each kind, and their amounts.
_PATTERNS, _FIXED, _USUAL = {"sign": 8, "stripes": 24, "coarse": 24, "waves": 32}, (0.3, 1.3), 96
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


def questions(
    model, x: Tensor, levels: int, judge: Judge, threshold: float, seed: int, *, most: int
) -> Iterator[Callable[[], tuple[tuple, Tensor]]]:
    """What the model is asked about harmless changes, to be called in any order.

    Each gives a kind, its amount and whether the noise is a fixed pattern, and `measures.measures` of the flagged
    pictures under it, or of the most suspicious sixth. What the same pattern does to many pictures does not average out
    over them: what one wins, a whole campaign wins. So there are many patterns, each of few pictures and of an amount
    of its own.

    Args:
        most: pictures under each kind and amount; the model is asked about half of them at most.
    """
    plan = [(kind, amount, False, most) for kind in BENIGN
            for amount in (_EITHER_WAY if kind in _SIGNED else _AMOUNTS)]
    least, largest = _FIXED
    for kind, usual in _PATTERNS.items():
        count, each = math.ceil(usual * min(1, most / _USUAL)), min(most, _USUAL, len(x))   # repeats would be the same
        plan += [(kind, least + (largest - least) * (i + 1) / count, True, each) for i in range(count)]
    dice = Dice(seed + 11)
    for kind, amount, fixed, n in plan:
        rows = dice.rows(len(x), n).to(x.device)
        changed = benign(kind, x[rows], levels=levels, generator=dice.generator, amount=amount, fixed=fixed)
        yield partial(_answer, (kind, amount, fixed), changed, model, judge, threshold)


def _answer(key: tuple, changed: Tensor, model, judge: Judge, threshold: float) -> tuple[tuple, Tensor]:
    n, logit = len(changed), judge(changed)
    worst = logit.topk(max(n // 6, int((logit > threshold).sum()))).indices
    return key, measured(model, changed[worst[: n // 2]])
