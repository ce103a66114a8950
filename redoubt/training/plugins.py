"""What can be added to any objective: the settings, and the plug-ins that are plain arithmetic.

Augmentation is in `augment`, adversarial weight perturbation in `weights`.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, fields

import torch
from torch import Tensor

from redoubt.errors import InvalidInput


@dataclass(frozen=True, kw_only=True)
class Plugins:
    """Additions that compose with every objective and with each other; all of them are off by default.

    Attributes:
        label_smoothing: share of the label's weight spread over all classes (Szegedy et al. 2016); [0, 1).
        warmup: share of all steps over which epsilon grows linearly to its full size; [0, 1].
        class_adaptive: a in RobustLT (arXiv 2605.13395): rare classes get a larger epsilon, see `class_scale`; [0, 1).
        reweight: lambda of the distributionally robust loss in WARDEN (arXiv 2605.05415), see `reduce`; the smaller,
            the more the hardest images count. 0 turns it off.
        weight_perturbation: gamma of adversarial weight perturbation (Wu et al. 2020, arXiv 2004.05884): each layer is
            moved uphill by this share of its length while the gradient is taken; the paper's value is 0.005.
        flip: mirror every other picture, at random.
        crop: pad with that many black pixels and cut the old size out at random.
        patience: stop after so many looks at the validation split without a better one; 0 never stops.
    """

    label_smoothing: float = 0.0
    warmup: float = 0.0
    class_adaptive: float = 0.0
    reweight: float = 0.0
    weight_perturbation: float = 0.0
    flip: bool = False
    crop: int = 0
    patience: int = 0

    def __post_init__(self) -> None:
        for name, end, right in (("label_smoothing", 1, "[0, 1)"), ("class_adaptive", 1, "[0, 1)"),
                                 ("warmup", math.nextafter(1, 2), "[0, 1]"), ("reweight", math.inf, "[0, infinity)"),
                                 ("weight_perturbation", 1, "[0, 1)")):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < end:
                raise InvalidInput(f"plug-in {name} must be a number in {right}, not {value!r}")
        if not isinstance(self.flip, bool):
            raise InvalidInput(f"plug-in flip must be true or false, not {self.flip!r}")
        for name in ("crop", "patience"):
            value = getattr(self, name)
            if isinstance(value, bool) or value != value or not isinstance(value, int) or value < 0:
                raise InvalidInput(f"plug-in {name} must be a whole number, at least 0, not {value!r}")

    def to_json(self) -> dict:
        """Only what differs from the default."""
        return {key: value for key, value in asdict(self).items() if value != getattr(type(self), key)}


def load_plugins(text: str, **defaults) -> Plugins:
    """Read a JSON object such as `{"label_smoothing": 0.1, "patience": 3}`; `defaults` hold where it is silent.

    Raises:
        InvalidInput: for anything else, for a name that is no plug-in, and for a value out of range.
    """
    try:
        values = json.loads(text)
    except (TypeError, ValueError):
        values = None
    if not isinstance(values, dict):
        raise InvalidInput(f'plugins must be a JSON object such as {{"label_smoothing": 0.1}}, not {text!r}')
    names = {field.name for field in fields(Plugins)}
    if unknown := set(values) - names:
        raise InvalidInput(f"unknown plug-in {', '.join(sorted(unknown))}: valid ones are {', '.join(sorted(names))}")
    return Plugins(**(defaults | values))


def class_scale(labels: Tensor, a: float, classes: int) -> Tensor:
    """The multiple of epsilon for each class, [classes] (RobustLT, arXiv 2605.13395): the rarer, the larger.

    eps_y = (1 - a) eps + a eps sqrt(log K_y) / E[sqrt(log K)], where K_y says how many times more pictures the largest
    class in `labels` has than class y, and the mean runs over pictures, so that the mean epsilon over the training set
    stays eps.
    """
    counts = torch.bincount(labels, minlength=classes).clamp_min(1)
    roots = (counts.max() / counts.double()).log().sqrt()
    mean = roots[labels].mean()
    if mean == 0:   # as many pictures of every class: nothing to adapt to
        return torch.ones(classes)
    return (1 - a + a * roots / mean).float()


def reduce(losses: Tensor, share: float, reweight: float) -> Tensor:
    """One number out of each image's loss: the mean, or lambda log mean exp(loss / lambda) when `reweight` is lambda.

    The latter is the worst mean loss over reweightings of the images, less lambda times their divergence from even
    weights (Donsker & Varadhan); its gradient is the images' gradients weighted by softmax(loss / lambda). Images that
    are computed apart (a micro-batch, another process) are weighted within their part only.

    Args:
        losses: [N].
        share: N over the size of the whole batch; the parts' results add up.
    """
    if not reweight:
        return losses.mean() * share
    return share * reweight * (torch.logsumexp(losses / reweight, 0) - math.log(len(losses)))
