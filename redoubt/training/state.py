"""All that changes during a run, in one place, so that it can be written down and taken up again."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from redoubt.training.config import TrainConfig
from redoubt.training.weights import update_average


class State:
    """The mutable side of a run.

    Attributes:
        epoch, position, step: where the run stands: the epoch from 1, steps done in it, steps done in all.
        total: sum of this epoch's losses.
        history, best_epoch, best_key, best: the rows so far, and the weights that validated best.
        stale: looks at the validation split since the best one.
        fallback: whether `fast` has given up single steps for PGD.
        seconds: wall time of earlier processes of this run.
    """

    def __init__(self, model: nn.Module, config: TrainConfig, total: int):
        device = next(model.parameters()).device
        self.model, self.config = model, config
        self.average = copy.deepcopy(model) if config.average else None
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate,
                                           weight_decay=config.weight_decay, fused=True)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer, config.learning_rate, total_steps=total, pct_start=0.3
        )
        self.generator = torch.Generator(device=device).manual_seed(config.seed)
        self.order = torch.Generator().manual_seed(config.seed)
        self.order_before = self.order.get_state()
        self.epoch, self.position, self.step, self.total = 1, 0, 0, 0.0
        self.history: list[dict] = []
        self.best: dict[str, Tensor] = copy.deepcopy(model.state_dict())
        self.best_key, self.best_epoch, self.stale = (-1.0, -1.0), 0, 0
        self.fallback, self.seconds = False, 0.0

    def shuffled(self, n: int) -> Tensor:
        """The order of this epoch; the same again when a run is taken up in the middle of it."""
        self.order.set_state(self.order_before)
        return torch.randperm(n, generator=self.order)

    def advance(self) -> None:
        """Count a step and let the average follow."""
        self.position += 1
        self.step += 1
        if self.average is not None:
            decay = min(self.config.average, (self.step + 1) / (self.step + 10))
            update_average(self.average, self.model, decay)

    def next_epoch(self) -> None:
        self.order_before = self.order.get_state()
        self.epoch, self.position, self.total = self.epoch + 1, 0, 0.0

    def keep(self, row: dict, candidate: nn.Module) -> None:
        """Add a validated row; its weights become the best if nothing before was better."""
        self.history.append(row)
        key = (row.get("robust_accuracy", row["clean_accuracy"]), row["clean_accuracy"])
        self.stale += 1
        if key >= self.best_key:
            self.stale = self.stale if key == self.best_key else 0
            self.best, self.best_key, self.best_epoch = copy.deepcopy(candidate.state_dict()), key, row["epoch"]

    def fall_back(self) -> None:
        """Go on with PGD from the best weights so far, without the moments that led away from them."""
        self.fallback = True
        for module in (self.model, self.average):
            if module is not None:
                module.load_state_dict(self.best)
        self.optimizer.state.clear()

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor of the run by name, on the CPU; none shares memory with another."""
        parts = {"model": self.model.state_dict(), "best": self.best,
                 "random": {"noise": self.generator.get_state(), "order": self.order.get_state(),
                            "order_before": self.order_before}}
        if self.average is not None:
            parts["average"] = self.average.state_dict()
        for i, moments in self.optimizer.state_dict()["state"].items():
            parts[f"optimizer.{i}"] = moments
        return {f"{part}/{name}": tensor.detach().cpu().contiguous().clone()
                for part, named in parts.items() for name, tensor in named.items()}

    _PLAIN = ("epoch", "position", "step", "total", "history", "best_epoch", "best_key", "stale", "fallback", "seconds")

    def values(self) -> dict:
        """Everything else, as JSON; floats survive it bit for bit."""
        groups = [{"lr": group["lr"], "betas": group["betas"]} for group in self.optimizer.param_groups]
        return {name: getattr(self, name) for name in self._PLAIN} | {"groups": groups}

    def restore(self, tensors: dict[str, Tensor], values: dict) -> None:
        """Take up what `tensors` and `values` gave."""
        parts: dict[str, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            part, key = name.split("/", 1)
            parts.setdefault(part, {})[key] = tensor
        device = next(self.model.parameters()).device
        self.model.load_state_dict(parts["model"])
        if self.average is not None:
            self.average.load_state_dict(parts["average"])
        self.best = {name: tensor.to(device) for name, tensor in parts["best"].items()}
        self.generator.set_state(parts["random"]["noise"])
        self.order.set_state(parts["random"]["order"])
        self.order_before = parts["random"]["order_before"]
        for name in self._PLAIN:
            setattr(self, name, values[name])
        self.best_key = tuple(self.best_key)
        self._restore_optimizer(parts, values["groups"])

    def _restore_optimizer(self, parts: dict[str, dict[str, Tensor]], groups: list[dict]) -> None:
        for group, saved in zip(self.optimizer.param_groups, groups, strict=True):
            group |= {"lr": saved["lr"], "betas": tuple(saved["betas"])}
        self.schedule.last_epoch, self.schedule._step_count = self.step, self.step + 1
        device = next(self.model.parameters()).device
        for i, parameter in enumerate(self.model.parameters()):
            moments = parts.get(f"optimizer.{i}", {})
            if moments:   # in the weights' own memory format, as the optimizer had made them
                self.optimizer.state[parameter] = {
                    name: value.to(device, copy=True) if name == "step" else torch.empty_like(parameter).copy_(value)
                    for name, value in moments.items()   # fused AdamW keeps its count of steps on the device, too
                }
