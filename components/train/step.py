"""Train a model on prepared data and write its bundle."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import torch

from components.context import CHECKPOINTS
from redoubt.bundle import Bundle, write_bundle
from redoubt.compute import device, settle_threads
from redoubt.data import Prepared
from redoubt.models import Architecture, build
from redoubt.threat import ThreatModel, cover, load_threats
from redoubt.training import TrainConfig, default_epochs, load_plugins, train

# Datasets whose pictures stay what they are when mirrored or moved by a few pixels. Digits and letters do not.
AUGMENT = {"cifar10": {"flip": True, "crop": 4}, "cifar100": {"flip": True, "crop": 4}}


def run(
    data: Path,
    out: Path,
    *,
    architecture: str = "compact-cnn",
    objective: str = "pgd",
    norm: str = "Linf",
    epsilon: float = 0.1,
    also: str = "[]",
    epochs: int = 0,
    steps: int = 5,
    lam: float = 1.0,
    plugins: str = "{}",
    seed: int = 0,
    precision: str = "auto",
    progress: Callable[[dict], None] = lambda row: None,
) -> Bundle:
    """Train and write a bundle without report and detector.

    Args:
        also: JSON list of further [norm, epsilon] pairs to cover, as a retrain does with the champion's set.
        epochs: 0 takes the default for objective, architecture and number of pictures.
        plugins: JSON object, see `redoubt.training.Plugins`. CIFAR is flipped and cropped unless it says otherwise.
        progress: called with one row an epoch.

    A run that was killed goes on from its last checkpoint, where the environment names a folder for them.
    """
    prepared = Prepared.open(data)
    shape = prepared.metadata["shape"]
    settle_threads(shape[1])
    where = device()
    threats = () if objective == "standard" else cover([ThreatModel(norm, epsilon)], load_threats(also))
    pictures = prepared.tensors("train")
    batch_size = min(128, max(16, len(pictures[0]) // 10))
    config = TrainConfig(
        objective=objective, threats=threats, steps=steps, lam=lam, seed=seed, precision=precision,
        plugins=load_plugins(plugins, **AUGMENT.get(prepared.metadata["dataset"], {})), batch_size=batch_size,
        epochs=epochs or default_epochs(objective, architecture, len(pictures[0]), batch_size),
    )
    torch.manual_seed(seed)
    model = build(Architecture(
        name=architecture, num_classes=len(prepared.classes), channels=shape[0], size=shape[1],
        mean=prepared.metadata["mean"], std=prepared.metadata["std"],
    )).to(where)
    parameters = {"architecture": architecture, "objective": objective, "norm": norm, "epsilon": epsilon,
                  "epochs": epochs, "steps": steps, "lam": lam, "plugins": plugins, "seed": seed,
                  "precision": precision}
    checkpoint = checkpoint_file(parameters | {"also": also, "data": prepared.checksum})
    result = train(model, pictures, tuple(t.to(where) for t in prepared.tensors("validation")), config,
                   checkpoint=checkpoint, progress=progress)
    bundle = write_bundle(
        out, result.model, classes=prepared.classes, threats=threats, objective=objective, levels=prepared.levels,
        data={key: prepared.metadata[key] for key in ("dataset", "checksum", "seed", "splits", "request")},
        parameters=parameters,
        training={"epochs": config.epochs, "history": result.history, "best_epoch": result.best_epoch,
                  "seconds": round(result.seconds, 2), "device": str(where), "batch_size": batch_size,
                  "plugins": config.plugins.to_json()},
    )
    if checkpoint:
        checkpoint.unlink(missing_ok=True)   # the bundle is whole: nothing is left to go on from
    return bundle


def checkpoint_file(asked: dict) -> Path | None:
    """Where this run's checkpoint lies: the same for the same request, so that a second attempt finds the first's."""
    folder = os.environ.get(CHECKPOINTS)
    if not folder:
        return None
    return Path(folder) / f"{hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:24]}.safetensors"
