"""White-box attacks by the gradient of the cross-entropy.

Each takes `x` [N, C, H, W] in [0, 1] and `y` [N], and returns inputs of the same shape. The gradient is taken with
respect to the input alone, so that no weight gradient is ever computed. With `targeted=True`, `y` holds the classes to
reach and the loss is descended. The gradient attacks also take probabilities [N, K] for `y`: away from a distribution.
The caller puts the model into eval mode.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from redoubt.errors import InvalidInput
from redoubt.threat import ThreatModel


def input_gradient(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Gradient of the summed cross-entropy with respect to `x`; each image's gradient is independent of the batch."""
    return logits_and_gradient(model, x, y)[1]


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """The summed cross-entropy."""
    return F.cross_entropy(logits, y, reduction="sum")


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """The largest other logit less the one of `y` ([N]), for each image: above 0 it is misclassified [N].

    The loss of Carlini & Wagner (2017, arXiv 1608.04644) without its cut: it does not flatten where a model is sure.
    """
    own = logits.gather(1, y[:, None])[:, 0]
    return logits.scatter(1, y[:, None], -torch.inf).amax(1) - own


def logits_and_gradient(
    model: nn.Module, x: Tensor, y: Tensor, loss: Callable[[Tensor, Tensor], Tensor] = cross_entropy
) -> tuple[Tensor, Tensor]:
    """The logits at `x` and the gradient of `loss(logits, y)`, summed, with respect to `x`, from one forward pass.

    A model whose logits do not depend on `x` in a way that torch can differentiate has the gradient 0.
    """
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        logits = model(x)
        if not logits.requires_grad:
            return logits, torch.zeros_like(x)
        value = loss(logits, y)
        gradient = torch.autograd.grad(value.sum() if value.dim() else value, x, allow_unused=True)[0]
    return logits.detach(), torch.zeros_like(x) if gradient is None else gradient


def default_alpha(threat: ThreatModel, steps: int) -> float:
    """The step length with which PGD can reach the ball's rim from anywhere in it."""
    return 2.5 * threat.epsilon / max(steps, 1)


def ascent(
    x: Tensor, threat: ThreatModel, stride: float | Tensor, scale: Tensor | None = None
) -> Callable[[Tensor, Tensor], Tensor]:
    """One step of an attack on `x`, as a function of the inputs it stands at and their gradient: up the gradient by
    `stride`, then back into the ball round `x` and into [0, 1].

    In Linf the ball and the range are boxes, and so is what they share: one clamp leads back, to walls that are the
    same in every step. `scale` as in `ThreatModel.project`.
    """
    if threat.norm != "Linf":
        return lambda at, gradient: (
            x + threat.project(at + stride * threat.steepest(gradient) - x, scale)).clamp_(0, 1)
    reach = threat.epsilon if scale is None else threat.epsilon * scale.view(-1, *[1] * (x.dim() - 1))
    low, high = (x - reach).clamp_(min=0), (x + reach).clamp_(max=1)
    return lambda at, gradient: gradient.sign().mul_(stride).add_(at).clamp_(low, high)


def fgsm(
    model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, *, targeted: bool = False, generator=None
) -> Tensor:
    """One step of length epsilon (Goodfellow et al. 2015, arXiv 1412.6572; in L2 the normalised gradient)."""
    sign = -1.0 if targeted else 1.0
    return (x + sign * threat.epsilon * threat.steepest(input_gradient(model, x, y))).clamp(0, 1).detach()


def pgd(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    *,
    steps: int = 20,
    alpha: float | None = None,
    restarts: int = 1,
    random_start: bool = True,
    targeted: bool = False,
    momentum: float = 0.0,
    generator: torch.Generator | None = None,
    start: Tensor | None = None,
    scale: Tensor | None = None,
) -> Tensor:
    """Projected gradient descent (Madry et al. 2018, arXiv 1706.06083).

    Args:
        steps: gradient steps in each restart.
        alpha: step length; by default `default_alpha`.
        restarts: independent starts; of each image the one with the highest loss is returned.
        random_start: begin at a point drawn uniformly from the ball.
        momentum: decay of the accumulated gradient, as in `momentum_pgd`.
        start: the perturbation [N, C, H, W] to begin at, instead of a drawn one.
        scale: each image's multiple of epsilon and alpha, [N].

    Raises:
        InvalidInput: for fewer than one step or restart, or a step length that is not positive.
    """
    alpha = default_alpha(threat, steps) if alpha is None else alpha
    if steps < 1 or restarts < 1 or not alpha > 0:
        raise InvalidInput(f"PGD needs steps >= 1, restarts >= 1 and alpha > 0, not {steps}, {restarts}, {alpha}")
    best, best_loss = None, None
    for _ in range(restarts):
        first = start
        if first is None:
            first = threat.sample(x, generator, scale) if random_start else torch.zeros_like(x)
        x_adv = _climb(model, x, y, threat, (x + first).clamp(0, 1), steps, -alpha if targeted else alpha, momentum,
                       scale)
        if restarts == 1:
            return x_adv
        loss = _loss_of_each(model, x_adv, y) * (-1 if targeted else 1)
        if best is None:
            best, best_loss = x_adv, loss
        else:
            better = loss > best_loss
            best = torch.where(better.view(-1, *[1] * (x.dim() - 1)), x_adv, best)
            best_loss = torch.maximum(loss, best_loss)
    return best


def _climb(model, x, y, threat, x_adv, steps, alpha, momentum, scale=None) -> Tensor:
    stride = alpha if scale is None else alpha * scale.view(-1, *[1] * (x.dim() - 1))
    up, direction = ascent(x, threat, stride, scale), torch.zeros_like(x) if momentum else None
    for _ in range(steps):
        gradient = input_gradient(model, x_adv, y)
        if momentum:
            mean = gradient.abs().flatten(1).mean(1).clamp_min(torch.finfo(gradient.dtype).tiny)
            direction = momentum * direction + gradient / mean.view(-1, *[1] * (x.dim() - 1))
            gradient = direction
        x_adv = up(x_adv, gradient)
    return x_adv.detach()


@torch.no_grad()
def _loss_of_each(model, x, y) -> Tensor:
    return F.cross_entropy(model(x), y, reduction="none")


def momentum_pgd(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    *,
    steps: int = 10,
    alpha: float | None = None,
    decay: float = 1.0,
    random_start: bool = False,
    targeted: bool = False,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The momentum iterative method, MI-FGSM (Dong et al. 2018, arXiv 1710.06081): alpha is epsilon / steps."""
    alpha = threat.epsilon / max(steps, 1) if alpha is None else alpha
    return pgd(
        model, x, y, threat, steps=steps, alpha=alpha, random_start=random_start, targeted=targeted,
        momentum=decay, generator=generator,
    )
