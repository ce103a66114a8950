"""Accuracy under common corruptions, after Hendrycks & Dietterich 2019 (arXiv 1903.12261), through torchvision.

Five kinds, five severities. The blur grows with pictures beyond 32 pixels, so that it costs 32 and 224 about the same.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from importlib.util import find_spec

import torch
from torch import Tensor, nn

from redoubt.evaluation.accuracy import eval_mode, predict
from redoubt.evaluation.intervals import wilson

SEVERITIES = {
    "noise": (0.04, 0.08, 0.12, 0.18, 0.26),          # standard deviation of Gaussian noise
    "blur": (0.4, 0.6, 0.8, 1.1, 1.5),                # of the Gaussian, in pixels of a picture of at most 32 a side
    "jpeg": (80, 60, 40, 25, 15),                     # quality
    "brightness": (1.2, 1.4, 1.7, 2.0, 2.5),          # factor
    "contrast": (0.75, 0.5, 0.4, 0.3, 0.15),          # factor
}


def corruption_accuracy(
    model: nn.Module, x: Tensor, y: Tensor, *, seed: int = 0, progress: Callable[[dict], None] | None = None
) -> dict:
    """Accuracy under each corruption at each severity.

    Args:
        x: [N, C, H, W] in [0, 1], one or three channels for JPEG and contrast; with others these are left out. Without
            torchvision (the CPU image for steps has none) only noise is left.

    Returns:
        JSON values {n, mean, rows: [{corruption, severity, amount, n, accuracy, low, high}]}; `mean` is over all rows.
    """
    device = next((parameter.device for parameter in model.parameters()), x.device)
    rows = []
    with eval_mode(model):
        for kind, amounts in SEVERITIES.items():
            if kind in ("jpeg", "contrast", "brightness") and x.shape[1] not in (1, 3):
                continue
            if kind != "noise" and find_spec("torchvision") is None:
                continue
            for severity, amount in enumerate(amounts, 1):
                changed = corrupt(kind, x.cpu(), amount, seed=seed).to(device)
                right = int((predict(model, changed).argmax(1).cpu() == y.cpu()).sum())
                low, high = wilson(right, len(x))
                rows.append({"corruption": kind, "severity": severity, "amount": float(amount), "n": len(x),
                             "accuracy": right / len(x), "low": low, "high": high})
                if progress:
                    progress(rows[-1])
    return {"n": len(x), "mean": sum(row["accuracy"] for row in rows) / len(rows), "rows": rows}


def corrupt(kind: str, x: Tensor, amount: float, *, seed: int = 0) -> Tensor:
    """One corruption of [N, C, H, W] pictures in [0, 1]; the result is in [0, 1], too."""
    if kind == "noise":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return (x + amount * torch.randn_like(x)).clamp(0, 1)
    from torchvision.transforms.v2 import functional as tv

    if kind == "blur":
        sigma = amount * max(x.shape[-1], 32) / 32   # below 0.4 pixels a Gaussian does nothing
        side = min(2 * int(3 * sigma + 1) + 1, 2 * ((x.shape[-1] - 1) // 2) + 1)
        return tv.gaussian_blur(x, [side, side], [sigma, sigma]).clamp(0, 1)
    if kind == "jpeg":
        with warnings.catch_warnings():   # torchvision says for every picture that its codecs will move to TorchCodec
            warnings.simplefilter("ignore", DeprecationWarning)
            return tv.jpeg((x * 255).round().to(torch.uint8), quality=int(amount)).float() / 255
    change = {"brightness": tv.adjust_brightness, "contrast": tv.adjust_contrast}[kind]
    return change(x, amount).clamp(0, 1)
