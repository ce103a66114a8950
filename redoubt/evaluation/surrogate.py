"""What stands beside the model under test: a surrogate to transfer attacks from, and what a standard epoch costs."""

from __future__ import annotations

import copy
import time

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from redoubt.models import Architecture, build

BATCH, RATE = 64, 2e-3
TIMED_STEPS = 8


def fit_surrogate(architecture: Architecture, x: Tensor, y: Tensor, *, epochs: int = 3, seed: int = 1) -> nn.Module:
    """A small network trained on the same task, undefended: what an attacker without access would use.

    Args:
        architecture: of the model under test; the surrogate is a compact CNN for the same inputs and classes.
        x, y: training pictures [N, C, H, W] in [0, 1] and labels, on the device to train on.

    Returns:
        The network in eval mode. torch's global random state is left as it was.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        small = build(Architecture(**(architecture.to_json() | {"name": "compact-cnn"}))).to(x.device)
        _train(small, x, y, epochs, torch.Generator().manual_seed(seed))
    return small.eval()


def _train(model: nn.Module, x: Tensor, y: Tensor, epochs: int, generator: torch.Generator) -> None:
    steps = epochs * -(-len(x) // BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    model.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(x), generator=generator).to(x.device).split(BATCH):
            optimizer.zero_grad()
            F.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()
            schedule.step()


def standard_epoch_seconds(model: nn.Module, x: Tensor, y: Tensor, pictures: int, *, batch_size: int = 128) -> float:
    """How long one epoch of standard training of this network over `pictures` images takes here, from a few steps.

    The quickest of them counts, which is the one that other work on the machine held up least. The network itself is
    not changed.
    """
    twin = copy.deepcopy(model).train()
    optimizer = torch.optim.AdamW(twin.parameters(), lr=1e-4)
    x, y = x[:batch_size], y[:batch_size]
    quickest = float("inf")
    for _ in range(TIMED_STEPS):
        _wait(x)
        start = time.perf_counter()
        optimizer.zero_grad()
        F.cross_entropy(twin(x), y).backward()
        optimizer.step()
        _wait(x)
        quickest = min(quickest, time.perf_counter() - start)
    return quickest / len(x) * pictures


def _wait(x: Tensor) -> None:
    if x.is_cuda:
        torch.cuda.synchronize()
