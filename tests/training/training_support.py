"""Short runs on the digits, and what to compare of them."""

import torch

from redoubt.models import Architecture, build
from redoubt.threat import ThreatModel
from redoubt.training import TrainConfig, train

LINF, L2 = ThreatModel("Linf", 0.1), ThreatModel("L2", 0.5)


def run(digits, *, name="compact-cnn", limit=256, shift=0, progress=lambda row: None, keywords=None, **settings):
    """Train; `shift` moves the validation labels, so that learning makes validation worse.

    `keywords` go to `train`, the rest to its settings.
    """
    torch.manual_seed(0)
    x, y = digits.tensors("validation", 50)
    model = build(Architecture(name=name, num_classes=10, channels=1, size=8, mean=(0.3,), std=(0.4,)))
    torch.seed()   # from here on the global generator must not matter
    settings = {"epochs": 1, "batch_size": 64, "steps": 2} | settings
    return train(model, digits.tensors("train", limit), (x, (y + shift) % 10), TrainConfig(**settings),
                 progress=progress, **(keywords or {}))


def weights(result):
    return torch.cat([value.flatten().double() for value in result.model.state_dict().values()])


def untimed(history):
    return [{k: v for k, v in row.items() if not k.startswith(("seconds", "images"))} for row in history]
