"""The training loop: seeded, deterministic on CPU, the same under `torchrun` as alone."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from redoubt.errors import InvalidInput
from redoubt.training.checkpoint import Keeper
from redoubt.training.config import TrainConfig
from redoubt.training.distributed import World
from redoubt.training.objectives.fast import overfitted
from redoubt.training.plugins import class_scale
from redoubt.training.state import State
from redoubt.training.step import Stepper
from redoubt.training.syncnorm import share, unshare
from redoubt.training.validate import validate


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What a run produced.

    Attributes:
        model: the chosen weights, in eval mode.
        history: one row for each validated epoch (all of them up to `looks`, else about so many): loss, clean and
            robust validation accuracy, which weights they are of, seconds, images a second and seconds left. For `fast`
            also `single_step_accuracy`, and `fallback: "pgd"` in the row after which single steps were given up.
        best_epoch: the epoch (from 1) whose weights were kept, by robust, else clean, validation accuracy.
        seconds: wall time, of earlier processes of a resumed run too.
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
    start: dict[str, Tensor] | None = None,
    checkpoint: Path | None = None,
    checkpoint_seconds: float = 60.0,
    progress: Callable[[dict], None] = lambda row: None,
) -> TrainResult:
    """Train `model` in place and return its best weights.

    Args:
        train_data: float pictures [N, C, H, W] in [0, 1], and labels [N].
        validation: the same, for choosing the epoch. It never enters a gradient.
        start: weights to begin with, as of `model.state_dict()`: a warm start.
        checkpoint: a file for the run's state, written every `checkpoint_seconds`; if it exists, the run goes on from
            it. It is left where it is in the end.
        progress: called with each validated epoch's row.

    Raises:
        InvalidInput: when `start` does not fit `model`.
        TrainingDiverged: when the loss stops being finite, naming epoch, step and pictures.
        ArtifactError: when `checkpoint` cannot be read, or belongs to another run.
    """
    world, device = World.current(), next(model.parameters()).device
    _warm(model, start)
    model.to(memory_format=torch.channels_last)
    world.same_start(model)
    if world.size > 1:
        share(model)
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")   # TF32 where float32 is left
    per_epoch = max(1, len(train_data[0]) // config.batch_size)
    state = State(model, config, per_epoch * config.epochs)
    keeper = Keeper(checkpoint, state, train_data, every=checkpoint_seconds) if checkpoint else None
    if keeper:
        keeper.resume()
    _epochs(state, _on_device(train_data, device), validation, per_epoch, world, keeper, progress)
    unshare(model)
    model.load_state_dict(state.best)
    model.eval()
    return TrainResult(model=model, history=state.history, best_epoch=state.best_epoch, seconds=state.seconds)


def _epochs(state: State, data, validation, per_epoch: int, world: World, keeper: Keeper | None, progress) -> None:
    config, device = state.config, next(state.model.parameters()).device
    a, scale = config.plugins.class_adaptive, None
    if a:
        scale = class_scale(data[1].cpu(), a, int(data[1].max()) + 1).to(device)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=use_bfloat16(config.precision, device))
    stepper = Stepper(state, data, per_epoch * config.epochs, scale, world, autocast)
    clock = _Clock(state, per_epoch, len(data[0]))

    def write() -> None:
        if keeper and world.rank == 0:
            stepper.look()   # a loss that is no number must not be written down as a state to go on from
            clock.note()
            keeper.write()

    while state.epoch <= config.epochs:
        order = state.shuffled(len(data[0]))
        while state.position < per_epoch:
            i = state.position * config.batch_size
            stepper.step(order[i : i + config.batch_size])
            state.advance()
            if keeper and keeper.due():
                write()
        stepper.look()
        # Of many short epochs only some are looked at: a look would cost more than the epoch.
        if state.epoch % max(1, config.epochs // config.looks) == 0 or state.epoch == config.epochs:
            row = _look(state, validation, per_epoch, world, clock)
            if world.rank == 0:
                progress(row)
        state.next_epoch()
        if config.plugins.patience and state.stale >= config.plugins.patience:
            state.epoch = config.epochs + 1
    write()
    clock.note()


def _look(state: State, validation, per_epoch: int, world: World, clock: _Clock) -> dict:
    row, candidate = validate(state, validation, world)
    row = {"epoch": state.epoch, "loss": state.total / per_epoch, **row, **clock.read()}
    if state.config.objective == "fast" and not state.fallback and overfitted([*state.history, row]):
        row["fallback"] = "pgd"
    state.keep(row, candidate)
    if "fallback" in row:
        state.fall_back()
    return row


class _Clock:
    """Seconds so far, images a second in this process, and how long the rest will take."""

    def __init__(self, state: State, per_epoch: int, n: int):
        self.state, self.start, self.before, self.first = state, time.perf_counter(), state.seconds, state.step
        self.total, self.images = per_epoch * state.config.epochs, min(state.config.batch_size, n)

    def note(self) -> float:
        self.state.seconds = self.before + time.perf_counter() - self.start
        return self.state.seconds

    def read(self) -> dict:
        seconds = self.note()
        rate = (self.state.step - self.first) / max(1e-9, seconds - self.before)
        return {"seconds": seconds, "images_per_second": round(rate * self.images, 1),
                "seconds_left": round((self.total - self.state.step) / rate, 1) if rate else 0.0}


def _warm(model: nn.Module, start: dict[str, Tensor] | None) -> None:
    if start is None:
        return
    try:
        model.load_state_dict(start)
    except RuntimeError as error:
        raise InvalidInput(f"the weights to start with are of another architecture: {error}") from None


def _on_device(data: tuple[Tensor, Tensor], device: torch.device) -> tuple[Tensor, Tensor]:
    """The training pictures on the GPU when they take less than half of what is free there, else where they are."""
    if device.type == "cuda" and data[0].nbytes < torch.cuda.mem_get_info(device)[0] / 2:
        return tuple(part.to(device) for part in data)
    return data
