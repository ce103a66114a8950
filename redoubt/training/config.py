"""The settings of one training run."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from redoubt.errors import InvalidInput, one_of
from redoubt.threat import ThreatModel, cover
from redoubt.training.objectives import OBJECTIVES
from redoubt.training.plugins import Plugins

# Optimizer steps after which accuracy on Fashion-MNIST hardly rises any more, by whether the objective attacks.
_STEPS = {"compact-cnn": (800, 1600), "strided-cnn": (800, 1600)}
_STEPS_LARGE = (6000, 12000)   # residual networks, and what comes from torchvision
MOST_EPOCHS = 80   # of few pictures: more would only learn them by heart


def default_epochs(objective: str, architecture: str, pictures: int, batch_size: int) -> int:
    """Epochs that give the usual number of optimizer steps for this objective and architecture: 1 to `MOST_EPOCHS`."""
    steps = _STEPS.get(architecture, _STEPS_LARGE)[objective != "standard"]
    return min(MOST_EPOCHS, max(1, math.ceil(steps / max(1, pictures // batch_size) - 0.5)))


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How to train; the defaults are what `redoubt run` uses.

    Attributes:
        objective: a key of `OBJECTIVES`.
        threats: what to train against; must be empty for `standard` and must not be for the others.
        epochs: passes over the training split.
        batch_size: pictures a step.
        learning_rate: the peak of a one-cycle schedule (Smith & Topin 2017, arXiv 1708.07120) over Adam.
        weight_decay: decoupled (AdamW).
        steps: PGD steps of the attack in training; `fast` takes one, and these once it had to fall back to PGD.
        step_size: the attack's step length as a multiple of epsilon / steps.
        lam: weight of the adversarial term in `mixed` and `trades` (whose paper takes 6).
        average: decay a step of the exponential average of the weights; 0 turns averaging off.
        looks: about how many times the validation split is looked at, never more than once an epoch. A look costs two
            PGD-10 attacks on it, raw and averaged weights.
        seed: fixes initialisation, order and attack noise.
        compile: `auto` (torch.compile on a GPU where it proves quicker and computes the same), `on` or `off`.
        precision: `auto` (bfloat16 arithmetic where it is quick, float32 otherwise), `float32` or `bfloat16`.
        plugins: what is added to the objective.
    """

    objective: str = "blend"
    threats: tuple[ThreatModel, ...] = ()
    epochs: int = 6
    batch_size: int = 128
    learning_rate: float = 3e-3
    weight_decay: float = 1e-4
    steps: int = 5
    step_size: float = 1.5
    lam: float = 1.0
    average: float = 0.995
    looks: int = 20
    seed: int = 0
    precision: str = "auto"
    compile: str = "auto"
    plugins: Plugins = field(default_factory=Plugins)

    def __post_init__(self) -> None:
        one_of(self.objective, OBJECTIVES, "objective")
        one_of(self.precision, ("auto", "bfloat16", "float32"), "precision")
        one_of(self.compile, ("auto", "on", "off"), "compile")
        object.__setattr__(self, "threats", cover(self.threats))
        if (self.objective == "standard") == bool(self.threats):
            raise InvalidInput("objective 'standard' takes no threat models, and every other needs at least one")
        if self.objective == "standard" and (self.plugins.warmup or self.plugins.class_adaptive):
            raise InvalidInput("warmup and class_adaptive change epsilon: objective 'standard' has none, take 'pgd'")
        for name, least in (("epochs", 1), ("batch_size", 1), ("steps", 1), ("looks", 1)):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < least:
                raise InvalidInput(f"{name} must be a whole number, at least {least}, not {getattr(self, name)}")
        for name in ("learning_rate", "step_size", "lam"):
            if not 0 < getattr(self, name) < math.inf:
                raise InvalidInput(f"{name} must be a finite number above 0, not {getattr(self, name)}")
        if not 0 <= self.weight_decay < math.inf:
            raise InvalidInput(f"weight_decay must be a finite number, at least 0, not {self.weight_decay}")
        if not 0 <= self.average < 1:
            raise InvalidInput(f"average must lie in [0, 1), not {self.average}")


def fine_tuning(config: TrainConfig) -> TrainConfig:
    """The same run for weights that another one left: about a third of the time from random weights.

    Half the epochs in batches of half the size, against two PGD steps at most, at twice the learning rate, with fewer
    looks at the validation split. Such weights know the pictures already; what they lack is many updates against a
    moving target, and an attack that is barely strong enough gives the most of them. Figures, and what else was tried:
    docs/training.md.
    """
    epochs = max(1, math.floor(config.epochs / 2 + 0.5))
    return replace(config, epochs=epochs, batch_size=max(1, config.batch_size // 2), steps=min(2, config.steps),
                   learning_rate=2 * config.learning_rate, looks=max(1, epochs // 4))
