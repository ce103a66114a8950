"""The training itself, in the process that calls it: alone, or as one of several that `torchrun` started."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from components.train.parent import Start
from redoubt.bundle import open_bundle, write_bundle
from redoubt.compute import device, keep_memory, settle_threads
from redoubt.data import Prepared
from redoubt.errors import InvalidInput
from redoubt.models import Architecture, Classifier, build
from redoubt.threat import ThreatModel, cover, load_threats
from redoubt.training import TrainConfig, default_epochs, fine_tuning, load_plugins, train
from redoubt.training.distributed import World

# Datasets whose pictures stay what they are when mirrored or moved by a few pixels. Digits and letters do not.
AUGMENT = {"cifar10": {"flip": True, "crop": 4}, "cifar100": {"flip": True, "crop": 4}}


@dataclass(frozen=True, kw_only=True)
class Work:
    """One training, as the step decided on it.

    Attributes:
        data, out: folders of the prepared data and of the bundle to write.
        asked: the parameters that the manifest keeps, and that a retraining run inherits.
        also: JSON list of further [norm, epsilon] pairs to cover.
        start: what it begins with.
        checkpoint: the file that it is resumed from, if any.
    """

    data: Path
    out: Path
    asked: dict
    also: str
    start: Start
    checkpoint: Path | None

    def to_json(self) -> dict:
        """What another process needs to do the same."""
        start = self.start
        return {"data": str(self.data), "out": str(self.out), "asked": self.asked, "also": self.also,
                "start": {"folder": str(start.bundle.folder) if start.bundle else "", "version": start.version,
                          "asked": start.asked, "given_up": start.given_up},
                "checkpoint": str(self.checkpoint or "")}

    @classmethod
    def from_json(cls, values: dict) -> Work:
        start = dict(values["start"])
        folder = start.pop("folder")
        return cls(data=Path(values["data"]), out=Path(values["out"]), asked=values["asked"], also=values["also"],
                   start=Start(bundle=open_bundle(folder) if folder else None, **start),
                   checkpoint=Path(values["checkpoint"]) if values["checkpoint"] else None)

    def run(self, progress: Callable[[dict], None], pulse: Callable[[int, dict], None]) -> None:
        """Train, and write the bundle if this is the first of the processes."""
        keep_memory()
        prepared = Prepared.open(self.data)
        settle_threads(prepared.metadata["shape"][1])
        where, pictures = device(), prepared.pixels("train")
        config = settings(self.asked, self.also, prepared, len(pictures[0]), self.start)
        model, weights = network(self.asked, prepared, self.start)
        result = train(model.to(where), pictures, tuple(t.to(where) for t in prepared.tensors("validation")), config,
                       start=weights, checkpoint=self.checkpoint, levels=prepared.levels, progress=progress,
                       pulse=pulse)
        if World.current().rank:
            return
        write_bundle(
            self.out, result.model, classes=prepared.classes, threats=config.threats, objective=config.objective,
            levels=prepared.levels, parameters=self.asked,
            data={key: prepared.metadata[key] for key in ("dataset", "checksum", "seed", "splits", "request")},
            training={"epochs": config.epochs, "history": result.history, "best_epoch": result.best_epoch,
                      "seconds": round(result.seconds, 2), "device": str(where), "batch_size": config.batch_size,
                      "steps": config.steps, "learning_rate": config.learning_rate,
                      "processes": World.current().size, "plugins": config.plugins.to_json(),
                      "warm_start": weights is not None, "start": self.start.to_json(),
                      "start_given_up": self.start.given_up},
        )


def wanted(asked: dict, prepared: Prepared) -> Architecture:
    """The architecture for the data, with the data's own normalisation."""
    shape = prepared.metadata["shape"]
    return Architecture(name=asked["architecture"], num_classes=len(prepared.classes), channels=shape[0],
                        size=shape[1], mean=prepared.metadata["mean"], std=prepared.metadata["std"])


def settings(asked: dict, also: str, prepared: Prepared, pictures: int, start: Start) -> TrainConfig:
    """What the step was asked for, and what follows from the data and the start, as the loop's settings.

    A warm start is a fine-tuning, unless both its weights and the number of epochs were asked for.

    Raises:
        InvalidInput: for a setting out of range, and for crops that would miss the pictures.
    """
    threats, side = (), prepared.metadata["shape"][-1]
    plugins = load_plugins(asked["plugins"], **AUGMENT.get(prepared.metadata["dataset"], {}))
    if plugins.crop >= side:
        raise InvalidInput(f"plug-in crop pads with {plugins.crop} pixels, and pictures have {side} a side: some cuts "
                           "would hold nothing of them")
    if asked["objective"] != "standard":
        threats = cover([ThreatModel(asked["norm"], asked["epsilon"])], load_threats(also))
    batch_size = min(128, max(16, pictures // 10))
    epochs = asked["epochs"] or default_epochs(asked["objective"], asked["architecture"], pictures, batch_size)
    config = TrainConfig(
        **{key: asked[key] for key in ("objective", "steps", "lam", "seed", "precision")},
        threats=threats, epochs=epochs, batch_size=batch_size,
        plugins=plugins,
    )
    return fine_tuning(config) if start.bundle and not (start.asked and asked["epochs"]) else config


def network(asked: dict, prepared: Prepared, start: Start) -> tuple[Classifier, dict | None]:
    """A fresh network for the data, and the weights to begin with, if there are any.

    The start's normalisation comes along: its weights were trained behind it.
    """
    torch.manual_seed(asked["seed"])
    if start.bundle is None:
        return build(wanted(asked, prepared)), None
    return build(start.bundle.architecture), start.bundle.model().state_dict()
