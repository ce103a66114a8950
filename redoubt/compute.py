"""What computes: the device, and how many threads are worth having."""

from __future__ import annotations

import ctypes
import os
import platform
from pathlib import Path

import torch

_SMALL = 16   # pixels a side up to which one thread does a batch sooner than several do
_KEPT = 2**30   # bytes of freed memory that a training process keeps at most
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3   # glibc's numbers for them, mallopt(3)


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


def keep_memory() -> None:
    """Ask the C library to keep freed memory rather than give it back to the system.

    Every training step frees the blocks that the next one asks for, and a page that comes fresh from the system has to
    be zeroed first: without this, a step takes 8 to 10 % longer. Without glibc, nothing changes.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return
    mallopt(_TRIM_THRESHOLD, _KEPT)
    mallopt(_MMAP_THRESHOLD, _KEPT)


def processor() -> str:
    """The processor's name behind its number of cores, such as `2 x AMD EPYC`."""
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return f"{os.cpu_count()} x {name}"
