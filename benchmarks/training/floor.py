"""A PGD-k step against its floor: k x (forward + input gradient) + one full forward and backward pass.

Each part is timed alone, on the same model, batch, precision and device. `gradients` is attack, loss and weight
gradients, which the floor is the floor of; `step` adds the optimizer and the average of the weights. Times are medians,
and the shares are medians of each round's own share.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.common import Report, table
from redoubt.compute import choose_kernels, device
from redoubt.models import Architecture, Classifier, build
from redoubt.threat import ThreatModel
from redoubt.training import TrainConfig
from redoubt.training.distributed import World
from redoubt.training.loop import use_bfloat16
from redoubt.training.state import State
from redoubt.training.step import Stepper

LEAST = 0.95
PEAK = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12}   # dense bfloat16, operations a second
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


def interleaved(works: dict[str, Callable[[], None]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each in every round; all take turns, so that what other programs take falls on all."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for work in works.values():
        work()   # warm caches, the allocator and, on a GPU, the choice of kernels
    for _ in range(repeats):
        for name, work in works.items():
            times[name].append(seconds(work))
    return times


def parts(name: str, steps: int, args) -> dict[str, Callable[[], None]]:
    """What is timed: the two passes that the floor is made of, and the step with and without its optimizer."""
    choose_kernels(device())   # as training does
    x, y = pictures(name, args.seed)
    model = network(name, args.seed)
    # pgd attacks the whole batch; the default objective would leave a quarter of it clean and beat its floor.
    # Uncompiled, as the floor's own passes are.
    config = TrainConfig(objective="pgd", threats=(ThreatModel("Linf", 0.1),), steps=steps, batch_size=len(x),
                         seed=args.seed, compile="off")
    state = State(model, config, 10**6)
    autocast = torch.autocast(x.device.type, torch.bfloat16, enabled=use_bfloat16(config.precision, x.device))
    stepper = Stepper(state, (x, y), 10**6, None, World(), autocast)
    rows = stepper.pictures.place(torch.arange(len(x)))

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


def share(took: dict[str, list[float]], part: str) -> float:
    """What the two passes take together over what `part` takes: the median of all rounds, each compared with itself."""
    return statistics.median((attack + weights) / whole for attack, weights, whole in zip(
        took["attack passes"], took["weight pass"], took[part], strict=True))


def share_of_peak(work: Callable[[], None], took: float) -> float:
    """The operations of products and convolutions in `work`, as a share of what the GPU's data sheet has room for in
    `took` seconds; NaN on a CPU or an unknown GPU."""
    peak = next((value for name, value in PEAK.items() if torch.cuda.is_available()
                 and name in torch.cuda.get_device_name()), None)
    if peak is None:
        return float("nan")
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops() / took / peak


def floor(report: Report) -> None:
    args, rows = report.given, []
    for name in NETWORKS:
        for steps in (5, 10):
            works = parts(name, steps, args)
            repeats = (15 if name == "compact-cnn" else 2) if args.quick else (100 if name == "compact-cnn" else 9)
            took = interleaved(works, repeats)
            reached, n = share(took, "gradients"), len(pictures(name, args.seed)[0])
            usual = {part: statistics.median(times) for part, times in took.items()}
            rows.append((name, n, steps, *(1000 * usual[part] for part in works), reached, share(took, "step"),
                         n / usual["step"], share_of_peak(works["gradients"], usual["gradients"])))
            report.require(reached >= LEAST, f"{name}, PGD-{steps}: {reached:.3f} of the floor, {LEAST} is asked for")
    header = ("network", "batch", "k", "attack passes ms", "weight pass ms", "gradients ms", "step ms",
              "floor/gradients", "floor/step", "images/s", "of bf16 peak")
    report.say(table(header, rows))
    report.figures["floor"] = [dict(zip(header, row, strict=True)) for row in rows]
