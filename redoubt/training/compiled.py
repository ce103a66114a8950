"""torch.compile for what a step runs most, where it pays: decided by measuring, and only with the same outputs."""

from __future__ import annotations

import time
import warnings
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from redoubt.errors import InvalidInput
from redoubt.training.weights import buffers_kept

BACKEND = "inductor"
AFTER = 20           # steps before `auto` measures: the device is warm by then
WORTH = 180.0        # seconds that the rest of a run must take uncompiled; compiling takes up to a minute
GAIN = 1.05          # how much quicker compiled steps must be
TOLERANCE = 0.1      # of the largest logit or gradient: rounding in bfloat16, with some room


def compiled(model: nn.Module) -> nn.Module:
    """A compiled view of `model`: the same weights, other kernels. Batches of each size are compiled anew."""
    return torch.compile(model, backend=BACKEND, dynamic=False)


@contextmanager
def frozen(model: nn.Module):
    """Inside, no weight takes a gradient: a compiled backward pass computes every gradient that could be asked for, and
    an attack asks for the picture's alone.
    """
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    try:
        for weight in weights:
            weight.requires_grad_(False)
        yield
    finally:
        for weight in weights:
            weight.requires_grad_(True)


def difference(model: nn.Module, other: nn.Module, x: Tensor, y: Tensor) -> float:
    """How far logits and input gradients of two networks lie apart in eval mode, as a share of the largest entry."""
    found = []
    for network in (model, other):
        network.eval()
        with frozen(model):
            leaf = x.detach().requires_grad_()
            logits = network(leaf)
            gradient = torch.autograd.grad(F.cross_entropy(logits, y, reduction="sum"), leaf)[0]
        found.append((logits.detach().float(), gradient.float()))
    return max(float((a - b).abs().max() / a.abs().max().clamp_min(1e-12)) for a, b in zip(*found, strict=True))


def choose(stepper, rows: Tensor, left: int) -> nn.Module:
    """What the steps are to call: the model, or its compiled view.

    Takes a few trial steps whose gradients are thrown away; weights, statistics and random numbers stay as they are.

    Args:
        stepper: a `Stepper`.
        rows: the numbers of a batch's pictures.
        left: steps that the run still has.

    Raises:
        InvalidInput: when `compile` is `on`, and compiling fails or changes the outputs.
    """
    model, must = stepper.state.model, stepper.state.config.compile == "on"
    eager = 0.0 if must else _seconds(stepper, rows, model)
    if not must and eager * left < WORTH:
        return model
    try:
        fast = compiled(model)
        part = rows[: stepper.micro]   # what a step computes at a time: more may not fit into memory
        x, y = stepper.pictures.batch(part), stepper.pictures.labels(part)
        with stepper.autocast:
            apart = difference(model, fast, x, y)
        if not apart <= TOLERANCE:
            raise RuntimeError(f"outputs differ by {apart:.2g} of their size")
        quick = 0.0 if must else _seconds(stepper, rows, fast)
    except Exception as error:   # compilers fail in many ways, and none of them is a reason to stop training
        if must:
            raise InvalidInput(f"compile 'on' does not work here, take 'auto' or 'off': {_first_line(error)}") from None
        warnings.warn(f"training goes on uncompiled: {_first_line(error)}", stacklevel=2)
        return model
    return fast if must or eager > GAIN * quick else model


def _seconds(stepper, rows: Tensor, network: nn.Module, repeats: int = 3) -> float:
    """Seconds that the gradients of one batch take with `network`; the first pass, which compiles, is not counted."""
    noise, had, took = stepper.state.generator.get_state(), stepper.network, []
    stepper.network = network
    try:
        with buffers_kept(stepper.state.model):
            for _ in range(repeats + 1):
                start = time.perf_counter()
                float(stepper.gradients(rows))   # waits for the device
                took.append(time.perf_counter() - start)
    finally:
        stepper.network = had
        stepper.state.generator.set_state(noise)
        stepper.state.optimizer.zero_grad(set_to_none=True)
    return min(took[1:])


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
