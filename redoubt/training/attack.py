"""The attack inside a training step: which threat model, how strong, on which images."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from redoubt.attacks import pgd
from redoubt.threat import ThreatModel
from redoubt.training.compiled import frozen
from redoubt.training.config import TrainConfig
from redoubt.training.objectives.fast import noisy_step


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The attack of one step on the whole batch, drawn once, so that processes and micro-batches take their slices.

    Attributes:
        threat: this step's threat model, epsilon warmed up.
        noise: where the attack begins, [N, C, H, W].
        scale: each image's multiple of epsilon, [N], or None.
        single: one noisy step instead of PGD.
    """

    threat: ThreatModel
    noise: Tensor
    scale: Tensor | None
    single: bool

    def slice(self, rows: slice | Tensor) -> Plan:
        return Plan(threat=self.threat, noise=self.noise[rows], single=self.single,
                    scale=None if self.scale is None else self.scale[rows])


def plan(
    config: TrainConfig, step: int, total: int, like: Tensor, y: Tensor, generator: torch.Generator,
    *, class_scale: Tensor | None, single: bool,
) -> Plan | None:
    """The attack of step `step` (from 0) of `total`; None when the objective has none.

    With several threat models they take turns, the average strategy of Tramer & Boneh (2019, arXiv 1904.13000).

    Args:
        like: anything of the whole batch's shape, type and device.
        y: the whole batch's labels, [N].
        class_scale: each class's multiple of epsilon, or None.
    """
    if not config.threats:
        return None
    threat = config.threats[step % len(config.threats)]
    if config.plugins.warmup:
        grown = min(1.0, (step + 1) / (config.plugins.warmup * total))
        threat = ThreatModel(threat.norm, threat.epsilon * grown)
    scale = None if class_scale is None else class_scale[y]
    return Plan(threat=threat, noise=threat.sample(like, generator, scale), scale=scale, single=single)


@dataclass
class Adversary:
    """What an objective calls as `attack`. It remembers its result: the second look at the same images that adversarial
    weight perturbation takes must not cost a second attack.

    Attributes:
        compiled: whether `model` is a compiled view.
        first: the number in the whole batch of the first picture that this one attacks.
    """

    model: nn.Module
    plan: Plan
    config: TrainConfig
    compiled: bool = False
    first: int = 0
    made: Tensor | None = field(default=None, init=False)

    def __call__(self, x: Tensor, y: Tensor | None, rows: slice | Tensor = slice(None)) -> Tensor:
        if self.made is None:
            self.model.eval()
            with frozen(self.model) if self.compiled else nullcontext():
                self.made = self._attack(x[rows], None if y is None else y[rows], self.plan.slice(rows))
            self.model.train()
        return self.made

    def _attack(self, x: Tensor, y: Tensor | None, plan: Plan) -> Tensor:
        if y is None:
            with torch.no_grad():
                y = self.model(x).float().softmax(1)
        if plan.single:
            return noisy_step(self.model, x, y, plan.threat, noise=plan.noise, scale=plan.scale)
        steps = self.config.steps
        return pgd(self.model, x, y, plan.threat, steps=steps, start=plan.noise, scale=plan.scale,
                   alpha=self.config.step_size * plan.threat.epsilon / steps)
