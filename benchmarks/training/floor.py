"""A PGD-k step against its floor: k x (forward + input gradient) + one full forward and backward pass.

Each part is timed alone, on the same model, batch, precision and device. `gradients` is attack, loss and weight
gradients, which the floor is the floor of; `step` adds the optimizer and the average of the weights.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

from benchmarks.common import Report, table
from redoubt.compute import device
from redoubt.models import Architecture, Classifier, build
from redoubt.threat import ThreatModel
from redoubt.training import TrainConfig
from redoubt.training.distributed import World
from redoubt.training.loop import use_bfloat16
from redoubt.training.state import State
from redoubt.training.step import Stepper

LEAST = 0.95
NETWORKS = {   # name: (channels, size, batch size on a CPU, on a GPU)
    "compact-cnn": (1, 28, 128, 2048),
    "preactresnet-18": (3, 32, 32, 512),
}


def network(name: str, seed: int) -> Classifier:
    channels, size, *_ = NETWORKS[name]
    torch.manual_seed(seed)
    model = build(Architecture(name=name, num_classes=10, channels=channels, size=size, mean=(0.3,) * channels,
                               std=(0.3,) * channels))
    return model.to(device(), memory_format=torch.channels_last)


def pictures(name: str, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """One batch of random pictures: time does not depend on what they show."""
    channels, size, *batch = NETWORKS[name]
    generator = torch.Generator().manual_seed(seed)
    n = batch[device().type == "cuda"]
    return (torch.rand(n, channels, size, size, generator=generator).to(device()),
            torch.randint(10, (n,), generator=generator).to(device()))


def seconds(work: Callable[[], None]) -> float:
    """Wall time of one call, the device's work included."""
    if device().type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    if device().type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def interleaved(works: dict[str, Callable[[], None]], repeats: int) -> dict[str, float]:
    """The least time of each: what other programs add is never negative, and taking turns spreads it over all."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for work in works.values():
        work()   # warm caches, the allocator and, on a GPU, the choice of kernels
    for _ in range(repeats):
        for name, work in works.items():
            times[name].append(seconds(work))
    return {name: min(values) for name, values in times.items()}


def parts(name: str, steps: int, args) -> dict[str, Callable[[], None]]:
    """What is timed: the two passes that the floor is made of, and the step with and without its optimizer."""
    x, y = pictures(name, args.seed)
    model = network(name, args.seed)
    # pgd attacks the whole batch; the default objective would leave a quarter of it clean and beat its floor.
    config = TrainConfig(objective="pgd", threats=(ThreatModel("Linf", 0.1),), steps=steps, batch_size=len(x),
                         seed=args.seed)
    state = State(model, config, 10**6)
    autocast = torch.autocast(x.device.type, torch.bfloat16, enabled=use_bfloat16(config.precision, x.device))
    stepper = Stepper(state, (x, y), 10**6, None, World(), autocast)
    rows = torch.arange(len(x))

    def attack_passes() -> None:
        model.eval()
        with autocast:   # one context for all, as in the step: inside it the weights are cast once
            for _ in range(steps):
                leaf = x.detach().requires_grad_()
                torch.autograd.grad(F.cross_entropy(model(leaf), y, reduction="sum"), leaf)

    def weight_pass() -> None:
        model.train()
        state.optimizer.zero_grad(set_to_none=True)
        with autocast:
            loss = F.cross_entropy(model(x), y)
        loss.backward()

    def step() -> None:
        stepper.step(rows)
        state.advance()

    return {"attack passes": attack_passes, "weight pass": weight_pass, "gradients": lambda: stepper.gradients(rows),
            "step": step}


def least_time(steps: int, attack_pass: float, weight_pass: float) -> float:
    """What `steps` of PGD and one training pass must take, if nothing came on top of them."""
    return steps * attack_pass + weight_pass


def floor(report: Report) -> None:
    args, rows = report.given, []
    for name in NETWORKS:
        for steps in (5, 10):
            works = parts(name, steps, args)
            repeats = (15 if name == "compact-cnn" else 2) if args.quick else (60 if name == "compact-cnn" else 9)
            took = interleaved(works, repeats)
            least = least_time(steps, took["attack passes"] / steps, took["weight pass"])
            share, n = least / took["gradients"], len(pictures(name, args.seed)[0])
            rows.append((name, n, steps, *(1000 * took[part] for part in works), 1000 * least,
                         share, least / took["step"], n / took["step"]))
            report.require(share >= LEAST, f"{name}, PGD-{steps}: {share:.3f} of the floor, {LEAST} is asked for")
    header = ("network", "batch", "k", "attack passes ms", "weight pass ms", "gradients ms", "step ms", "floor ms",
              "floor/gradients", "floor/step", "images/s")
    report.say(table(header, rows))
    report.figures["floor"] = [dict(zip(header, row, strict=True)) for row in rows]
