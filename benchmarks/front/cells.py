"""One recipe's cells: its model, trained in a process of its own, and what the attacks make of it."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import torch

from benchmarks.cells import ROOT, TRAINING_CODE, cell, cell_file, code_key
from benchmarks.front.recipes import THREAT, Recipe
from redoubt.bundle import open_bundle, write_bundle
from redoubt.compute import keep_memory
from redoubt.data import Prepared
from redoubt.evaluation.accuracy import correct, withstands_pgd
from redoubt.evaluation.autoattack import autoattack
from redoubt.evaluation.intervals import wilson
from redoubt.models import Architecture, build
from redoubt.training import train

TRAINING = (*TRAINING_CODE, "benchmarks/front/cells.py")
MEASURING = ("redoubt/evaluation/accuracy.py", "redoubt/evaluation/autoattack.py", "redoubt/models",
             "redoubt/attacks/gradient.py", "redoubt/threat.py", "benchmarks/front/cells.py")


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def training_key(recipe: Recipe, data: Prepared, seed: int) -> dict:
    """Everything that the trained weights and their time depend on, but the machine."""
    return {"code": code_key(*TRAINING), "data": data.checksum, "recipe": recipe.key(), "seed": seed,
            "torch": torch.__version__, "threads": torch.get_num_threads()}


def bundle_folder(key: dict) -> Path:
    return cell_file("front-models", key, suffix="")


def fit(recipe: Recipe, data: Prepared, seed: int) -> None:
    """Train and write the bundle: the child process's work."""
    keep_memory()   # as the train step does
    card = data.metadata
    torch.manual_seed(seed)
    model = build(Architecture(name=recipe.network, num_classes=len(data.classes), channels=card["shape"][0],
                               size=card["shape"][1], mean=card["mean"], std=card["std"]))
    config = recipe.config(seed)
    fitted = train(model, data.tensors("train"), data.tensors("validation"), config, progress=_tell)
    write_bundle(bundle_folder(training_key(recipe, data, seed)), fitted.model, classes=data.classes,
                 threats=config.threats, objective=recipe.objective, levels=data.levels,
                 training={"history": fitted.history, "best_epoch": fitted.best_epoch})


def _tell(row: dict) -> None:
    accuracies = ", ".join(f"{name.split('_')[0]} {value:.3f}" for name, value in row.items() if "accuracy" in name)
    say(f"  epoch {row['epoch']}: {accuracies}, {row['seconds']:.0f} s, {row['seconds_left']:.0f} s left")


def trained(recipe: Recipe, data: Prepared, seed: int, extra: list[str]) -> dict:
    """The training cell: wall and processor seconds of the whole process.

    Args:
        extra: arguments that make the child prepare the same data.

    Raises:
        subprocess.CalledProcessError: when the training failed.
    """
    key = training_key(recipe, data, seed)

    def run() -> dict:
        command = [sys.executable, "-m", "benchmarks.front", "--cell", recipe.name, "--seed", str(seed),
                   "--threads", str(torch.get_num_threads()), *extra]
        start, before = time.perf_counter(), _children_seconds()
        subprocess.run(command, check=True, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)})
        seconds = time.perf_counter() - start
        return {"seconds": seconds, "cpu_seconds": _children_seconds() - before}

    return cell("front-training", key, run)


def _children_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def measured(recipe: Recipe, data: Prepared, seed: int, n: int, *, attack: bool) -> dict:
    """Clean and PGD-20 accuracy and, if `attack`, AutoAttack's; each kept as soon as it is known."""
    folder = bundle_folder(training_key(recipe, data, seed))
    weights = json.loads((folder / "manifest.json").read_text())["files"]
    key = {"code": code_key(*MEASURING), "weights": weights, "data": data.checksum, "n": n, "seed": seed}
    model, (x, y) = open_bundle(folder).model(), data.tensors("test")

    def gradient() -> dict:
        stood = withstands_pgd(model, x[:n], y[:n], THREAT, steps=20, generator=torch.Generator().manual_seed(seed))
        return {"clean": correct(model, x, y).float().mean().item(), "n_clean": len(x),
                "clean_attacked": correct(model, x[:n], y[:n]).float().mean().item(),
                "pgd20": stood.float().mean().item(), "n": n}

    def ensemble() -> dict:
        state = cell_file("front-attacks", key, suffix=".state")
        found = autoattack(model, x[:n], y[:n], THREAT, seed=seed, state=state, progress=lambda at: say(
            f"  {recipe.name}: {at['part']}, batch {at['batch']} of {at['of']}, {at['accuracy']:.1%} left"))
        low, high = wilson(int(found.stood.sum()), n)
        return {"autoattack": found.stood.float().mean().item(), "after": found.after, "low": low, "high": high,
                "attack_seconds": found.seconds}

    return cell("front-figures", key, gradient) | (cell("front-attacks", key, ensemble) if attack else {})
