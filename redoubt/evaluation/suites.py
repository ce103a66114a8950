"""Attack suites by name, and each attack in them as a function that says which images withstood it.

    quick       FGSM, PGD-20: at every epsilon of the curve
    standard    and AutoAttack, at each threat model
    full        and Square alone, PGD-20 with 10 restarts, transfer from a surrogate, and the other norm
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import sqrt
from pathlib import Path

import torch
from torch import Tensor, nn

from redoubt.attacks import ATTACKS, get_attack, momentum_pgd
from redoubt.errors import InvalidInput, one_of
from redoubt.evaluation import autoattack as library
from redoubt.evaluation.accuracy import batches, correct, predict, withstands_pgd
from redoubt.threat import ThreatModel

SUITES = {
    "quick": ("fgsm", "pgd"),
    "standard": ("fgsm", "pgd", "autoattack"),
    "full": ("fgsm", "pgd", "autoattack", "square", "pgd-restarts", "transfer"),
}
RESTARTS = 10
L2_RATIO = 0.25   # of eps * sqrt(d): an L2 ball about as hard as the Linf ball, near 0.5 for 8/255 on CIFAR
_TITLES = {"fgsm": "FGSM", "pgd": "PGD", "momentum": "Momentum PGD", "square": "Square",
           "pgd-restarts": f"PGD-20 x {RESTARTS}", "transfer": "Transfer"}


def check_suite(name: str) -> str:
    """`name` when it is a suite that can run here.

    Raises:
        InvalidInput: naming the suites, or the package that is missing.
    """
    if one_of(name, SUITES, "suite") != "quick":
        library.require()
    return name


def attack_label(name: str, classes: int = 10) -> str:
    """An attack as a reader knows it, its default number of steps included: `PGD-20`.

    Raises:
        InvalidInput: for an unknown attack, naming the valid ones.
    """
    one_of(name, MEASURES, "attack")
    if name == "autoattack":
        return library.label(classes)
    steps = inspect.signature(ATTACKS[name]).parameters.get("steps") if name in ATTACKS else None
    return f"{_TITLES[name]}-{steps.default}" if steps else _TITLES[name]


def on_curve(name: str) -> bool:
    """Whether an attack is cheap enough for every epsilon of the curve; the others meet the threat models alone."""
    return name in ATTACKS


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What an attack of a suite may need besides model, images and threat model.

    Attributes:
        seed: of random starts.
        surrogate: the model that transfer attacks are made on; without one, `transfer` is left out.
        state: where AutoAttack keeps how far it has come; None for nowhere.
        progress: called with each finished batch of AutoAttack.
    """

    seed: int = 0
    surrogate: nn.Module | None = None
    state: Path | None = None
    progress: Callable[[dict], None] | None = None


def withstands(name: str, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, setting: Setting) -> Tensor:
    """Which images are right under the attack called `name`: bool [N], on the CPU."""
    return MEASURES[one_of(name, MEASURES, "attack")](model, x, y, threat, setting)


def _gradient(name: str):
    def measure(model, x, y, threat, setting: Setting) -> Tensor:
        attack, generator = get_attack(name), _generator(x, setting.seed)
        return correct(model, x, y, attack=lambda model, x, y: attack(model, x, y, threat, generator=generator))
    return measure


def _pgd(model, x, y, threat, setting: Setting) -> Tensor:
    return withstands_pgd(model, x, y, threat, generator=_generator(x, setting.seed))


def _restarts(model, x, y, threat, setting: Setting) -> Tensor:
    return withstands_pgd(model, x, y, threat, restarts=RESTARTS, generator=_generator(x, setting.seed))


def _autoattack(model, x, y, threat, setting: Setting) -> Tensor:
    return library.autoattack(model, x, y, threat, seed=setting.seed, state=setting.state,
                              progress=setting.progress).stood


def _square(model, x, y, threat, setting: Setting) -> Tensor:
    return library.withstands_square(model, x, y, threat, seed=setting.seed)


def _transfer(model, x, y, threat, setting: Setting) -> Tensor:
    if setting.surrogate is None:
        raise InvalidInput("the transfer attack needs a surrogate")
    return withstands_transfer(model, setting.surrogate, x, y, threat)


def withstands_transfer(model: nn.Module, surrogate: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel) -> Tensor:
    """Which images are right clean and with what momentum PGD makes on the surrogate: bool [N], on the CPU."""
    stood = []
    for part, labels in batches(x, y):
        x_adv = momentum_pgd(surrogate, part, labels, threat)
        stood.append(((predict(model, part).argmax(1) == labels) & (predict(model, x_adv).argmax(1) == labels)).cpu())
    return torch.cat(stood)


MEASURES: dict[str, Callable[..., Tensor]] = {
    **{name: _gradient(name) for name in ATTACKS}, "pgd": _pgd, "autoattack": _autoattack, "square": _square,
    "pgd-restarts": _restarts, "transfer": _transfer,
}


def _generator(x: Tensor, seed: int) -> torch.Generator:
    return torch.Generator(device=x.device).manual_seed(seed)


def other_norms(threats: Sequence[ThreatModel], shape: Sequence[int]) -> tuple[ThreatModel, ...]:
    """For each norm that the set leaves out, a ball about as hard as the set's largest: what `full` adds.

    Args:
        shape: (channels, height, width) of an image; an L2 ball grows with the root of their product.
    """
    given, scale = {threat.norm: threat.epsilon for threat in threats}, L2_RATIO * sqrt(torch.Size(shape).numel())
    if "Linf" in given and "L2" not in given:
        return (ThreatModel("L2", float(f"{given['Linf'] * scale:.4g}")),)
    if "L2" in given and "Linf" not in given:
        return (ThreatModel("Linf", min(1.0, float(f"{given['L2'] / scale:.4g}"))),)
    return ()
