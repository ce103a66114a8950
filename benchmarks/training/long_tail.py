"""Long-tailed data: class-adaptive epsilon (RobustLT, arXiv 2605.13395) against plain PGD training, class by class.

Fashion-MNIST's training split is thinned so that the largest class has 50 times the pictures of the smallest, falling
exponentially from class 0 to class 9. The test pictures stay balanced. Three seeds.
"""

from __future__ import annotations

import statistics

import torch
from torch import Tensor

from benchmarks.cells import TRAINING_CODE, cell, code_key
from benchmarks.common import Report, prepared, table
from benchmarks.training.matrix import network
from redoubt.data import Prepared
from redoubt.evaluation.accuracy import predict, withstands_pgd
from redoubt.threat import ThreatModel
from redoubt.training import Plugins, TrainConfig, default_epochs, train

RATIO, EPSILON, PICTURES = 50, 0.1, 5000
VARIANTS = {
    "plain": Plugins(),
    "RobustLT, a = 0.2": Plugins(warmup=0.2, class_adaptive=0.2),
    "RobustLT, a = 0.5": Plugins(warmup=0.2, class_adaptive=0.5),
}
CODE = (*TRAINING_CODE, "benchmarks/training/long_tail.py")


def long_tailed(x: Tensor, y: Tensor, ratio: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Thin the classes: class k of K keeps ratio^(-k / (K - 1)) of the first one's pictures (Cui et al. 2019)."""
    classes = int(y.max()) + 1
    largest, kept = int(y.bincount().min()), []
    for label in range(classes):
        rows = (y == label).nonzero()[:, 0]
        count = round(largest * ratio ** (-label / (classes - 1)))
        kept.append(rows[torch.randperm(len(rows), generator=generator)[:count]])
    rows = torch.cat(kept)
    return x[rows], y[rows]


def trained(data: Prepared, plugins: Plugins, epochs: int | None, pictures: int, seed: int) -> dict:
    """Recall by class, clean and under PGD-20, after one training run."""
    x, y = long_tailed(*data.tensors("train"), RATIO, torch.Generator().manual_seed(seed))
    epochs = epochs or default_epochs("pgd", "compact-cnn", len(x), 128)
    config = TrainConfig(objective="pgd", threats=(ThreatModel("Linf", EPSILON),), epochs=epochs, seed=seed,
                         plugins=plugins)
    result = train(network(data, seed), (x, y), data.tensors("validation"), config)
    x, y = data.tensors("test", pictures)
    clean = predict(result.model, x).argmax(1) == y
    robust = withstands_pgd(result.model, x, y, ThreatModel("Linf", EPSILON),
                            generator=torch.Generator().manual_seed(seed))
    share = [[part[y == label].float().mean().item() for label in range(len(data.classes))] for part in (clean, robust)]
    return {"clean": share[0], "robust": share[1], "seconds": result.seconds}


def long_tail(report: Report) -> None:
    args, data = report.given, prepared("fashion-mnist", report.given.data_dir)
    seeds = [args.seed] if args.quick else [args.seed + i for i in range(3)]
    variants = dict(list(VARIANTS.items())[-1:]) if args.quick else VARIANTS
    pictures, found = 300 if args.quick else PICTURES, {}
    for name, plugins in variants.items():
        for seed in seeds:
            key = {"code": code_key(*CODE), "data": data.checksum, "plugins": plugins.to_json(), "seed": seed,
                   "pictures": pictures, "quick": args.quick}
            found[name, seed] = cell("long-tail", key, lambda plugins=plugins, seed=seed: trained(
                data, plugins, 1 if args.quick else None, pictures, seed))
            report.say(f"  {name}, seed {seed}: PGD-20 {statistics.mean(found[name, seed]['robust']):.3f}")
    for measure in ("clean", "robust"):
        rows = []
        for name in variants:
            classes = list(zip(*(found[name, seed][measure] for seed in seeds), strict=True))
            means = [statistics.mean(found[name, seed][measure]) for seed in seeds]
            few = [statistics.mean(found[name, seed][measure][-3:]) for seed in seeds]
            spread = statistics.stdev(means) if len(means) > 1 else 0.0
            rows.append((name, *(statistics.mean(values) for values in classes), statistics.mean(means), spread,
                         statistics.mean(few)))
        header = (measure, *(f"{label}" for label in range(len(data.classes))), "mean", "sd", "tail (7-9)")
        report.say(f"\n{table(header, rows)}")
    counts = long_tailed(*data.tensors("train"), RATIO, torch.Generator().manual_seed(args.seed))[1].bincount().tolist()
    report.say(f"training pictures by class {counts}; n = {pictures} test pictures, balanced; seeds {seeds}")
    report.figures["long-tail"] = {f"{name}, seed {seed}": value for (name, seed), value in found.items()}
    if not args.quick:
        _verdict(report, found, seeds)


def _verdict(report: Report, found: dict, seeds: list[int]) -> None:
    def tail(name: str) -> float:
        return statistics.mean(statistics.mean(found[name, seed]["robust"][-3:]) for seed in seeds)

    report.say("; ".join(f"{name}: the three rarest classes keep {tail(name):.3f} under PGD-20" for name in VARIANTS))
