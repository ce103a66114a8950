"""What computes: the device, and how many threads are worth having."""

from __future__ import annotations

import ctypes
import os
import platform
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from itertools import islice
from pathlib import Path
from typing import TypeVar

import torch

T = TypeVar("T")

_WORKERS = 4   # tasks at a time at most; with more, Python's lock would be waited for
_SMALL = 16   # pixels a side up to which one thread does a batch sooner than several do
# glibc's numbers for mallopt(3): from which size on a block is mapped by itself (32 MiB is the most that older versions
# take), and how much free memory may lie at the heap's end before it is given back.
_MMAP_THRESHOLD, _MAPPED = -3, 32 * 2**20
_TRIM_THRESHOLD, _KEPT = -1, 2**30


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


def side_by_side(tasks: Iterable[Callable[[], T]], where: torch.device) -> Iterator[T]:
    """The results of `tasks` in their order, some computed at the same time: on a CPU by threads that share torch's.

    For work on small batches, on which several threads of torch's own would mostly wait for each other. Tasks are taken
    in the calling thread, no more than are needed to keep the others busy, however long the first one takes; so results
    that wait for it have to be small. They must not depend on one another, and no two may draw from torch's global
    generator. The first that fails ends it, as Ctrl-C does, once those under way have ended. Meanwhile new threads of
    the process get fewer of torch's.
    """
    threads = torch.get_num_threads() if where.type == "cpu" else 1
    workers = min(threads, _WORKERS)
    if workers == 1:
        yield from (task() for task in tasks)
        return
    tasks, waiting, busy = iter(tasks), deque(), set()
    try:
        with ThreadPoolExecutor(workers, "task", torch.set_num_threads, (threads // workers,)) as pool:
            torch.set_num_threads(threads // workers)   # here, too: the others compute already
            try:
                while True:
                    for task in islice(tasks, 2 * workers - len(busy)):
                        waiting.append(pool.submit(task))
                        busy.add(waiting[-1])
                    if not waiting:
                        return
                    while waiting and waiting[0].done():
                        yield waiting.popleft().result()
                    done, busy = wait(busy, return_when=FIRST_COMPLETED)
                    for future in done:
                        future.result()   # raises what it raised, before its turn
            finally:
                for future in waiting:
                    future.cancel()
    finally:
        torch.set_num_threads(threads)   # the last number set is what every new thread of the process gets


def choose_kernels(where: torch.device) -> None:
    """Let a GPU take its quick kernels: TF32 where float32 is left (convolutions have it by default), and for each
    shape the convolution that proves quickest. Batches are of one size, so trying them out pays."""
    if where.type == "cuda":
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.benchmark = True


def keep_memory() -> bool:
    """Ask the C library to keep freed memory rather than give it back to the system. Returns whether it does.

    Every training step frees the blocks that the next one asks for, and a page that comes fresh from the system has to
    be zeroed first: without this, a step takes 8 to 10 % longer. It holds for the whole process and for good, and what
    was once taken mostly stays taken: for a process that does nothing but train or evaluate. Without glibc, nothing
    changes.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return False
    # The first alone would do no harm, the second alone would: any of the two freezes the other at its default.
    return bool(mallopt(_MMAP_THRESHOLD, _MAPPED)) and bool(mallopt(_TRIM_THRESHOLD, _KEPT))


def processor() -> str:
    """The processor's name behind its number of cores, such as `2 x AMD EPYC`."""
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return f"{os.cpu_count()} x {name}"
