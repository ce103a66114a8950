"""How visible an attack is: structural similarity (Wang et al. 2004) and the size of its perturbations."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from redoubt.attacks import get_attack
from redoubt.evaluation.accuracy import batches, eval_mode
from redoubt.evaluation.suites import attack_label
from redoubt.threat import ThreatModel

WINDOW = 7   # scikit-image's default


def imperceptibility(
    model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, *, attack: str = "pgd", seed: int = 0
) -> dict:
    """SSIM, L2 and Linf between pictures and what an attack makes of them.

    Returns:
        JSON values {attack, label, norm, epsilon, n, ssim: {mean, low, high}, l2: {...}, linf: {...}}; low and high are
        the 5th and the 95th percentile over the pictures. An SSIM of 1 is the same picture.
    """
    from skimage.metrics import structural_similarity

    device = next((parameter.device for parameter in model.parameters()), x.device)
    generator = torch.Generator(device=device).manual_seed(seed)
    with eval_mode(model):
        x_adv = torch.cat([get_attack(attack)(model, part.to(device), labels.to(device), threat, generator=generator)
                           for part, labels in batches(x, y)]).cpu()
    x = x.cpu()
    side = min(x.shape[-2:])
    window = min(WINDOW, side if side % 2 else side - 1)
    ssim = torch.tensor([
        float(structural_similarity(a.numpy(), b.numpy(), channel_axis=0, data_range=1.0, win_size=window))
        for a, b in zip(x, x_adv, strict=True)
    ])
    delta = (x_adv - x).flatten(1)
    return {"attack": attack, "label": attack_label(attack), "norm": threat.norm, "epsilon": threat.epsilon,
            "n": len(x), "ssim": _spread(ssim), "l2": _spread(delta.norm(dim=1)), "linf": _spread(delta.abs().amax(1))}


def _spread(values: Tensor) -> dict:
    low, high = torch.quantile(values, torch.tensor([0.05, 0.95])).tolist()
    return {"mean": float(values.mean()), "low": low, "high": high}
