"""One optimizer step: attack, loss, gradients, in as many micro-batches as memory asks for."""

from __future__ import annotations

from contextlib import contextmanager

import torch
from torch import Tensor

from redoubt.errors import TrainingDiverged
from redoubt.training.attack import Adversary, plan
from redoubt.training.augment import augment, draw
from redoubt.training.distributed import World
from redoubt.training.objectives import OBJECTIVES
from redoubt.training.plugins import reduce
from redoubt.training.state import State
from redoubt.training.weights import buffers_kept, uphill


class Stepper:
    """Takes the steps of one run.

    Attributes:
        micro: images that this process computes at a time; halved when the device runs out of memory.
    """

    def __init__(self, state: State, data: tuple[Tensor, Tensor], total: int, scale: Tensor | None, world: World,
                 autocast: torch.autocast):
        self.state, self.total, self.scale, self.world, self.autocast = state, total, scale, world, autocast
        self.x, self.y = data
        self.device = next(state.model.parameters()).device
        self.micro = state.config.batch_size
        self._unseen: list[tuple[int, int, Tensor, Tensor]] = []

    def step(self, rows: Tensor) -> None:
        """One step on the pictures numbered `rows` ([N])."""
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
        self._unseen.append((self.state.epoch, self.state.position + 1, rows, loss))
        # A look at the loss makes the host wait for a GPU: there, look at many steps at once.
        if self.device.type != "cuda" or len(self._unseen) >= 32:
            self.look()

    def look(self) -> None:
        """Add the losses of the steps since the last look to the state.

        Raises:
            TrainingDiverged: at the first that is no finite number.
        """
        values = torch.stack([loss for *_, loss in self._unseen]).tolist() if self._unseen else []
        for (epoch, step, rows, _), value in zip(self._unseen, values, strict=True):
            if value != value or value in (float("inf"), float("-inf")):
                raise TrainingDiverged(self._diagnosis(epoch, step, rows, value), rows=rows.tolist())
            self.state.total += value
        self._unseen.clear()

    def _diagnosis(self, epoch: int, step: int, rows: Tensor, value: float) -> str:
        broken = [row for row in rows.tolist() if not self.x[row].isfinite().all()]
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
        here = rows[own].to(self.x.device)
        x, y = (part[here].to(self.device, non_blocking=True) for part in (self.x, self.y))
        x = augment(x, draw(config.plugins, len(rows), state.generator).slice(own), config.plugins.crop)
        like = x.new_empty(()).expand(len(rows), *x.shape[1:])
        attack = plan(config, state.step, self.total, like, self.y[rows.to(self.y.device)].to(self.device),
                      state.generator, class_scale=self.scale, single=config.objective == "fast" and not state.fallback)
        attack = attack and attack.slice(own)
        parts = [slice(i, i + self.micro) for i in range(0, len(x), self.micro)]
        foes = [attack and Adversary(state.model, attack.slice(part), config) for part in parts]
        state.model.train()
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
                losses = objective(state.model, x[part], y[part], foe, lam=config.lam,
                                   smoothing=config.plugins.label_smoothing)
                loss = reduce(losses, len(losses) / whole, config.plugins.reweight)
            loss.backward()
            total += loss.detach()
        self.world.add_gradients(state.model)
        return self.world.add(total)
