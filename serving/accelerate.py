"""A faster form of a model for the CPU: traced, constants folded, layers laid out for oneDNN. Used where it pays.

In batches of 32 the compact CNN took a third of the time when this was written, PreActResNet-18 a tenth less; single
inputs gained nothing. So both are kept, and which one answers a batch of which size is measured when the first version
of an architecture loads: weights do not change it, and beside traffic there is no quiet moment to measure in.
"""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from serving.calm import no_pause

NEVER = 2**31   # inputs in a batch: where the frozen form does not pay
log = logging.getLogger("redoubt.serving")
_SIZES = (1, 8, 32)
_ROUNDS = 5
_TOLERANCE = 1e-4   # of a probability: another order of additions moves the last bits, no more


@dataclass(frozen=True)
class Accelerated:
    """Both forms of a model: x [N, C, H, W] to logits [N, K].

    Attributes:
        least: inputs in a batch from which the frozen form is the quicker one.
    """

    model: nn.Module
    frozen: Callable[[Tensor], Tensor]
    least: int

    def __call__(self, x: Tensor) -> Tensor:
        return self.frozen(x) if len(x) >= self.least else self.model(x)


def accelerate(
    model: nn.Module, shape: tuple[int, int, int], *, least: int | None = None,
    pause: Callable[[], None] = no_pause,
) -> Callable[[Tensor], Tensor]:
    """The model's quickest form on the CPU; the model itself where nothing else is quicker, or equal.

    Args:
        shape: (channels, height, width) of one input.
        least: from which batch size the frozen form pays, where that is known; it is not measured again.
        pause: called between two steps.
    """
    if least == NEVER:
        return model
    random = torch.Generator().manual_seed(0)
    batches = [torch.rand(n, *shape, generator=random) for n in _SIZES]
    try:
        with torch.inference_mode():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                frozen = torch.jit.optimize_for_inference(torch.jit.trace(model, batches[1], check_trace=False))
            for x in batches:
                pause()
                if not _same(model(x), frozen(x)):
                    log.warning("the frozen form of %s answers otherwise: it is left aside", type(model).__name__)
                    return model
            if least is None:
                least = _least(model, frozen, batches)
    except Exception as error:   # what cannot be traced is served as it is
        log.info("%s cannot be frozen: %s", type(model).__name__, error)
        return model
    return model if least == NEVER else Accelerated(model, frozen, least)


def least_of(form: Callable[[Tensor], Tensor] | None) -> int | None:
    """What was found out about a form that `accelerate` made; None where nothing was."""
    return form.least if isinstance(form, Accelerated) else NEVER if form is not None else None


def _least(model: nn.Module, frozen: Callable[[Tensor], Tensor], batches: list[Tensor]) -> int:
    quicker = [_seconds(frozen, x) < 0.95 * _seconds(model, x) for x in batches]
    return next((n for i, n in enumerate(_SIZES) if all(quicker[i:])), NEVER)


def _same(one: Tensor, other: Tensor) -> bool:
    return bool(((one.softmax(1) - other.softmax(1)).abs() <= _TOLERANCE).all())


def _seconds(form: Callable[[Tensor], Tensor], x: Tensor) -> float:
    """The least of a few times: what else runs on the machine only ever adds."""
    times = []
    for _ in range(_ROUNDS):
        began = time.perf_counter()
        form(x)
        times.append(time.perf_counter() - began)
        if len(times) >= 2 and sum(times) > 0.5:
            break
    return min(times)
