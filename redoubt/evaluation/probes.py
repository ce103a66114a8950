"""What the sanity checks look at: more attacks on a small sample, most of them only on the images that PGD-20 left.

Which verdict follows from what is found is decided in `sanity`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor, nn

from redoubt.attacks import fgsm
from redoubt.attacks.gradient import input_gradient, margin
from redoubt.evaluation import autoattack as library
from redoubt.evaluation import sanity
from redoubt.evaluation.accuracy import correct, predict, withstands_pgd
from redoubt.evaluation.sanity import Check
from redoubt.evaluation.suites import withstands_transfer
from redoubt.threat import ThreatModel

STEPS, MANY_STEPS, LARGE_STEPS = 20, 100, 40
NOISE_DRAWS, LOOKS = 5, 4
QUERIES = 300          # of Square, on what PGD left: masked gradients give way within the first hundred
LARGE = 0.5            # Linf: every image can be made an even grey
Curves = Mapping[str, Sequence[tuple[float, int, int]]]


@dataclass(frozen=True, kw_only=True)
class Sample:
    """The images that the checks look at, and the model, in eval mode and on one device with them."""

    model: nn.Module
    x: Tensor
    y: Tensor
    seed: int
    surrogate: nn.Module | None = None

    def generator(self, offset: int = 0) -> torch.Generator:
        return torch.Generator(device=self.x.device).manual_seed(self.seed + offset)


def run_checks(
    sample: Sample, threats: Sequence[ThreatModel], curves: Mapping[str, Curves], *, given_training: int = 0
) -> list[Check]:
    """All checks that look at the model.

    Args:
        threats: each is looked at; a check that fails for one fails.
        curves: for each norm and attack, (epsilon, images right, images) by epsilon.
        given_training: modules that were in training mode when the model was handed over.
    """
    classes = predict(sample.model, sample.x[:1]).shape[1]
    found: dict[str, list[tuple[str, Check]]] = {}
    for threat in threats:
        for check in under_threat(sample, threat, curves.get(threat.norm, {})):
            found.setdefault(check.name, []).append((str(threat), check))
    checks = [sanity.worst_of(several) for several in found.values()]
    return [*checks, sanity.few_classes(classes, library.parts(classes)), look_twice(sample),
            modes(sample, given_training)]


def under_threat(sample: Sample, threat: ThreatModel, curves: Curves) -> list[Check]:
    """The checks that depend on a threat model."""
    model, x, y = sample.model, sample.x, sample.y

    def pgd(rows: Tensor | None = None, *, offset: int = 0, steps: int = STEPS, within=threat, **options) -> Tensor:
        """Right under PGD; with `rows`, those alone are attacked and the others count as lost."""
        images, labels = (x, y) if rows is None else (x[rows.to(x.device)], y[rows.to(x.device)])
        if not len(images):
            return torch.zeros(len(x), dtype=torch.bool)
        right = withstands_pgd(model, images, labels, within, steps=steps, generator=sample.generator(offset),
                               **options)
        return right if rows is None else _spread(right, rows, len(x))

    clean, single = correct(model, x, y), correct(model, x, y, attack=lambda m, x, y: fgsm(m, x, y, threat))
    white, again = pgd(), pgd()
    left = white.nonzero()[:, 0]
    other = pgd(left, offset=2, steps=2 * STEPS, alpha=2 * threat.epsilon / STEPS, loss=margin)
    large = large_ball(threat, x.shape[1:])
    at_large = pgd(clean.nonzero()[:, 0], offset=3, steps=LARGE_STEPS, within=large)
    chance = float(torch.bincount(y).max()) / len(y)
    return [
        sanity.falls_with_epsilon(curves, (large.epsilon, int(at_large.sum()), len(x)), chance),
        sanity.iterative_beats_single(clean, single, white),
        sanity.white_box_strongest(white, _less_informed(sample, threat, left)),
        sanity.noise_hurts_less(white, _noise(sample, threat)),
        sanity.converged(white, pgd(left, offset=1, steps=MANY_STEPS), (STEPS, MANY_STEPS)),
        flatness(sample, threat, clean),
        sanity.evaluations_agree(white, again, other, (f"PGD-{STEPS}", f"PGD-{2 * STEPS} on the margin")),
    ]


def large_ball(threat: ThreatModel, shape: Sequence[int]) -> ThreatModel:
    """A ball in which every image can be made an even grey, so that no classifier can tell the classes apart."""
    if threat.norm == "Linf":
        return ThreatModel("Linf", min(1.0, max(LARGE, 2 * threat.epsilon)))
    return ThreatModel("L2", max(LARGE * sqrt(torch.Size(shape).numel()), 2 * threat.epsilon))


def _less_informed(sample: Sample, threat: ThreatModel, left: Tensor) -> dict[str, Tensor]:
    """Right under attacks without the model's gradients, made on the images `left` alone."""
    rows = left.to(sample.x.device)
    x, y, found = sample.x[rows], sample.y[rows], {}
    if not len(left):
        everything_lost = torch.zeros(len(sample.x), dtype=torch.bool)
        return {"any other attack": everything_lost}
    if sample.surrogate is not None:
        found["transfer"] = _spread(withstands_transfer(sample.model, sample.surrogate, x, y, threat), left,
                                    len(sample.x))
    if library.is_installed():
        stood = library.withstands_square(sample.model, x, y, threat, queries=QUERIES, seed=sample.seed)
        found["Square"] = _spread(stood, left, len(sample.x))
    return found


def _spread(right: Tensor, rows: Tensor, n: int) -> Tensor:
    """Verdicts on `rows` as verdicts on all `n` images; the others are lost."""
    return torch.zeros(n, dtype=torch.bool).index_put_((rows,), right)


def _noise(sample: Sample, threat: ThreatModel) -> Tensor:
    """Right under each of a few random perturbations of the ball's full size: bool [N]."""
    stood, generator = torch.ones(len(sample.x), dtype=torch.bool), sample.generator(4)
    for _ in range(NOISE_DRAWS):
        stood &= predict(sample.model, _at_random(sample.x, threat, generator)).argmax(1).eq(sample.y).cpu()
    return stood


def _at_random(x: Tensor, threat: ThreatModel, generator: torch.Generator) -> Tensor:
    noise = torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
    return (x + threat.epsilon * threat.steepest(noise)).clamp(0, 1)


def flatness(sample: Sample, threat: ThreatModel, clean: Tensor) -> Check:
    """A quarter of epsilon along the gradient beside a quarter at random, by the margin, on images that are right."""
    rows = clean.nonzero()[:, 0].to(sample.x.device)
    x, y = sample.x[rows], sample.y[rows]
    if not len(x):
        return sanity.loss_not_flat(0, 0, 0)
    small = ThreatModel(threat.norm, threat.epsilon / 4)
    gradient = torch.cat([input_gradient(sample.model, *part) for part in zip(x.split(128), y.split(128), strict=True)])
    size = gradient.flatten(1).abs().amax(1)
    zero = ~(size > 0) | ~size.isfinite()
    along = (x + small.epsilon * small.steepest(gradient.nan_to_num())).clamp(0, 1)
    aside = _at_random(x, small, sample.generator(5))
    beats = margin(predict(sample.model, along), y) > margin(predict(sample.model, aside), y)
    return sanity.loss_not_flat(int(zero.sum()), int((beats & ~zero).sum()), len(x))


def behaves_otherwise_in_training(model: nn.Module) -> int:
    """How many modules are in training mode and answer otherwise there: batch norm and dropout of any kind.

    A container that was just built is in training mode as well, which means nothing.
    """
    kinds = (nn.modules.batchnorm._NormBase, nn.modules.dropout._DropoutNd)
    return sum(module.training for module in model.modules() if isinstance(module, kinds))


def look_twice(sample: Sample) -> Check:
    """Whether the same images get the same logits every time."""
    looks = [predict(sample.model, sample.x).double() for _ in range(LOOKS)]
    change = max(_apart(looks[0], look) for look in looks[1:])
    flips = torch.stack([look.argmax(1) != looks[0].argmax(1) for look in looks[1:]]).any(0)
    return sanity.deterministic(change, int(flips.sum()), LOOKS, len(sample.x))


def modes(sample: Sample, given_training: int) -> Check:
    """Whether eval mode took hold: no module left in training mode, no buffer that moves, no image that sees others."""
    model = sample.model
    stuck = sum(module.training for module in model.modules())
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    x = sample.x[:8]
    together = predict(model, sample.x)[: len(x)].double()
    change = _apart(together, torch.cat([predict(model, image[None]).double() for image in x]))
    moved = [name for name, buffer in model.named_buffers() if not torch.equal(before[name], buffer)]
    if _apart(together, predict(model, sample.x)[: len(x)].double()) > sanity.SAME:
        change = 0.0   # a randomised model differs anyway: that is another check's matter
    return sanity.eval_mode(given_training, stuck, change, moved)


def _apart(a: Tensor, b: Tensor) -> float:
    """The largest distance between two sets of logits [N, K], as a share of their length."""
    length = torch.maximum(a.norm(dim=1), b.norm(dim=1)).clamp_min(1e-12)
    return float(((a - b).norm(dim=1) / length).nan_to_num(posinf=0.0).max())
