"""Train a model on prepared data and write its bundle."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import torch

from components.context import CHECKPOINTS
from redoubt.bundle import WEIGHTS, Bundle, open_bundle, write_bundle
from redoubt.compute import device, settle_threads
from redoubt.data import Prepared
from redoubt.errors import InvalidInput
from redoubt.models import Architecture, Classifier, build
from redoubt.threat import ThreatModel, cover, load_threats
from redoubt.training import TrainConfig, default_epochs, load_plugins, train

# Datasets whose pictures stay what they are when mirrored or moved by a few pixels. Digits and letters do not.
AUGMENT = {"cifar10": {"flip": True, "crop": 4}, "cifar100": {"flip": True, "crop": 4}}


def run(
    data: Path,
    out: Path,
    *,
    architecture: str = "compact-cnn",
    objective: str = "blend",
    norm: str = "Linf",
    epsilon: float = 0.1,
    also: str = "[]",
    epochs: int = 0,
    steps: int = 5,
    lam: float = 1.0,
    plugins: str = "{}",
    seed: int = 0,
    precision: str = "auto",
    start: str = "",
    progress: Callable[[dict], None] = lambda row: None,
) -> Bundle:
    """Train and write a bundle without report and detector.

    Args:
        also: JSON list of further [norm, epsilon] pairs to cover, as a retrain does with the champion's set.
        epochs: 0 takes the default for objective, architecture and number of pictures.
        plugins: JSON object, see `redoubt.training.Plugins`. CIFAR is flipped and cropped unless it says otherwise.
        start: folder of the bundle whose weights to begin with; empty begins with random ones.
        progress: called with one row an epoch.

    A run that was killed goes on from its last checkpoint, where the environment names a folder for them.

    Raises:
        InvalidInput: for a setting out of range, and for a `start` of another architecture, shape or set of classes.
    """
    asked = {"architecture": architecture, "objective": objective, "norm": norm, "epsilon": epsilon, "epochs": epochs,
             "steps": steps, "lam": lam, "plugins": plugins, "seed": seed, "precision": precision}
    prepared = Prepared.open(data)
    settle_threads(prepared.metadata["shape"][1])
    where, parent = device(), open_bundle(start) if start else None
    pictures = prepared.tensors("train")
    config = settings(asked, also, prepared, len(pictures[0]))
    model, weights = network(asked, prepared, parent)
    checkpoint = checkpoint_file(asked | {"also": also, "data": prepared.checksum, "start": lineage(parent)})
    result = train(model.to(where), pictures, tuple(t.to(where) for t in prepared.tensors("validation")), config,
                   start=weights, checkpoint=checkpoint, progress=progress)
    bundle = write_bundle(
        out, result.model, classes=prepared.classes, threats=config.threats, objective=objective,
        levels=prepared.levels, parameters=asked,
        data={key: prepared.metadata[key] for key in ("dataset", "checksum", "seed", "splits", "request")},
        training={"epochs": config.epochs, "history": result.history, "best_epoch": result.best_epoch,
                  "seconds": round(result.seconds, 2), "device": str(where), "batch_size": config.batch_size,
                  "plugins": config.plugins.to_json(), "start": lineage(parent)},
    )
    if checkpoint:
        checkpoint.unlink(missing_ok=True)   # the bundle is whole: nothing is left to go on from
    return bundle


def settings(asked: dict, also: str, prepared: Prepared, pictures: int) -> TrainConfig:
    """What the step was asked for, and what follows from the data, as the loop's settings."""
    threats = ()
    if asked["objective"] != "standard":
        threats = cover([ThreatModel(asked["norm"], asked["epsilon"])], load_threats(also))
    batch_size = min(128, max(16, pictures // 10))
    epochs = asked["epochs"] or default_epochs(asked["objective"], asked["architecture"], pictures, batch_size)
    return TrainConfig(
        **{key: asked[key] for key in ("objective", "steps", "lam", "seed", "precision")},
        threats=threats, epochs=epochs, batch_size=batch_size,
        plugins=load_plugins(asked["plugins"], **AUGMENT.get(prepared.metadata["dataset"], {})),
    )


def network(asked: dict, prepared: Prepared, parent: Bundle | None) -> tuple[Classifier, dict | None]:
    """A fresh network for the data, and the parent's weights to begin with, if there is one.

    The parent's normalisation comes along: its weights were trained behind it.
    """
    shape = prepared.metadata["shape"]
    wanted = Architecture(name=asked["architecture"], num_classes=len(prepared.classes), channels=shape[0],
                          size=shape[1], mean=prepared.metadata["mean"], std=prepared.metadata["std"])
    torch.manual_seed(asked["seed"])
    if parent is None:
        return build(wanted), None
    have = parent.architecture
    if (have.name, have.input_shape, parent.classes) != (wanted.name, wanted.input_shape, prepared.classes):
        raise InvalidInput(
            f"{parent.folder} cannot be the start: it is {have.name} for {have.input_shape} and {len(parent.classes)} "
            f"classes, this run {wanted.name} for {wanted.input_shape} and {len(prepared.classes)}: leave it empty"
        )
    return build(have), parent.model().state_dict()


def lineage(parent: Bundle | None) -> dict | None:
    """What a manifest says of the version that a run began with: its weights' sha256 and its threat models."""
    if parent is None:
        return None
    return {"weights_sha256": parent.manifest["files"][WEIGHTS], "threats": parent.manifest["threats"],
            "objective": parent.manifest["objective"]}


def checkpoint_file(asked: dict) -> Path | None:
    """Where this run's checkpoint lies: the same for the same request, so that a second attempt finds the first's."""
    folder = os.environ.get(CHECKPOINTS)
    if not folder:
        return None
    return Path(folder) / f"{hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:24]}.safetensors"
