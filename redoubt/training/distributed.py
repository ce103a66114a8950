"""Several processes as one: `torchrun` starts them, each attacks and differentiates its own slice of every batch.

Gradients are summed in one flat message after the backward pass, rather than by DistributedDataParallel: its hooks
expect one forward pass for each backward, while an attack makes many that must not touch the weight gradients.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass(frozen=True)
class World:
    """This process's number and how many there are; (0, 1) outside `torchrun`."""

    rank: int = 0
    size: int = 1

    @classmethod
    def current(cls) -> World:
        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size())
        return cls()

    def part(self, n: int) -> slice:
        """This process's slice of `n` images; slices differ by one image at most."""
        return slice(self.rank * n // self.size, (self.rank + 1) * n // self.size)

    def add(self, tensor: Tensor) -> Tensor:
        """The sum over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def agree(self, row: dict) -> dict:
        """Numbers that are the same everywhere, whatever each process's device rounded to."""
        if self.size == 1:
            return row
        values = torch.tensor(list(row.values()), dtype=torch.float64)
        values = self.add(values.cuda() if dist.get_backend() == "nccl" else values) / self.size
        return dict(zip(row, values.tolist(), strict=True))

    def add_gradients(self, model: nn.Module) -> None:
        """Replace every gradient by its sum over all processes."""
        if self.size == 1:
            return
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        flat = self.add(torch.cat([gradient.flatten() for gradient in gradients]))
        for gradient, summed in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(summed.view_as(gradient))

    def same_start(self, model: nn.Module) -> None:
        """Give every process the first one's weights and buffers."""
        if self.size > 1:
            for tensor in model.state_dict().values():
                dist.broadcast(tensor, 0)


@contextmanager
def processes():
    """Join the group that `torchrun` set up (NCCL on GPUs, else gloo) and leave it in the end. Yields the `World`.

    Without torchrun's environment there is one process, and nothing happens.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield World()
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield World.current()
    finally:
        dist.destroy_process_group()
