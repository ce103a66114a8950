"""Single-step training, N-FGSM (de Jorge et al. 2022, arXiv 2202.01181), and its way of failing."""

from __future__ import annotations

from torch import Tensor, nn

from redoubt.attacks.gradient import input_gradient
from redoubt.threat import ThreatModel
from redoubt.training.objectives.madry import pgd
from redoubt.training.objectives.standard import Attack

APART, LEARNED = 0.2, 0.2   # honest training keeps PGD's accuracy above two thirds of FGSM's
NOISE = 2.0   # the paper's k: the noise comes from a ball of twice the size


def fast(model: nn.Module, x: Tensor, y: Tensor, attack: Attack, *, lam: float, smoothing: float = 0.0) -> Tensor:
    """Cross-entropy on the inputs of one noisy step: `attack` is `noisy_step` until the alarm, PGD after it."""
    return pgd(model, x, y, attack, lam=lam, smoothing=smoothing)


def noisy_step(
    model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, *, noise: Tensor, scale: Tensor | None = None
) -> Tensor:
    """Strong noise, then one step of length epsilon; the sum is not projected back, so it may leave the ball.

    Args:
        noise: drawn from the ball of `threat`, [N, C, H, W]; taken `NOISE` times.
        scale: each image's share of epsilon, [N].
    """
    noisy = x + NOISE * noise
    step = threat.epsilon * threat.steepest(input_gradient(model, noisy, y))
    return (noisy + (step if scale is None else step * scale.view(-1, 1, 1, 1))).clamp(0, 1).detach()


def overfitted(history: list[dict]) -> bool:
    """Catastrophic overfitting (Wong et al. 2020, arXiv 2001.03994): in the last row of `history` PGD accuracy is less
    than half of what it was at best, while accuracy under a single step has held; or less than a fifth of accuracy
    under a single step, whatever was before.

    Rows need `robust_accuracy` and `single_step_accuracy`. A model that loses both is not overfitted but untrained.
    """
    now = history[-1]
    if now["single_step_accuracy"] >= LEARNED and now["robust_accuracy"] < APART * now["single_step_accuracy"]:
        return True
    if len(history) < 2:
        return False
    best = max(history[:-1], key=lambda row: row["robust_accuracy"])
    collapsed = now["robust_accuracy"] < 0.5 * best["robust_accuracy"]
    return collapsed and now["single_step_accuracy"] > 0.75 * best["single_step_accuracy"]
