"""Harmlessly changed pictures as they reach a campaign: of many, those that the scorer flags."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from zlib import crc32

import torch
from torch import Tensor

from redoubt.detection.benign import BENIGN, NOISE, benign
from redoubt.detection.features import features
from redoubt.detection.measures import measured
from redoubt.detection.pattern import sketch
from redoubt.detection.rehearsal import Dice

_AMOUNTS = (0.3, 0.6, 0.85, 1.1)   # of each harmless change that the model is asked about
_EITHER_WAY = (-0.1, 0.15, 0.85, 1.1)   # the same of those that go either way from 0.5, where they change nothing
_SIGNED = ("brightness", "contrast", "gamma")
_TRIED = 6   # times as many pictures as are asked about are changed, for where few are flagged;
_FLOATS = 2**23   # of large ones as many as have so many pixel values, and at least twice as many as are asked about
# Besides, where `most` is 96 or more: fixed patterns of noise of each kind, and their amounts.
_PATTERNS = {"sign": 8, "stripes": 15, "coarse": 24, "shading": 17, "waves": 24}
_FIXED, _USUAL = (0.3, 1.3), 96
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


def planned(most: int, *, spread: int = 1) -> list[tuple[str, float, bool, int]]:
    """What the model is to be asked about: the kind of a harmless change, its amount, whether the noise is a fixed
    pattern, and how many pictures at most.

    What the same pattern does to many pictures does not average out over them: what one wins, a whole campaign wins. So
    there are many patterns, each of an amount of its own.

    Args:
        most: twice as many pictures as are asked about under each kind and amount at most; below 96 there are fewer
            patterns, too.
        spread: so many times more patterns, each on so many times fewer pictures: to learn from, where it need not be
            known what each wins.
    """
    plan = [(kind, amount, False, most // 2) for kind in dict.fromkeys((*BENIGN, *NOISE))
            for amount in (_EITHER_WAY if kind in _SIGNED else _AMOUNTS)]
    least, largest = _FIXED
    for kind, usual in _PATTERNS.items():
        count, each = math.ceil(usual * min(1, most / _USUAL)) * spread, min(most, _USUAL) // (2 * spread)
        plan += [(kind, least + (largest - least) * (i + 1) / count, True, each) for i in range(count)]
    return plan


def questions(
    model, x: Tensor, plan: list[tuple[str, float, bool, int]], levels: int, judge: Judge, threshold: float, seed: int,
    *, look: int = 0,
) -> Iterator[Callable[[], tuple[tuple[str, float, bool], tuple[Tensor, Tensor]]]]:
    """The questions of a plan, to be called in any order.

    Each gives its kind, amount and whether the noise is a fixed pattern, and `measures.measures` and `pattern.sketch`
    of flagged pictures under it, or of the most suspicious where too few are flagged.

    Args:
        seed: a line of a plan has the same pattern whatever stands beside it.
        look: a further look has the same patterns on other pictures, and other noise where it is no pattern.
    """
    room = _FLOATS // x[:1].numel()
    for kind, amount, fixed, n in plan:
        # Of a seed the generator takes 32 bits.
        dice, noise = (Dice(crc32(repr((seed, kind, amount, fixed, *further)).encode()))
                       for further in (("pictures", look), () if fixed else (look,)))
        count = min(_TRIED * n, max(2 * n, room))
        if fixed or kind not in NOISE:   # a repeat would be the same
            count = min(count, len(x))
        rows = dice.rows(len(x), count).to(x.device)
        changed = benign(kind, x[rows], levels=levels, generator=noise.generator, amount=amount, fixed=fixed)
        yield partial(_answer, (kind, amount, fixed), changed, n, model, judge, threshold)


def _answer(
    key: tuple, changed: Tensor, most: int, model, judge: Judge, threshold: float
) -> tuple[tuple, tuple[Tensor, Tensor]]:
    """The first `most` flagged ones are asked about, as serving does; where there are fewer, the most suspicious."""
    logit = changed.new_zeros(0)
    for part in changed.split(2 * most):
        logit = torch.cat([logit, judge(part)])
        flagged = (logit > threshold).nonzero()[:, 0]
        if len(flagged) >= most:
            chosen = changed[flagged[:most]]
            break
    else:
        chosen = changed[logit.topk(min(most, len(logit))).indices]
    return key, (measured(model, chosen), sketch(chosen))
