"""The biases of the model's evidence: how much has to be taken off for no harmless change to win a bet."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from redoubt.detection.pattern import SAME, agreement
from redoubt.detection.witness import Witness

_NEXT = 0.5   # by how much the next fixed pattern may win more than the worst of those that were tried
_ELSEWHERE = 0.15   # by how much noise may win more on pictures from elsewhere than on those to calibrate with
_ENOUGH = 16   # pictures under a harmless change without which nothing is said of what it wins


@dataclass(frozen=True, kw_only=True)
class Change:
    """Flagged pictures under one harmless change that `fit_witness` did not see.

    Attributes:
        key: its kind, amount, and whether the noise is a fixed pattern.
        won: what a stake of 1 on each of them makes on average, as a logarithm, before any bias.
        error: the standard error of that.
        shared: it is a fixed pattern, and the pictures show that.
    """

    key: tuple[str, float, bool]
    won: float
    error: float
    shared: bool


@torch.no_grad()
def tried(net: Witness, answers: Iterable[tuple[tuple, tuple[Tensor, Tensor]]]) -> list[Change]:
    """What came of `flagged.questions`: one for each key, but for those of too few pictures."""
    parts, out = {}, []
    for key, answer in answers:
        parts.setdefault(key, []).append(answer)
    for key, answer in parts.items():
        measured, sketches = (torch.cat(part) for part in zip(*answer, strict=True))
        if len(measured) >= _ENOUGH:
            odds = net(measured).exp()
            error = odds.std() / odds.mean() / len(odds) ** 0.5
            # In a campaign others stand between them, and each of them has to show.
            shared = key[2] and agreement(net.detail(sketches)).mean().item() > 2 * SAME
            out.append(Change(key=key, won=odds.mean().log().item(), error=error.item(), shared=shared))
    return out


def winners(changes: list[Change], noise: tuple[str, ...], count: int) -> list[Change]:
    """Those of the `noise` kinds, but for patterns that show, that win most: at most `count`, the best first."""
    own = [change for change in changes if change.key[0] in noise and not change.shared]
    return sorted(own, key=lambda change: change.won, reverse=True)[:count]


def calibrate_witness(net: Witness, changes: list[Change], again: list[Change], noise: tuple[str, ...]) -> None:
    """Set the biases with which no harmless change, of whatever kind and amount, wins a bet on average.

    What wins most of many has mostly been lucky: it is tried again on more pictures, and what it wins then, with a
    standard error and a margin for pictures from elsewhere, sets the bias. A pattern that is the same on all pictures
    is no sample of what others win: the worst of them and a margin are answered by `pattern`, which inputs that share
    one pay beyond `bias`. One that hardly shows counts for `bias`.

    Args:
        changes: what came of harmless changes.
        again: what came of some of them when tried again, which is believed instead.
        noise: the kinds that pixels alone may take for an attack; `bias` answers the worst of them. `further` is what
            the other kinds ask for beyond it; those look harmless to the pixels.
    """
    known = {change.key for change in again}
    own = [change.won for change in changes if change.key[0] in noise and not change.shared and change.key not in known]
    bias = max([0.0, *(won + _ELSEWHERE for won in (*own, *(change.won + change.error for change in again)))])
    patterns = [change.won + _NEXT for change in changes if change.key[0] in noise and change.shared]
    others = [change.won for change in changes if change.key[0] not in noise]
    net.bias.fill_(bias)
    net.pattern.fill_(max([bias, *patterns]) - bias)
    net.further.fill_(max([bias, *others]) - bias)
