"""One optimizer step: attack, loss, gradients, in as many micro-batches as memory asks for."""

from __future__ import annotations

import math
from contextlib import contextmanager

import torch
from torch import Tensor

from redoubt.errors import TrainingDiverged
from redoubt.training.attack import Adversary, plan
from redoubt.training.augment import augment, draw
from redoubt.training.compiled import AFTER, choose
from redoubt.training.distributed import World
from redoubt.training.losses import Loss, Losses
from redoubt.training.objectives import OBJECTIVES
from redoubt.training.pictures import Pictures
from redoubt.training.plugins import reduce
from redoubt.training.state import State
from redoubt.training.weights import buffers_kept, uphill


class Stepper:
    """Takes the steps of one run. On a GPU the host only hands out work: nothing in a step waits for a result.

    Args:
        total: steps of the whole run.
        scale: each class's multiple of epsilon, or None.
        levels: what the pixels of uint8 pictures are divided by.

    Attributes:
        network: what is called: the model, or its compiled view where that is quicker.
        micro: images that this process computes at a time; halved when the device runs out of memory.
    """

    def __init__(self, state: State, data: tuple[Tensor, Tensor], total: int, scale: Tensor | None, world: World,
                 autocast: torch.autocast, levels: int = 255):
        self.state, self.total, self.scale, self.world, self.autocast = state, total, scale, world, autocast
        self.device = next(state.model.parameters()).device
        self.pictures, self.network = Pictures(data, levels, self.device), state.model
        self.micro = state.config.batch_size
        self._losses, self._taken = Losses(self.device), 0
        self._choose_at = {"off": None, "on": 0, "auto": AFTER if self.device.type == "cuda" else None}[
            state.config.compile if world.size == 1 else "off"]

    def step(self, rows: Tensor) -> list[float]:
        """One step on the pictures numbered `rows` ([N], where the pictures lie).

        Returns:
            The losses that became known meanwhile: on a CPU this step's, on a GPU now and then those of 32.

        Raises:
            TrainingDiverged: when one of them is no finite number; it names that step, not this one.
            OutOfMemoryError: when a single picture is too much.
        """
        if self._taken == self._choose_at:
            self.network = choose(self, rows, self.total - self.state.step)
        self._taken += 1
        before = self.state.generator.get_state()
        while True:
            try:
                loss = self.gradients(rows)
                break
            except torch.OutOfMemoryError as error:
                largest = min(self.micro, len(rows))
                if largest == 1 or self.world.size > 1:   # the others would wait for this process for ever
                    raise torch.OutOfMemoryError(
                        f"{error}: even one picture at a time is too much, take a smaller architecture"
                        if largest == 1 else f"{error}: with several processes, set a smaller batch_size") from None
                self.micro = (largest + 1) // 2
            self.state.generator.set_state(before)   # the same noise again, cut into smaller parts
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
        self.state.optimizer.step()
        self.state.schedule.step()
        return self._note(self._losses.add(Loss(self.state.epoch, self.state.position + 1, rows, loss)))

    def look(self) -> list[float]:
        """The losses that are not known yet; waits for them. Raises as `step` does."""
        return self._note(self._losses.rest())

    def _note(self, losses: list[Loss]) -> list[float]:
        for loss in losses:
            if not math.isfinite(loss.value):
                raise TrainingDiverged(self._diagnosis(*loss), rows=loss.rows.tolist())
            self.state.total += loss.value
        return [loss.value for loss in losses]

    def _diagnosis(self, epoch: int, step: int, rows: Tensor, value: float) -> str:
        broken = self.pictures.broken(rows)
        start = f"loss is {value} in epoch {epoch}, step {step}: "
        if broken:
            return f"{start}training pictures {broken[:8]} hold pixels that are not finite, mend the data"
        config = self.state.config
        hint = ", or raise the plug-in reweight" if config.plugins.reweight else ""
        return (f"{start}lower the learning rate ({config.learning_rate}) or set precision to float32{hint}; "
                f"the batch held training pictures {rows[:8].tolist()} and {max(0, len(rows) - 8)} more")

    def gradients(self, rows: Tensor) -> Tensor:
        """Fill the weight gradients from the whole batch; returns the loss, over all processes."""
        state, config = self.state, self.state.config
        own = self.world.part(len(rows))
        x, labels = self.pictures.batch(rows[own]), self.pictures.labels(rows)
        y = labels[own]
        x = augment(x, draw(config.plugins, len(rows), state.generator).slice(own), config.plugins.crop)
        like = x.new_empty(()).expand(len(rows), *x.shape[1:])
        attack = plan(config, state.step, self.total, like, labels, state.generator, class_scale=self.scale,
                      single=config.objective == "fast" and not state.fallback)
        attack = attack and attack.slice(own)
        parts = [slice(i, i + self.micro) for i in range(0, len(x), self.micro)]
        foes = [attack and Adversary(self.network, attack.slice(part), config, first=(own.start or 0) + part.start,
                                     compiled=self.network is not state.model) for part in parts]
        self.network.train()
        gamma = config.plugins.weight_perturbation
        with self._perturbed(gamma, lambda: self._accumulate(x, y, parts, foes, len(rows))):
            return self._accumulate(x, y, parts, foes, len(rows))

    @contextmanager
    def _perturbed(self, gamma: float, gradients):
        if not gamma:
            yield
            return
        with buffers_kept(self.state.model):
            gradients()
        with uphill(self.state.model, gamma):
            yield

    def _accumulate(self, x: Tensor, y: Tensor, parts: list[slice], foes: list, whole: int) -> Tensor:
        state, config = self.state, self.state.config
        objective, total = OBJECTIVES[config.objective], torch.zeros((), device=self.device)
        state.optimizer.zero_grad(set_to_none=True)
        for part, foe in zip(parts, foes, strict=True):
            with self.autocast:
                losses = objective(self.network, x[part], y[part], foe, lam=config.lam,
                                   smoothing=config.plugins.label_smoothing)
                loss = reduce(losses, len(losses) / whole, config.plugins.reweight)
            loss.backward()
            total += loss.detach()
        self.world.add_gradients(state.model)
        return self.world.add(total)
