"""The training loop: one process, seeded, deterministic on CPU."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from redoubt.attacks import pgd
from redoubt.errors import TrainingDiverged
from redoubt.evaluation.accuracy import accuracy, withstands_pgd
from redoubt.training.config import TrainConfig
from redoubt.training.objectives import OBJECTIVES


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What a run produced.

    Attributes:
        model: the chosen weights, in eval mode.
        history: one row for each validated epoch (all of them up to 20, else about 20): loss, clean and robust
            validation accuracy, seconds.
        best_epoch: the epoch (from 1) whose weights were kept, by robust, else clean, validation accuracy.
        seconds: wall time.
    """

    model: nn.Module
    history: list[dict] = field(default_factory=list)
    best_epoch: int = 0
    seconds: float = 0.0


def use_bfloat16(precision: str, device: torch.device) -> bool:
    """Whether arithmetic runs in bfloat16: on request, or where the processor multiplies it natively."""
    if precision != "auto":
        return precision == "bfloat16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    return bool(getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)())


def train(
    model: nn.Module,
    train_data: tuple[Tensor, Tensor],
    validation: tuple[Tensor, Tensor],
    config: TrainConfig,
    *,
    progress: Callable[[dict], None] = lambda row: None,
) -> TrainResult:
    """Train `model` in place and return its best weights.

    Args:
        train_data: float pictures [N, C, H, W] in [0, 1], and labels [N].
        validation: the same, for choosing the epoch. It never enters a gradient.
        progress: called with each epoch's row.

    Raises:
        TrainingDiverged: when the loss stops being finite, naming the epoch and step.
    """
    x_all, y_all = train_data
    device = next(model.parameters()).device
    generator = torch.Generator(device=device).manual_seed(config.seed)
    order_generator = torch.Generator().manual_seed(config.seed)
    model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    per_epoch = max(1, len(x_all) // config.batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, config.learning_rate, total_steps=per_epoch * config.epochs, pct_start=0.3
    )
    average = copy.deepcopy(model) if config.average else None
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=use_bfloat16(config.precision, device))
    start = time.perf_counter()
    best, best_key, best_epoch, history, step = None, (-1.0, -1.0), 0, [], 0

    for epoch in range(1, config.epochs + 1):
        total, order = 0.0, torch.randperm(len(x_all), generator=order_generator)
        for i in range(per_epoch):
            rows = order[i * config.batch_size : (i + 1) * config.batch_size]
            x, y = x_all[rows].to(device), y_all[rows].to(device)
            attack = _attack(model, config, step, generator)
            model.train()
            with autocast:
                loss = OBJECTIVES[config.objective](model, x, y, attack, lam=config.lam)
            value = loss.item()
            if value != value or value in (float("inf"), float("-inf")):
                raise TrainingDiverged(
                    f"loss is {value} in epoch {epoch}, step {i + 1}: lower the learning rate "
                    f"({config.learning_rate}) or set precision to float32"
                )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            step += 1
            total += value
            if average is not None:
                _update(average, model, min(config.average, (step + 1) / (step + 10)))
        if epoch % max(1, config.epochs // 20) and epoch != config.epochs:
            continue   # many short epochs: looking at each would cost more than training it
        candidate = average if average is not None else model
        row = _validate(candidate, validation, config, generator)
        row = {"epoch": epoch, "loss": total / per_epoch, **row, "seconds": time.perf_counter() - start}
        history.append(row)
        progress(row)
        key = (row.get("robust_accuracy", row["clean_accuracy"]), row["clean_accuracy"])
        if key >= best_key:
            best, best_key, best_epoch = copy.deepcopy(candidate.state_dict()), key, epoch
    model.load_state_dict(best)
    model.eval()
    return TrainResult(model=model, history=history, best_epoch=best_epoch, seconds=time.perf_counter() - start)


def _attack(model: nn.Module, config: TrainConfig, step: int, generator: torch.Generator):
    """The attack of this step: with several threat models they take turns (the average strategy of Tramer & Boneh)."""
    if not config.threats:
        return None
    threat = config.threats[step % len(config.threats)]

    def run(x: Tensor, y: Tensor) -> Tensor:
        model.eval()
        x_adv = pgd(model, x, y, threat, steps=config.steps, alpha=config.step_size * threat.epsilon / config.steps,
                    generator=generator)
        model.train()
        return x_adv

    return run


@torch.no_grad()
def _update(average: nn.Module, model: nn.Module, decay: float) -> None:
    for mean, now in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
        if mean.is_floating_point():
            mean.lerp_(now, 1 - decay)
        else:
            mean.copy_(now)


def _validate(model: nn.Module, data: tuple[Tensor, Tensor], config: TrainConfig, generator) -> dict:
    model.eval()
    row = {"clean_accuracy": accuracy(model, *data)}
    stood = [withstands_pgd(model, *data, threat, steps=10, generator=generator) for threat in config.threats]
    return {**row, "robust_accuracy": min(float(part.float().mean()) for part in stood)} if stood else row
