"""What computes: the device, and how many threads are worth having."""

from __future__ import annotations

import torch

_SMALL = 16   # pixels a side up to which one thread does a batch sooner than several do


def device() -> torch.device:
    """CUDA when there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def settle_threads(size: int) -> None:
    """Use one thread for pictures of at most 16 pixels a side: beyond that, threads would mostly wait for each other.

    On a machine with other work the waiting is ruinous: ten times slower, measured on the digits with both of two
    cores taken.
    """
    if size <= _SMALL:
        torch.set_num_threads(1)
