"""Training epsilon x attack epsilon: does it pay to match the attack's strength, or to exceed it slightly?

Every row is one training run from scratch with the pipeline's default recipe, every column PGD-20 at one epsilon on the
same test pictures. `--plot FILE` draws it.
"""

from __future__ import annotations

from pathlib import Path

import torch

from benchmarks.cells import TRAINING_CODE, cell, code_key
from benchmarks.common import Report, prepared, table
from redoubt.data import Prepared
from redoubt.evaluation.accuracy import predict, withstands_pgd
from redoubt.models import Architecture, Classifier, build
from redoubt.threat import ThreatModel
from redoubt.training import TrainConfig, default_epochs, train

ATTACKS = (0.05, 0.1, 0.15, 0.2, 0.25)
TRAINED = (0.05, 0.1, 0.11, 0.125, 0.15, 0.2, 0.25)   # the grid, and what "slightly exceed" means for 0.1
CODE = (*TRAINING_CODE, "benchmarks/training/matrix.py")
PICTURES = 5000
COST = 0.10   # points of clean accuracy that training at 0.1 may cost


def network(data: Prepared, seed: int) -> Classifier:
    x, _ = data.tensors("train")
    torch.manual_seed(seed)
    return build(Architecture(name="compact-cnn", num_classes=len(data.classes), channels=x.shape[1], size=x.shape[-1],
                              mean=(float(x.mean()),) * x.shape[1], std=(float(x.std()),) * x.shape[1]))


def row(data: Prepared, epsilon: float, epochs: int, pictures: int, seed: int) -> dict:
    """Train at `epsilon` (0: undefended), attack at all of `ATTACKS`."""
    threats = (ThreatModel("Linf", epsilon),) if epsilon else ()
    config = TrainConfig(objective="blend" if epsilon else "standard", threats=threats, epochs=epochs, seed=seed)
    result = train(network(data, seed), data.tensors("train"), data.tensors("validation"), config)
    x, y = data.tensors("test", pictures)
    clean = (predict(result.model, x).argmax(1) == y).float().mean().item()
    robust = [withstands_pgd(result.model, x, y, ThreatModel("Linf", attack),
                             generator=torch.Generator().manual_seed(seed)).float().mean().item() for attack in ATTACKS]
    return {"clean": clean, "robust": robust, "n": len(x), "epochs": epochs, "seconds": result.seconds}


def matrix(report: Report) -> None:
    args, data, rows = report.given, prepared("fashion-mnist", report.given.data_dir), {}
    pictures = 200 if args.quick else PICTURES
    for epsilon in (0.0, 0.1) if args.quick else (0.0, *TRAINED):
        objective = "blend" if epsilon else "standard"
        epochs = 1 if args.quick else default_epochs(objective, "compact-cnn", len(data.tensors("train")[0]), 128)
        key = {"code": code_key(*CODE), "data": data.checksum, "epsilon": epsilon, "epochs": epochs,
               "pictures": pictures, "seed": args.seed}
        rows[epsilon] = cell("matrix", key, lambda epsilon=epsilon, epochs=epochs: row(data, epsilon, epochs, pictures,
                                                                                      args.seed))
        report.say(f"  trained at {epsilon:g}: clean {rows[epsilon]['clean']:.3f}, {rows[epsilon]['seconds']:.0f} s")
    header = ("trained at", "seconds", "clean", *(f"PGD-20 at {epsilon:g}" for epsilon in ATTACKS))
    report.say(table(header, [(f"{epsilon:g}", found["seconds"], found["clean"], *found["robust"])
                              for epsilon, found in rows.items()]))
    report.say(f"n = {pictures} test pictures")
    report.figures["matrix"] = {"attacks": ATTACKS, "rows": {str(epsilon): found for epsilon, found in rows.items()}}
    if not args.quick:
        _verdict(report, rows)
    if args.plot and not args.quick:
        plot(rows, args.plot)


def _verdict(report: Report, rows: dict[float, dict]) -> None:
    """Say for each attack which training epsilon answers it best, and what the next ones would have cost."""
    noise = 2 * (0.25 / PICTURES) ** 0.5   # two standard errors of a share, at most
    for i, attack in enumerate(ATTACKS):
        best = max(TRAINED, key=lambda epsilon: rows[epsilon]["robust"][i])
        within = [epsilon for epsilon in TRAINED if rows[epsilon]["robust"][i] >= rows[best]["robust"][i] - noise]
        report.say(f"attack {attack:g}: trained at {best:g} is best ({rows[best]['robust'][i]:.3f}); within "
                   f"{noise:.3f} of it: {', '.join(f'{epsilon:g}' for epsilon in within)}")
        matched = rows[attack]["robust"][i]
        report.require(matched >= rows[best]["robust"][i] - 2 * noise,
                       f"attack {attack:g}: matched training keeps {matched:.3f}, training at {best:g} "
                       f"{rows[best]['robust'][i]:.3f}")
    lost = rows[0.0]["clean"] - rows[0.1]["clean"]
    report.require(lost <= COST, f"training at 0.1 costs {lost:.3f} of clean accuracy, {COST} is allowed")


def plot(rows: dict[float, dict], file: Path) -> None:
    """Accuracy over the attack's epsilon, a line for each training epsilon; clean accuracy over training epsilon."""
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4), width_ratios=(3, 2), layout="constrained")
    shades = matplotlib.colormaps["viridis"]
    for epsilon, found in rows.items():
        colour = "0.6" if not epsilon else shades(0.95 * epsilon / max(rows))
        left.plot((0, *ATTACKS), (found["clean"], *found["robust"]), marker="o", markersize=3, color=colour,
                  label=f"{epsilon:g}" if epsilon else "undefended")
    left.set(xlabel="attack epsilon (PGD-20, Linf)", ylabel="accuracy", ylim=(0, 1))
    left.legend(title="trained at", fontsize=8)
    trained = [epsilon for epsilon in rows if epsilon]
    right.plot(trained, [rows[epsilon]["clean"] for epsilon in trained], marker="o", color="tab:blue", label="clean")
    right.axhline(rows[0.0]["clean"], color="0.6", linestyle="--", label="clean, undefended")
    ratios = sorted(epsilon for epsilon in trained)
    right.plot(ratios, [rows[epsilon]["robust"][ATTACKS.index(0.1)] for epsilon in ratios], marker="s", color="tab:red",
               label="under PGD-20 at 0.1")
    right.set(xlabel="training epsilon", ylabel="accuracy", ylim=(0, 1))
    right.legend(fontsize=8)
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None)
    pyplot.close(figure)
