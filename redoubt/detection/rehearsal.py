"""What a detector learns attacks from: rehearsals against its own model. Harmless changes are in `benign.py`.

Attacks come in blocks. A block is some sixteen pictures under one kind of attack with one epsilon and one setting: what
a campaign looks like from the receiving end. The training traffic never enters; pictures are those given to `fit`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, count
from typing import NamedTuple

import torch
from torch import Tensor, nn

from redoubt.attacks import fgsm, masked, momentum_pgd, on_lattice, pgd, shaped
from redoubt.compute import side_by_side
from redoubt.detection.benign import blur
from redoubt.detection.features import features
from redoubt.detection.measures import MEASURES, asking
from redoubt.detection.networks import NORMS
from redoubt.detection.scoring import NEAR, Examples
from redoubt.threat import ThreatModel
from redoubt.training.loop import use_bfloat16

ASKED, MANY = 2, 1000   # inputs of each attack block that the model is asked about; twice as many of fewer blocks
KINDS = ("fgsm", "step", "pgd", "climb", "momentum", "transfer", "smooth", "cells", "part", "guessed")
OWN_KINDS = 5   # the first so many go along the model's own gradient as it is
TELLING = 8   # the first so many teach strength and the model's evidence, too; the others the score alone
Attack = Callable[[Tensor, Tensor], Tensor]   # pictures and labels to adversarial ones
_LENGTHS = 0.5, 3   # of all steps of an attack together, in epsilon
# The same where the change has no grain. Steps that hardly cross the ball, and two of them that undo each other, leave
# less than the bound there, and nothing that tells it; libraries take 1.3 to 3 (BIM and PGD of torchattacks, foolbox).
_USUAL = 1.25, 4
_SMOOTH = 0.85   # of a change's length is left by the mean over 3 x 3 pixels, then it counts as coarse


@dataclass(frozen=True, kw_only=True)
class Block:
    """Pictures under one attack.

    Attributes:
        x: adversarial inputs, float [n, C, S, S] in [0, 1].
        clean: the pictures that they were made from.
        rows: which of all given pictures these are, [n].
        threat: norm and epsilon that the attacker was given.
        stored: whether the pictures were rounded to whole levels.
        strength: the epsilon that arrived: of stored ones in Linf a whole number of levels.
        kind: one of `KINDS`.
    """

    x: Tensor
    clean: Tensor
    rows: Tensor
    threat: ThreatModel
    stored: bool
    strength: float
    kind: str


class Dice:
    """Random choices from one seeded generator, so that a rehearsal can be repeated."""

    def __init__(self, seed: int):
        self.generator = torch.Generator().manual_seed(seed)

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * torch.rand((), generator=self.generator).item()

    def log_uniform(self, low: float, high: float) -> float:
        return math.exp(self.uniform(math.log(low), math.log(high)))

    def chance(self, probability: float) -> bool:
        return self.uniform(0, 1) < probability

    def rows(self, total: int, n: int) -> Tensor:
        """`n` different row numbers below `total`; with repeats only when there are too few."""
        if n > total:
            return torch.randint(total, (n,), generator=self.generator)
        return torch.randperm(total, generator=self.generator)[:n]


def rehearse(
    model: nn.Module, surrogates: Sequence[nn.Module], x: Tensor, y: Tensor, *, blocks: int, size: int, levels: int,
    norm: str, epsilon: tuple[float, float], seed: int,
) -> Iterator[Callable[[], Block]]:
    """Attack blocks, the kinds taking turns and each setting drawn at random; a block is made when it is called.

    Args:
        model, surrogates: in eval mode; `transfer` asks one of the surrogates alone.
        x, y: pictures [N, C, S, S] in [0, 1] and labels [N] to attack, on the model's device.
        blocks, size: how many blocks, and of how many pictures each.
        levels: three blocks in four are rounded to this lattice, as a sent picture would be.
        norm, epsilon: the norm and the range that epsilon is drawn from, evenly in its logarithm.
    """
    dice = Dice(seed)
    low, high = math.log(epsilon[0]), math.log(epsilon[1])
    # Even coverage beats independent draws with so few blocks: one stratum of epsilon a block, in random order.
    strata = torch.randperm(blocks, generator=dice.generator)
    for i in range(blocks):
        kind = KINDS[i % len(KINDS)]
        value = math.exp(low + (high - low) * (strata[i].item() + dice.uniform(0, 1)) / blocks)
        threat = ThreatModel(norm, value)
        rows = dice.rows(len(x), size).to(x.device)
        attack = _attack(kind, model, surrogates, threat, x, dice)
        yield partial(_block, attack, x, y, rows, kind, threat, dice.chance(0.75), levels)


def _block(attack: Attack, x: Tensor, y: Tensor, rows: Tensor, kind: str, threat: ThreatModel, stored: bool,
           levels: int) -> Block:
    with torch.autocast(x.device.type, torch.bfloat16, enabled=use_bfloat16("auto", x.device)):
        x_adv = attack(x[rows], y[rows])
    strength = threat.epsilon
    if stored:
        x_adv = on_lattice(x_adv, levels)
        strength = max(1, round(strength * levels)) / levels if threat.norm == "Linf" else strength
    return Block(x=x_adv.float(), clean=x[rows], rows=rows, threat=threat, stored=stored, strength=strength, kind=kind)


@dataclass(frozen=True, kw_only=True)
class Rehearsal:
    """What was rehearsed: B blocks of n pictures.

    Attributes:
        seen: features [B, n, F].
        attacked: the pictures, [B n] of them.
        near: pictures just across a boundary.
        rows: which picture each attacked one was made from, [B, n].
        real: bool [B, n], whether the attack did anything.
        log_epsilon, norm, kind, coarse: [B], as in `Rehearsed`.
        stored: [B], whether the pictures were rounded to whole levels.
        asked: the model's `measures` of the first inputs of each block that is `telling`, [T, m, MEASURES]; [0, 0,
            MEASURES] if it was not asked.
    """

    seen: Tensor
    attacked: Examples
    near: Examples
    rows: Tensor
    real: Tensor
    log_epsilon: Tensor
    norm: Tensor
    kind: Tensor
    coarse: Tensor
    stored: Tensor
    asked: Tensor

    @property
    def count(self) -> int:
        return len(self.attacked.x)

    @property
    def telling(self) -> Tensor:
        """Which blocks teach more than the score: bool [B]."""
        return self.kind < TELLING

    @property
    def weighed(self) -> list[Examples]:
        """What the scorer learns attacks from; what is no attack weighs nothing."""
        return [replace(self.attacked, weight=self.attacked.weight * self.real.flatten()), self.near]

    def examples(self) -> Examples:
        """The same in one, without what weighs nothing."""
        return Examples.joined([self.attacked.rows(self.real.flatten()), self.near])


def rehearse_all(
    model: nn.Module, surrogates: Sequence[nn.Module], x: Tensor, y: Tensor, *, plans, size: int, levels: int,
    asks: bool, seed: int,
) -> Rehearsal:
    """Attack blocks of every norm.

    Args:
        plans: for each of `networks.NORMS` its name, how many blocks, and the range of epsilon.
        size: pictures in a block.
        asks: whether to take the model's `measures`.
    """
    most = ASKED * (1 if sum(blocks for _, blocks, _ in plans) >= MANY else 2)
    makers = chain.from_iterable(
        rehearse(model, surrogates, x, y, blocks=blocks, size=size, levels=levels, norm=norm, epsilon=epsilon,
                 seed=seed + index) for index, (norm, blocks, epsilon) in enumerate(plans))
    tasks = (partial(_tried, model, make, turn, levels, most)
             for make, turn in zip(makers, _turns(plans), strict=True))
    parts = list(side_by_side(tasks, x.device))
    asked = torch.cat([part.asked for part in parts])
    answers = list(side_by_side(asking(model, asked), x.device)) if asks else []
    logs, norms, kinds, coarse, stored = zip(*(part.facts for part in parts), strict=True)
    return Rehearsal(
        seen=torch.stack([part.seen for part in parts]), attacked=Examples.joined([part.attacked for part in parts]),
        near=Examples.joined([part.near for part in parts if part.near]),
        rows=torch.stack([part.rows for part in parts]), real=torch.stack([part.real for part in parts]),
        log_epsilon=torch.tensor(logs, device=x.device), norm=torch.tensor(norms, device=x.device),
        kind=torch.tensor(kinds, device=x.device), coarse=torch.tensor(coarse, device=x.device),
        stored=torch.tensor(stored, device=x.device),
        asked=torch.cat(answers).unflatten(0, (-1, most)) if asks else x.new_zeros(0, 0, MEASURES),
    )


class _Tried(NamedTuple):
    """One block, as `Rehearsal` keeps it."""

    seen: Tensor
    attacked: Examples
    near: Examples | None
    rows: Tensor
    real: Tensor
    asked: Tensor   # the pictures that the model is to be asked about
    facts: tuple[float, int, int, bool, bool]   # log epsilon, norm, kind, coarse, stored


def _turns(plans) -> Iterator[int | None]:
    """For each block which of those it is that are taken across a boundary; None if it is not: each in L2, of the
    others every second, which is every second kind."""
    near = count()
    for i, norm in enumerate(norm for norm, blocks, _ in plans for _ in range(blocks)):
        yield next(near) if norm == "L2" or i % 2 == 0 else None


def _tried(model: nn.Module, make: Callable[[], Block], turn: int | None, levels: int, most: int) -> _Tried:
    block, near = make(), None
    kind = KINDS.index(block.kind)
    change = block.x - block.clean
    # A saturated softmax has no gradient: such an input stays as it was and is no attack.
    real = block.threat.size(change) > 0.4 * block.threat.epsilon
    if turn is not None:
        # Shifted from lap to lap, so that every kind is met in each way: there are ten.
        crossed = across(model, block, inside=(turn + turn // 10) % 2 == 1)
        sent = on_lattice(crossed, levels) if (turn + turn // 5) % 5 else crossed   # four in five, as most that is sent
        near = Examples.of(model, sent, NEAR)
    return _Tried(
        seen=features(block.x), attacked=Examples.of(model, block.x, 1.0), near=near, rows=block.rows, real=real,
        asked=block.x[: most if kind < TELLING else 0].clone(),   # a part would keep the whole
        facts=(math.log(block.strength), NORMS.index(block.threat.norm), kind, is_coarse(change[real]), block.stored),
    )


def is_coarse(change: Tensor) -> bool:
    """Whether changes [n, C, S, S] stretch over several pixels, most of them; n may be 0."""
    left = blur(change).flatten(1).norm(dim=1) / change.flatten(1).norm(dim=1).clamp_min(1e-9)
    return len(left) > 0 and left.median().item() > _SMOOTH


def _attack(kind: str, model, surrogates, threat: ThreatModel, x: Tensor, dice: Dice) -> Attack:
    """One attack with its own setting drawn: 1 to 20 steps, and how many epsilon they come to together.

    Half of the transferred ones go through a smoothed gradient, too: attackers do that to get across.
    """
    noise, mask = torch.Generator(x.device).manual_seed(int(dice.uniform(0, 2**31))), None
    lengths = _USUAL if kind in ("transfer", "smooth", "cells", "part") else _LENGTHS
    if kind == "transfer":
        model = surrogates[int(dice.uniform(0, len(surrogates)))]
        kind = ("fgsm", "pgd", "climb", "momentum")[int(dice.uniform(0, 4))]
        if dice.chance(0.5):
            model = _smoothed(model, dice)
    elif kind == "smooth":
        model, kind = _smoothed(model, dice), "shaped"
    elif kind == "cells":
        side = round(dice.log_uniform(2, x.shape[-1] / 2.5))
        corner = int(dice.uniform(0, side)), int(dice.uniform(0, side))
        model, kind = shaped.through(model, shaped.cells(side, corner)), "shaped"
    elif kind == "guessed":
        chance = shaped.guessed(dice.log_uniform(0.5, 4), int(dice.uniform(0, 2**31)))
        model, kind = shaped.through(model, chance), "climb"
    elif kind == "part":
        mask, kind = _mask(dice), "shaped"
    if kind == "fgsm":
        return partial(fgsm, model, threat=threat)
    if kind == "step":
        alpha = dice.uniform(0.75, 1.5) * threat.epsilon
        return partial(pgd, model, threat=threat, steps=1, alpha=alpha, generator=noise)
    if kind == "momentum":
        steps, start = round(dice.log_uniform(3, 15)), dice.chance(0.3)
        alpha = dice.uniform(1, 1.5) * threat.epsilon / steps
        return partial(momentum_pgd, model, threat=threat, steps=steps, alpha=alpha, random_start=start,
                       generator=noise)
    low, high = {"climb": (7, 20.5), "shaped": (2.5, 12)}.get(kind, (2, 10))
    steps = 1 if kind == "shaped" and dice.chance(0.2) else round(dice.log_uniform(low, high))
    alpha = dice.log_uniform(*lengths) * threat.epsilon / steps
    if kind == "shaped":   # no start between: its noise would be the only fine detail
        climb = partial(pgd, threat=threat, steps=steps, alpha=alpha, random_start=False)
        return partial(climb, model) if mask is None else partial(masked.within, mask, climb, model)
    start = dice.chance(0.7) or alpha * steps < threat.epsilon
    return partial(pgd, model, threat=threat, steps=steps, alpha=alpha, random_start=start, generator=noise)


def _mask(dice: Dice) -> masked.Mask:
    """Which pixels an attack on a part of each picture may change."""
    sort = int(dice.uniform(0, 4))
    if sort == 0:
        return masked.inside(dice.log_uniform(0.002, 0.1))
    if sort == 1:
        return masked.busy(dice.uniform(0.2, 0.7))
    if sort == 2:
        height, width = dice.uniform(0.3, 0.8), dice.uniform(0.3, 0.8)
        return masked.window(dice.uniform(0, 1 - height), dice.uniform(0, 1 - width), height, width)
    return masked.scattered(dice.uniform(0.1, 0.6), int(dice.uniform(0, 2**31)))


def _smoothed(model: nn.Module, dice: Dice) -> nn.Module:
    return shaped.through(model, shaped.smooth(dice.log_uniform(0.5, 2.5)))


@torch.no_grad()
def across(model: nn.Module, block: Block, *, inside: bool) -> Tensor:
    """The block's changes shortened until they just cross a boundary, as nearest attacks leave them: [m, C, S, S].

    Those that cross none are left out, so m <= n.

    Args:
        inside: spare pixels near black and white, as attacks do that search in a space where the bounds lie at infinity
            (Carlini & Wagner 2017).
    """
    change = block.x - block.clean
    if inside:
        change = 8 * change * block.clean * (1 - block.clean)
    far = (block.clean + change).clamp(0, 1)
    answer = model(block.clean).argmax(1)
    crossed = model(far).argmax(1) != answer
    x, far, answer = block.clean[crossed], far[crossed], answer[crossed]
    low, high = (torch.full((len(x), 1, 1, 1), float(end), device=x.device) for end in (0, 1))
    for _ in range(7 if len(x) else 0):
        middle = (low + high) / 2
        beyond = (model(x.lerp(far, middle)).argmax(1) != answer).view(-1, 1, 1, 1)
        low, high = torch.where(beyond, low, middle), torch.where(beyond, middle, high)
    return x.lerp(far, high)
