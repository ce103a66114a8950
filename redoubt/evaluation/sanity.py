"""Sanity checks of an evaluation, after Carlini et al. 2019, "On evaluating adversarial robustness" (arXiv 1902.06705).

Pure functions from what attacks left to a verdict with its numbers; `probes` runs the attacks. A check fails when what
it looks at is beyond what the number of images can do by chance (one-sided, 1 %) and beyond a tolerance that honest
models need: no single attack finds every weakness, so some images that another one fools are no sign of fraud.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import exp, lgamma, log, log1p, sqrt

from torch import Tensor

from redoubt.evaluation.intervals import wilson

PASS, FAIL, NOT_APPLICABLE = "pass", "fail", "not applicable"
LEVEL = 0.01        # of every test
Z99 = 2.3263478740408408   # the normal distribution's 99 % point
MISSED = 0.04       # share of all images that the white-box attack may miss and another one may find,
OVERLOOKED = 0.3    # and share of those that it left: honest models in wide balls come near it, shams are far beyond
RISE = 0.05         # by which accuracy may rise with epsilon
ZERO = 0.05         # share of images whose gradient may be exactly zero
BEATS_NOISE = 0.75  # least share of images on which the gradient's direction must beat a random one
OVERSTATED = 0.05   # by which the accuracy that training reported may exceed what is found
SAME = 1e-3         # by which logits may differ between two looks, as a share of their length
TITLES = {
    "falls_with_epsilon": "Accuracy falls with epsilon, to chance at a large one",
    "iterative_beats_single": "Iterative attacks are at least as strong as single-step ones",
    "white_box_strongest": "White-box attacks are at least as strong as transfer and black-box ones",
    "noise_hurts_less": "Random noise of the same size hurts less",
    "converged": "More steps do not help much more",
    "loss_not_flat": "The loss is not flat at the data",
    "evaluations_agree": "Two evaluations agree",
    "claim_holds": "What training reported holds",
    "few_classes": "Fewer than four classes are handled",
    "deterministic": "The model is not randomised",
    "eval_mode": "The model is not in training mode",
}


@dataclass(frozen=True, kw_only=True)
class Check:
    """One line of the evaluation's self-doubt.

    Attributes:
        name: a key of `TITLES`.
        verdict: `pass`, `fail` or `not applicable`.
        detail: what was found, in a sentence.
        numbers: what the verdict rests on; JSON values.
    """

    name: str
    verdict: str
    detail: str
    numbers: dict = field(default_factory=dict)

    def to_json(self) -> dict:
        return {"check": self.name, "title": TITLES[self.name], "verdict": self.verdict, "detail": self.detail,
                "numbers": self.numbers}


def in_order(checks: Iterable[Check]) -> list[Check]:
    """The checks in the order of `TITLES`."""
    order = list(TITLES)
    return sorted(checks, key=lambda check: order.index(check.name))


def failed(report: Mapping) -> list[dict]:
    """The checks of a report that failed. A report without checks (of an earlier release) has none."""
    return [check for check in report.get("checks") or () if check["verdict"] == FAIL]


def surely_above(count: int, n: int, limit: float) -> bool:
    """Whether a share of which `count` of `n` were seen lies above `limit`: exact one-sided test, level 1 %."""
    if count <= limit * n:
        return False
    return limit <= 0 or sum(exp(_log_binomial(k, n, limit)) for k in range(count, n + 1)) < LEVEL


def _log_binomial(k: int, n: int, p: float) -> float:
    """Logarithm of the chance of `k` among `n` at 0 < p < 1: the coefficients themselves outgrow a float at n 1030."""
    return lgamma(n + 1) - lgamma(k + 1) - lgamma(n - k + 1) + k * log(p) + (n - k) * log1p(-p)


def overlooks(missed: int, left: int, n: int) -> bool:
    """Whether another attack finds too much: it fools `missed` of the `left` that the white-box attack left of `n`."""
    return surely_above(missed, n, MISSED) and surely_above(missed, left, OVERLOOKED)


def _check(name: str, broken: bool, good: str, bad: str, **numbers) -> Check:
    return Check(name=name, verdict=FAIL if broken else PASS, detail=bad if broken else good, numbers=numbers)


def falls_with_epsilon(
    curves: Mapping[str, Sequence[tuple[float, int, int]]], large: tuple[float, int, int], chance: float
) -> Check:
    """Accuracy must not rise with epsilon, and the largest epsilon must leave no more than guessing does.

    Args:
        curves: for each attack, (epsilon, images right, images) by epsilon.
        large: the same for an epsilon that no classifier can withstand.
        chance: the accuracy of always naming the commonest class.
    """
    worst, where = 0.0, ""
    rising = False
    for label, points in curves.items():
        for (eps0, k0, n0), (eps1, k1, n1) in ((a, b) for i, a in enumerate(points) for b in points[i + 1 :]):
            rise = k1 / n1 - k0 / n0
            apart = wilson(k1, n1, z=Z99)[0] > wilson(k0, n0, z=Z99)[1]
            if rise > worst:
                worst, where = rise, f"{label} from {eps0:.4g} to {eps1:.4g}"
            rising |= apart and rise > RISE
    epsilon, k, n = large
    stuck = surely_above(k, n, chance)
    bad = (f"accuracy rises by {worst:.3f} ({where})" if rising else
           f"at epsilon {epsilon:.4g} accuracy is still {k / n:.3f}, chance is {chance:.3f}: the attack does not see "
           "which way is up")
    return _check("falls_with_epsilon", rising or stuck, f"it falls, to {k / n:.3f} at epsilon {epsilon:.4g}", bad,
                  largest_rise=worst, large_epsilon=epsilon, accuracy_at_large=k / n, chance=chance, n=n)


def iterative_beats_single(clean: Tensor, single: Tensor, iterative: Tensor) -> Check:
    """PGD must fool what FGSM fools; and where FGSM leaves a model mostly standing, PGD must not raze it.

    The second is what catastrophic overfitting to a single step looks like (Wong et al. 2020, arXiv 2001.03994).

    Args:
        clean, single, iterative: bool [N], right without attack, under FGSM, under PGD.
    """
    n, missed = len(clean), int((iterative & ~single).sum())
    shares = [float(right.float().mean()) for right in (clean, single, iterative)]
    weaker = surely_above(missed, n, MISSED)
    only_single = int((single & ~iterative).sum())
    overfitted = shares[1] >= 0.5 * shares[0] and surely_above(only_single, n, 0.5 * shares[1])
    bad = (f"FGSM fools {missed} of {n} images that PGD does not" if weaker else
           f"FGSM leaves {shares[1]:.3f}, PGD {shares[2]:.3f}: the model is overfitted to a single step")
    return _check("iterative_beats_single", weaker or overfitted,
                  f"FGSM leaves {shares[1]:.3f}, PGD {shares[2]:.3f}", bad, n=n, clean=shares[0], single_step=shares[1],
                  iterative=shares[2], missed_by_iterative=missed)


def white_box_strongest(white: Tensor, others: Mapping[str, Tensor]) -> Check:
    """Attacks that know less must not fool what the white-box attack could not.

    Args:
        white: bool [N], right under the white-box attack.
        others: the same for each attack without gradients of the model; an image that `white` lost may be left out of
            the attack and count as lost.
    """
    if not others:
        return Check(name="white_box_strongest", verdict=NOT_APPLICABLE,
                     detail="neither a black-box attack (pyautoattack) nor a surrogate was at hand")
    missed = {label: int((white & ~right).sum()) for label, right in others.items()}
    label, most = max(missed.items(), key=lambda item: item[1])
    n = len(white)
    return _check("white_box_strongest", overlooks(most, int(white.sum()), n),
                  f"{label} fools {most} of {n} images that white-box PGD does not",
                  f"{label} fools {most} of {n} images that white-box PGD does not: its gradients mislead",
                  n=n, white_box=float(white.float().mean()), only_by=missed)


def noise_hurts_less(white: Tensor, noise: Tensor) -> Check:
    """Random noise on the ball's rim must not fool what the attack could not: bool [N] each, right under either."""
    n, missed = len(white), int((white & ~noise).sum())
    shares = float(white.float().mean()), float(noise.float().mean())
    return _check("noise_hurts_less", surely_above(missed, n, MISSED) or (n and shares[1] < shares[0] - RISE),
                  f"noise leaves {shares[1]:.3f}, the attack {shares[0]:.3f}",
                  f"noise fools {missed} of {n} images that the attack does not", n=n, noise=shares[1],
                  attack=shares[0], missed_by_attack=missed)


def converged(few: Tensor, many: Tensor, steps: tuple[int, int]) -> Check:
    """The attack with more steps must fool little that the one with fewer left: bool [N] each, and both step counts."""
    n, more = len(few), int((few & ~many).sum())
    return _check("converged", overlooks(more, int(few.sum()), n),
                  f"{steps[1]} steps fool {more} of {n} images that {steps[0]} do not",
                  f"{steps[1]} steps fool {more} of {n} images that {steps[0]} do not: the attack had not converged",
                  n=n, steps=list(steps), accuracy=[float(few.float().mean()), float((few & many).float().mean())],
                  more=more)


def loss_not_flat(zero: int, beats: int, n: int) -> Check:
    """Gradients at the data must exist and point somewhere (Athalye et al. 2018, arXiv 1802.00420).

    Args:
        zero: images whose input gradient is exactly zero, or not finite.
        beats: images on which a step along the gradient does more harm than a random one of the same size.
        n: images looked at: those that are right without attack.
    """
    if n < 10:
        return Check(name="loss_not_flat", verdict=NOT_APPLICABLE, detail=f"only {n} images are right without attack",
                     numbers={"n": n})
    flat, blind = surely_above(zero, n, ZERO), surely_above(n - beats, n, 1 - BEATS_NOISE)
    bad = (f"the gradient is zero at {zero} of {n} images: it is masked" if flat else
           f"the gradient beats a random direction on only {beats} of {n} images: it is masked")
    return _check("loss_not_flat", flat or blind,
                  f"gradient zero at {zero} of {n} images, better than random on {beats}", bad, n=n,
                  zero_gradient=zero / n, beats_random=beats / n)


def evaluations_agree(first: Tensor, again: Tensor, other: Tensor, labels: tuple[str, str]) -> Check:
    """The same evaluation twice must give the same, and one of another make about the same.

    Args:
        first, again: bool [N], right under the same attack with the same seed, run twice.
        other: bool [N], right under an attack with another loss, schedule and seed; what `first` lost may be left out.
        labels: what the two kinds are called.
    """
    n, changed, missed = len(first), int((first != again).sum()), int((first & ~other).sum())
    unstable, overfitted = surely_above(changed, n, 0.005), overlooks(missed, int(first.sum()), n)
    bad = (f"{changed} of {n} verdicts changed when {labels[0]} was repeated with the same seed" if unstable else
           f"{labels[1]} fools {missed} of {n} images that {labels[0]} does not: the model is fitted to that attack")
    return _check("evaluations_agree", unstable or overfitted,
                  f"repeated: {changed} of {n} verdicts changed; {labels[1]} fools {missed} more", bad, n=n,
                  changed=changed, missed_by_first=missed, first=float(first.float().mean()),
                  other=float((first & other).float().mean()))


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What a model's own record says of it.

    Attributes:
        attacked: accuracy under attack, the worst of all threat models.
        clean: accuracy without, on the same images.
        n: how many images.
    """

    attacked: float
    clean: float
    n: int


def claim_holds(claim: Claim | None, clean: float, attacked: float | None, n: int) -> Check:
    """The accuracy under attack that training reported must not lie far above what PGD leaves here.

    If it does, the model is fitted to the attack that it was reported with: what catastrophic overfitting looks like
    from outside, too. What accuracy without attack falls short by is the images' matter and allowed for.

    Args:
        claim: None when the model came without a record.
        clean, attacked: accuracy here, without attack and under PGD (the worst of all threat models; None when it was
            not run), on `n` images.
    """
    if claim is None or attacked is None:
        return Check(name="claim_holds", verdict=NOT_APPLICABLE,
                     detail="no accuracy under attack came with the model" if claim is None else "PGD was not run")
    chance = Z99 * sqrt(claim.attacked * (1 - claim.attacked) / claim.n + attacked * (1 - attacked) / n)
    harder = max(0.0, claim.clean - clean)
    said = f"training reported {claim.attacked:.3f} under attack, PGD leaves {attacked:.3f}"
    return _check("claim_holds", claim.attacked - attacked > OVERSTATED + chance + harder, said,
                  f"{said}: the model is fitted to the attack that it was reported with", claimed=claim.attacked,
                  claimed_clean=claim.clean, claimed_n=claim.n, found=attacked, found_clean=clean, n=n)


def few_classes(classes: int, parts: Sequence[str]) -> Check:
    """With two or three classes some losses do not exist; says what was run instead."""
    if classes >= 4:
        return Check(name="few_classes", verdict=NOT_APPLICABLE, detail=f"there are {classes} classes",
                     numbers={"classes": classes})
    return Check(name="few_classes", verdict=PASS, numbers={"classes": classes, "autoattack_parts": list(parts)},
                 detail=f"{classes} classes: AutoAttack without the targeted DLR loss ({', '.join(parts)})")


def deterministic(change: float, flips: int, looks: int, n: int) -> Check:
    """Two looks at one image must give one answer.

    Args:
        change: the largest difference of logits between two looks, as a share of their length.
        flips: images whose predicted class changed.
    """
    return _check("deterministic", change > SAME or flips > 0, f"logits differ by at most {change:.1e} between looks",
                  f"logits differ by {change:.2g} of their length between looks, {flips} of {n} predictions change: "
                  "attack the mean over many looks (expectation over transformation), not this", largest_change=change,
                  flips=flips, looks=looks, n=n)


def eval_mode(given: int, stuck: int, batch_change: float, buffers: Sequence[str]) -> Check:
    """What a model says of an image must not depend on the other images or alter the model.

    Args:
        given: modules in training mode when the model was handed over.
        stuck: modules still in training mode after `eval()`.
        batch_change: the largest difference of logits between an image alone and in a batch, as a share of length.
        buffers: names of buffers that a forward pass changed.
    """
    depends = batch_change > 10 * SAME
    if stuck or buffers:
        bad = f"{stuck} modules stay in training mode, {len(buffers)} buffers change with every batch"
    elif depends:
        bad = f"logits differ by {batch_change:.2g} of their length when an image stands alone: batch statistics"
    else:
        bad = f"{given} modules were in training mode when the model came; the figures here are for eval mode"
    return _check("eval_mode", bool(given or stuck or depends or buffers), "in eval mode, images do not see each other",
                  bad, training_when_given=given, training_after_eval=stuck, batch_change=batch_change,
                  buffers_changed=len(buffers))


def worst_of(checks: Iterable[tuple[str, Check]]) -> Check:
    """One check out of several of the same name, one for each threat model: the worst verdict, everyone's numbers."""
    named = list(checks)
    if len(named) == 1:
        return named[0][1]
    order = {FAIL: 0, PASS: 1, NOT_APPLICABLE: 2}
    label, worst = min(named, key=lambda item: order[item[1].verdict])
    return Check(name=worst.name, verdict=worst.verdict, detail=f"{label}: {worst.detail}",
                 numbers={name: check.numbers for name, check in named})
