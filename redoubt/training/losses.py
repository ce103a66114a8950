"""The losses of steps already taken, read late, so that the host never waits for a GPU in the middle of a step."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

LATE = 32   # steps of a GPU that are read together, while the next ones run


class Loss(NamedTuple):
    """One step's loss: epoch and step from 1, the numbers of its pictures ([N]), and the value."""

    epoch: int
    step: int
    rows: Tensor
    value: Tensor | float


class Losses:
    """A queue. On a CPU a loss can be read at once; on a GPU a copy of every 32 is started and read 32 steps later."""

    def __init__(self, device: torch.device):
        self._cuda = device.type == "cuda"
        self._new: list[Loss] = []
        self._on_its_way: list[tuple[list[Loss], Tensor, torch.cuda.Event | None]] = []

    def add(self, loss: Loss) -> list[Loss]:
        """Take one more; returns those that can be read without waiting, oldest first."""
        self._new.append(loss)
        if self._cuda and len(self._new) < LATE:
            return []
        before = [] if not self._cuda else self._arrived()
        self._send()
        return before if self._cuda else self._arrived()

    def rest(self) -> list[Loss]:
        """All that are left; waits for them."""
        self._send()
        return self._arrived()

    def _send(self) -> None:
        if not self._new:
            return
        values, event = torch.stack([loss.value for loss in self._new]), None
        if self._cuda:
            values, event = values.to("cpu", non_blocking=True), torch.cuda.Event()   # into pinned memory
            event.record()
        self._on_its_way.append((self._new, values, event))
        self._new = []

    def _arrived(self) -> list[Loss]:
        read = []
        for losses, values, event in self._on_its_way:
            if event is not None:
                event.synchronize()   # long past, when a batch of steps lies between
            read += [loss._replace(value=value) for loss, value in zip(losses, values.tolist(), strict=True)]
        self._on_its_way.clear()
        return read
