"""What is done to weights besides the optimizer's step: averaging, and adversarial perturbation."""

from __future__ import annotations

from contextlib import contextmanager

import torch
from torch import Tensor, nn


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, decay: float) -> None:
    """Move the exponential average of the weights one step towards `model`; counters are copied."""
    for mean, now in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
        if mean.is_floating_point():
            mean.lerp_(now, 1 - decay)
        else:
            mean.copy_(now)


@contextmanager
def uphill(model: nn.Module, gamma: float):
    """Adversarial weight perturbation (Wu et al. 2020, arXiv 2004.05884): inside, every layer's weights are moved along
    their gradient by `gamma` times their own length; afterwards they are what they were, bit for bit.

    The gradients must stand in `.grad`; they are cleared. Biases and norms (one-dimensional) are left alone.
    """
    before: list[tuple[Tensor, Tensor]] = []
    try:
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1 and parameter.grad is not None:
                    before.append((parameter, parameter.clone()))
                    length = parameter.grad.norm().clamp_min(torch.finfo(parameter.dtype).tiny)
                    parameter.add_(parameter.grad * (gamma * parameter.norm() / length))
        model.zero_grad(set_to_none=True)
        yield
    finally:
        with torch.no_grad():
            for parameter, value in before:
                parameter.copy_(value)


@contextmanager
def buffers_kept(model: nn.Module):
    """Afterwards every buffer (batch-norm statistics) is what it was: a second pass must not count twice."""
    before = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        for buffer, value in before:
            buffer.copy_(value)
