"""One of several processes that train together: `python together.py DATA RESULT JSON`, in torchrun's environment."""

import json
import os
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from redoubt.data import Prepared
from redoubt.models import Architecture, Classifier, build
from redoubt.threat import load_threats
from redoubt.training import Plugins, TrainConfig, TrainResult, train
from redoubt.training.distributed import processes


def small() -> Classifier:
    """Two convolutions with batch normalisation between them: what statistics are shared shows in the loss."""
    model = build(Architecture(name="compact-cnn", num_classes=10, channels=1, size=8, mean=(0.3,), std=(0.4,)))
    model.body = torch.nn.Sequential(
        torch.nn.Conv2d(1, 8, 3, bias=False), torch.nn.BatchNorm2d(8), torch.nn.ReLU(),
        torch.nn.Conv2d(8, 16, 3, stride=2), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(64, 10))
    return model


def go(folder: Path, settings: dict, rank: int = 0) -> TrainResult:
    prepared = Prepared.open(folder)
    torch.manual_seed(rank)   # the first process's weights must win
    config = TrainConfig(**settings | {"threats": load_threats(json.dumps(settings["threats"])),
                                       "plugins": Plugins(**settings["plugins"])})
    return train(small(), prepared.tensors("train", 300), prepared.tensors("validation", 64), config)


def main(data: str, result: str, settings: str) -> None:
    torch.set_num_threads(1)
    with processes() as world:
        done = go(Path(data), json.loads(settings), world.rank)
    file = f"{result}.{os.environ['RANK']}"
    save_file({name: value.contiguous() for name, value in done.model.state_dict().items()}, file)
    Path(file + ".json").write_text(json.dumps(done.history))


if __name__ == "__main__":
    main(*sys.argv[1:])
