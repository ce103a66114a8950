"""A run in a process of its own, for tests that kill it: `python interrupted.py DATA CHECKPOINT JSON`."""

import json
import sys
from pathlib import Path

import torch

from redoubt.data import Prepared
from redoubt.models import Architecture, build
from redoubt.threat import load_threats
from redoubt.training import Plugins, TrainConfig, TrainResult, train


def go(folder: Path, checkpoint: Path | None, settings: dict) -> TrainResult:
    """The run, of settings as JSON has them; it writes its checkpoint after every step."""
    config = TrainConfig(**settings | {"threats": load_threats(json.dumps(settings["threats"])),
                                       "plugins": Plugins(**settings["plugins"])})
    prepared = Prepared.open(folder)
    torch.manual_seed(0)
    model = build(Architecture(name="compact-cnn", num_classes=10, channels=1, size=8, mean=(0.3,), std=(0.4,)))
    return train(model, prepared.tensors("train", 512), prepared.tensors("validation", 64), config,
                 checkpoint=checkpoint, checkpoint_seconds=0.0)


if __name__ == "__main__":
    torch.set_num_threads(1)
    go(Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3]))
