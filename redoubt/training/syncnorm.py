"""Batch normalisation whose training statistics are those of the whole batch, over all processes, on any backend.

torch's own SyncBatchNorm runs on GPUs only; this one is slower, and what several gloo processes can be tested with.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn


class _Sum(torch.autograd.Function):
    """The sum over all processes. Every process's output depends on every input, so gradients are summed as well."""

    @staticmethod
    def forward(context, x: Tensor) -> Tensor:
        x = x.clone()
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(context, gradient: Tensor) -> Tensor:
        return _Sum.forward(context, gradient.contiguous())


class SharedBatchNorm2d(nn.BatchNorm2d):
    """Same parameters, buffers and eval mode as `nn.BatchNorm2d`. The gradient flows through the shared statistics."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        with torch.autocast(x.device.type, enabled=False):
            return self._whole(x.float()).to(x.dtype)

    def _whole(self, x: Tensor) -> Tensor:
        count = x.new_full((1,), x.numel() / x.shape[1])
        sums = _Sum.apply(torch.cat([x.sum((0, 2, 3)), x.square().sum((0, 2, 3)), count]))
        n, (mean, square) = sums[-1], (sums[:-1] / sums[-1]).chunk(2)
        variance = (square - mean.square()).clamp_min(0)
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * n / (n - 1).clamp_min(1), self.momentum)
        shape = (1, -1, 1, 1)
        x = (x - mean.view(shape)) * torch.rsqrt(variance + self.eps).view(shape)
        return x * self.weight.view(shape) + self.bias.view(shape)


def share(model: nn.Module) -> None:
    """Make every batch normalisation of `model` a shared one, in place; its weights stay where they are."""
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = SharedBatchNorm2d


def unshare(model: nn.Module) -> None:
    """Undo `share`: outside the group of processes the model is an ordinary one."""
    for module in model.modules():
        if type(module) is SharedBatchNorm2d:
            module.__class__ = nn.BatchNorm2d
