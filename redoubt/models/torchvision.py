"""Any classification network of torchvision by name, adapted to the pictures. torchvision is imported late."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from redoubt.errors import InvalidInput

PREFIX = "torchvision:"
_FIXED = ("vit_", "maxvit", "swin")   # made for 224 pixels: patches and windows must come out even
_LARGER = {"inception_v3": 75}   # what it needs at least
_LEAST = 64    # networks made for 224 pixels halve five times; below this nothing would be left to look at


class TorchvisionNetwork(nn.Module):
    """`name` from torchvision with random weights, its first convolution and last layer adapted.

    Pictures smaller than the network can take are enlarged (bilinear) inside it: attacks still act on the pixels as
    they are.

    Raises:
        InvalidInput: when torchvision is missing, has no such classification network, or it does not take the pictures.
    """

    def __init__(self, name: str, *, channels: int, size: int, num_classes: int):
        super().__init__()
        self.side = 224 if name.startswith(_FIXED) else max(size, _LARGER.get(name, _LEAST))
        self.network = _create(name, num_classes)
        if channels != 3:
            _take_channels(self.network, channels)
        self.eval()
        try:
            with torch.no_grad():
                logits = self(torch.zeros(1, channels, size, size))
        except RuntimeError as error:
            raise InvalidInput(f"{PREFIX}{name} cannot take {channels}x{size}x{size} pictures: {error}") from None
        if not isinstance(logits, Tensor) or logits.shape != (1, num_classes):
            raise InvalidInput(f"{PREFIX}{name} gives no plain logits: take another architecture")
        self.train()

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] != self.side:
            x = F.interpolate(x, size=(self.side, self.side), mode="bilinear", align_corners=False)
        return self.network(x)


def _create(name: str, num_classes: int) -> nn.Module:
    try:
        from torchvision import models
    except ImportError:
        raise InvalidInput(f"{PREFIX}{name} needs torchvision: pip install torchvision") from None
    known = models.list_models(module=models)
    if name not in known:
        near = [other for other in known if other[:4] == name[:4]] or known
        raise InvalidInput(f"torchvision has no classification network {name!r}: it has {', '.join(near)}")
    auxiliary = {"aux_logits": False, "init_weights": True} if name in ("googlenet", "inception_v3") else {}
    return models.get_model(name, weights=None, num_classes=num_classes, **auxiliary)


def _take_channels(network: nn.Module, channels: int) -> None:
    """Replace the first convolution by one that takes `channels` instead of 3."""
    path, old = next((path, module) for path, module in network.named_modules() if isinstance(module, nn.Conv2d))
    new = nn.Conv2d(channels, old.out_channels, old.kernel_size, old.stride, old.padding, bias=old.bias is not None)
    *parents, last = path.split(".")
    parent = network.get_submodule(".".join(parents))
    setattr(parent, last, new)
