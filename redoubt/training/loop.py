"""The training loop: seeded, deterministic on CPU, the same under `torchrun` as alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from redoubt.compute import choose_kernels
from redoubt.errors import InvalidInput, TrainingDiverged
from redoubt.training.checkpoint import Keeper
from redoubt.training.clock import Clock, Pulse
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
        return torch.cuda.is_bf16_supported(including_emulation=False)
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
    levels: int = 255,
    progress: Callable[[dict], None] = lambda row: None,
    pulse: Pulse = lambda step, figures: None,
) -> TrainResult:
    """Train `model` in place and return its best weights.

    Args:
        train_data: pictures [N, C, H, W], floats in [0, 1] or uint8 between 0 and `levels`, and labels [N].
        validation: float pictures and labels on the model's device, for choosing the epoch. It never enters a gradient.
        start: weights to begin with, as of `model.state_dict()`: a warm start.
        checkpoint: a file for the run's state, written every `checkpoint_seconds`; if it exists, the run goes on from
            it. It is left where it is in the end.
        levels: what the pixels of uint8 pictures are divided by.
        progress: called with each validated epoch's row.
        pulse: called between two epochs, about every second, with the number of the step and with loss, learning rate,
            epoch, seconds, images a second and seconds left.

    Raises:
        InvalidInput: when `start` does not fit `model`.
        TrainingDiverged: when the loss stops being finite, naming epoch, step and pictures; when single-step training
            ends overfitted.
        ArtifactError: when `checkpoint` cannot be read, or belongs to another run.
    """
    world, device = World.current(), next(model.parameters()).device
    _warm(model, start)
    model.to(memory_format=torch.channels_last)
    world.same_start(model)
    if world.size > 1:
        share(model)
    if config.compile == "on" and world.size > 1:
        raise InvalidInput("compile 'on' needs a single process: take 'auto'")
    choose_kernels(device)
    per_epoch = max(1, len(train_data[0]) // config.batch_size)
    state = State(model, config, per_epoch * config.epochs)
    keeper = Keeper(checkpoint, state, train_data, every=checkpoint_seconds) if checkpoint else None
    if keeper:
        keeper.resume()
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=use_bfloat16(config.precision, device))
    stepper = Stepper(state, train_data, per_epoch * config.epochs, _scale(config, train_data[1], device), world,
                      autocast, levels)
    _epochs(stepper, validation, per_epoch, keeper, progress, Clock(state, per_epoch, len(train_data[0]), pulse))
    unshare(model)
    _refuse_collapsed(state)
    model.load_state_dict(state.best)
    model.eval()
    return TrainResult(model=model, history=state.history, best_epoch=state.best_epoch, seconds=state.seconds)


def _scale(config: TrainConfig, labels: Tensor, device: torch.device) -> Tensor | None:
    a = config.plugins.class_adaptive
    return class_scale(labels.cpu(), a, int(labels.max()) + 1).to(device) if a else None


def _epochs(stepper: Stepper, validation, per_epoch: int, keeper: Keeper | None, progress, clock: Clock) -> None:
    state, config, world = stepper.state, stepper.state.config, stepper.world

    def write() -> None:
        if keeper and world.rank == 0:
            clock.heard(stepper.look())   # a loss that is no number must not be written down as a state to go on from
            clock.note()
            keeper.write()

    while state.epoch <= config.epochs:
        order = stepper.pictures.place(state.shuffled(len(stepper.pictures)))
        while state.position < per_epoch:
            i = state.position * config.batch_size
            losses = stepper.step(order[i : i + config.batch_size])
            state.advance()
            clock.heard(losses)
            if keeper and keeper.due():
                write()
        clock.heard(stepper.look())
        # Of many short epochs only some are looked at: a look would cost more than the epoch. Single-step training can
        # collapse from one to the next.
        every = 1 if config.objective == "fast" else max(1, config.epochs // config.looks)
        if state.epoch % every == 0 or state.epoch == config.epochs:
            row = _look(stepper, validation, per_epoch, clock)
            if world.rank == 0:
                progress(row)
        state.next_epoch()
        if config.plugins.patience and state.stale >= config.plugins.patience:
            state.epoch = config.epochs + 1
    write()
    clock.note()


def _look(stepper: Stepper, validation, per_epoch: int, clock: Clock) -> dict:
    state = stepper.state
    with stepper.autocast:
        row, candidate = validate(state, validation, stepper.world)
    row = {"epoch": state.epoch, "updates": state.step, "loss": state.total / per_epoch, **row, **clock.read()}
    if state.config.objective == "fast" and not state.fallback and overfitted([*state.history, row]):
        row["fallback"] = "pgd"
    state.keep(row, candidate)
    if "fallback" in row:
        state.fall_back()
    return row


def _refuse_collapsed(state: State) -> None:
    """Raise TrainingDiverged when the best weights of the run are those over which the alarm was raised."""
    best = next((row for row in state.history if row["epoch"] == state.best_epoch), {})
    if "fallback" in best:
        raise TrainingDiverged(
            f"single-step training overfitted catastrophically by epoch {best['epoch']} (FGSM leaves "
            f"{best['single_step_accuracy']:.3f}, PGD {best['robust_accuracy']:.3f}), and no epoch against PGD mended "
            "it: take objective 'pgd', or more epochs")


def _warm(model: nn.Module, start: dict[str, Tensor] | None) -> None:
    if start is None:
        return
    try:
        model.load_state_dict(start)
    except RuntimeError as error:
        raise InvalidInput(f"the weights to start with are of another architecture: {error}") from None
