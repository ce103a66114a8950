"""Fitting a detector for one model version, from trusted pictures and attacks rehearsed on the spot."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain

import torch
from torch import Tensor, nn

from redoubt.compute import side_by_side
from redoubt.detection.benign import BENIGN, NOISE
from redoubt.detection.bias import calibrate_witness, tried, winners
from redoubt.detection.bounds import ANY, of_singles
from redoubt.detection.changes import Changes
from redoubt.detection.detector import Detector
from redoubt.detection.flagged import planned, questions
from redoubt.detection.networks import COARSENESS
from redoubt.detection.pattern import common, sketch
from redoubt.detection.probability import calibrate_probability
from redoubt.detection.rehearsal import KINDS, OWN_KINDS, TELLING, Rehearsal, rehearse_all
from redoubt.detection.scoring import CLEAN, Examples, conformal_threshold, doubt, fit_scorer, harmless, score, scores
from redoubt.detection.settings import Settings
from redoubt.detection.strength import ENOUGH_FLAGGED
from redoubt.detection.strength_learning import LearnedStrength, learn_strength
from redoubt.detection.surrogates import fit_surrogates
from redoubt.detection.witness import Witness, bet, fit_witness, midmean
from redoubt.errors import InvalidInput

ENOUGH = 2000        # pictures to rehearse on; `further` ones make up for what is missing
_MORE_CLEAN = 10_000   # further clean pictures to learn from, at most
_MEMORY = 400e6      # bytes for rehearsed pictures, and as many for harmless ones
_LARGE = 2_000_000   # weights; beyond this each gradient on a CPU costs tens of milliseconds
_FRESH, _FEW = 5, 4   # for so many attack blocks one is made of calibration pictures, of so many of them
_SPREAD = 4          # times as many fixed patterns are learned from as calibrated with, in as many questions
_PART = 256          # pictures sketched at a time
_WINNERS, _LOOKS = 8, 4   # harmless changes that win most are tried again, so many times
_WITNESSES = 32       # flagged attacks without which the model is not asked
_HEARD = 32          # inputs of a kind of attack without which its typical odds are not known; of all, their errors
_TOLD = 8            # flagged blocks in Linf without which no strength can be learned


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """How much is rehearsed and learned.

    Attributes:
        blocks: Linf attack blocks; L2 adds a third as many.
        block_size: pictures in each.
        linf: range of epsilon in Linf.
        l2: range of epsilon in L2, as a multiple of the square root of the number of pixel values.
        score_steps: optimiser steps of the scorer.
        strength_steps: optimiser steps of the strength network.
        moved: how often each change is seen again on other pictures before strength is learned.
        drawn: further blocks, under attacks along random fields, that strength is learned from; not bounded by them.
        smallest: pixels a side from which the model's evidence is asked for; smoothing leaves less nothing to compare.
        noise: twice as many pictures as the model is asked about under each kind and amount of harmless change. Below
            96, fewer fixed patterns are tried, too.
    """

    blocks: int = 1800
    block_size: int = 16
    linf: tuple[float, float] = (0.01, 0.45)
    l2: tuple[float, float] = (0.01, 0.15)
    score_steps: int = 800
    strength_steps: int = 2000
    moved: int = 0
    drawn: int = 0
    noise: int = 96
    smallest: int = 16

    def __post_init__(self) -> None:
        least = {"blocks": 8 * len(KINDS), "block_size": 8, "score_steps": 1, "strength_steps": 1, "noise": 32}
        for name in ("moved", "drawn"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 0:
                raise InvalidInput(f"{name} must be a whole number from 0 on, not {getattr(self, name)}")
        for name, value in least.items():
            if getattr(self, name) < value:
                raise InvalidInput(f"{name} must be at least {value}, not {getattr(self, name)}")

    @classmethod
    def suited_to(cls, model: nn.Module, x: Tensor) -> FitConfig:
        """The amount that pays: less from few, large or tiny pictures, and from a large network without a GPU; random
        fields from many, and longer learning from many in colour."""
        if next(model.parameters()).device.type == "cpu" and sum(w.numel() for w in model.parameters()) > _LARGE:
            config = cls(blocks=120, block_size=16, strength_steps=700, noise=32)
        else:
            config = cls() if len(x) >= ENOUGH else cls(blocks=900, strength_steps=1200)
            if x.shape[-1] < cls.smallest:   # so little is soon learned
                config = cls(blocks=600, score_steps=600, strength_steps=800)
            elif len(x) >= ENOUGH and x.shape[1] > 1:   # colour has more to tell apart
                config = replace(config, score_steps=2400, strength_steps=10_000, moved=1, drawn=1500)
            elif len(x) >= ENOUGH:
                config = replace(config, drawn=600)
        room = int(_MEMORY / (2 * x[0].numel() * config.block_size) * 3 / 4)   # L2 adds a third
        blocks = max(8 * len(KINDS), min(config.blocks, room))
        return replace(config, blocks=blocks, drawn=config.drawn * blocks // config.blocks)


def fit(
    model: nn.Module,
    fit_data: tuple[Tensor, Tensor],
    calibration: tuple[Tensor, Tensor],
    *,
    levels: int,
    further: tuple[Tensor, Tensor] | None = None,
    fpr: float = 0.01,
    seed: int = 0,
    progress: Callable[[dict], None] | None = None,
    config: FitConfig | None = None,
) -> Detector:
    """Fit the detector of `model`.

    Args:
        model: the classifier to guard; it is copied, so neither its mode nor its layout changes.
        fit_data: pictures float [N, C, S, S] in [0, 1] and labels [N], to rehearse on.
        calibration: the same, disjoint from all others; sets the threshold and what is calibrated, teaches nothing.
        levels: largest stored pixel value of the data, 255 for 8-bit pictures.
        further: more trusted pictures, such as the classifier's training split: they make up for a small `fit_data`,
            and teach what clean pictures look like.
        fpr: share of clean inputs that may be flagged. With fewer than 1 / fpr calibration pictures the least share
            that they can vouch for is used; `null_rate` tells.
        seed: fixes every random choice.
        progress: called with {"step", "seconds"} after each stage.
        config: how much to rehearse; by default `FitConfig.suited_to` decides.

    Raises:
        InvalidInput: for fewer than 16 pictures in either split, an fpr outside (0, 0.5), levels below 1, or pictures
            on which hardly any rehearsed attack shows.
    """
    if not 0 < fpr < 0.5:
        raise InvalidInput(f"fpr must lie between 0 and 0.5, not {fpr}")
    if levels < 1:
        raise InvalidInput(f"levels must be at least 1, such as 255 for 8-bit pictures, not {levels}")
    if min(len(fit_data[0]), len(calibration[0])) < 16:
        raise InvalidInput("a detector needs at least 16 pictures to fit on and 16 to calibrate with")
    device, report = next(model.parameters()).device, _Stages(progress)
    x, y, clean = (part.to(device) for part in _topped_up(*fit_data, further, seed))
    config = config or FitConfig.suited_to(model, x)
    twin = copy.deepcopy(model).eval().requires_grad_(False).to(memory_format=torch.channels_last)

    surrogates = fit_surrogates(twin, x, seed=seed)
    report("surrogates")
    ranges = _ranges(x, levels, config)
    practise = partial(rehearse_all, twin, surrogates, size=config.block_size, levels=levels)
    rehearsal = practise(x, y, plans=_plans(config.blocks, ranges), asks=x.shape[-1] >= config.smallest, seed=seed)
    report("rehearsal")
    generator, room = torch.Generator().manual_seed(seed), int(_MEMORY / (2 * x[0].numel() * len(BENIGN)))
    changed = harmless(twin, x, levels=levels, most=max(64, min(room, rehearsal.count // 12)), generator=generator)
    more = [Examples.of(twin, clean, CLEAN * len(x) / len(clean))] if len(clean) else []
    pictures = Examples.joined([Examples.of(twin, x, CLEAN), *more])
    pictures = pictures.rows(torch.arange(min(len(pictures.x), max(len(x), int(_MEMORY / (2 * x[0].numel()))))))
    changes = Changes(attacked=rehearsal.attacked, real=rehearsal.real.flatten(), origin=rehearsal.rows.flatten(),
                      stored=rehearsal.stored.repeat_interleave(config.block_size), pictures=pictures, levels=levels)
    scorer = fit_scorer(rehearsal.weighed, [changed, *more], changes.pairs, seed=seed, steps=config.score_steps)
    judge = partial(score, scorer, twin)
    held_out, labels = (part.to(device) for part in calibration)
    doubt(scorer, twin, held_out, fpr)
    passed = judge(held_out)
    threshold, null_rate = conformal_threshold(passed, fpr)
    # Inputs of one attack err alike: many attacks on few pictures each tell more than few on many.
    few = _plans(max(8 * len(KINDS), config.blocks // _FRESH), ranges)
    fresh = practise(held_out, labels, plans=few, size=_FEW, asks=False, seed=seed + 13)
    new = fresh.examples()
    chances = calibrate_probability(passed - threshold, scores(scorer, new) - threshold, new.weight)
    report("scorer")
    attacked = scores(scorer, rehearsal.attacked).view(rehearsal.real.shape)
    telling = rehearsal.telling
    usable = rehearsal.real & (attacked > threshold) & telling.unsqueeze(1)
    _check_told(usable[telling & (rehearsal.norm == 0)], len(x), ranges[0])
    flagged = rehearsal.asked[usable[telling, : rehearsal.asked.shape[1]]] if len(rehearsal.asked) else rehearsal.asked
    asks = len(flagged) >= _WITNESSES
    # What noise is good for, the model says; pixels speak for or against what it cannot know.
    kinds = [kind for kind in BENIGN if not asks or kind not in NOISE]
    learn = partial(learn_strength, twin, scorer, threshold, x, rehearsal, attacked, usable, changes, changed,
                    kinds=kinds, epsilon=ranges[0], levels=levels, config=config, seed=seed)
    plans = [planned(config.noise, spread=_SPREAD), planned(config.noise)]
    asked = [questions(twin, part, plan, levels, judge, threshold, seed + index)
             for index, (part, plan) in enumerate(zip((x, held_out), plans, strict=True)) if asks]
    # Neither waits for the other.
    told, *answers = side_by_side(chain([learn], *asked), device) if asks else [learn()]
    witness, power, own_odds = Witness(), {}, [0.0, 0.0]
    if asks:
        learned, held = answers[: len(plans[0])], answers[len(plans[0]) :]
        witness = fit_witness(flagged, {key: measured for key, (measured, _) in learned}, seed=seed)
        witness.usual.copy_(common(torch.cat([sketch(part) for part in held_out.split(_PART)])))
        found = tried(witness, held)
        most = {change.key for change in winners(found, NOISE, _WINNERS)}
        plan = [line for line in plans[1] if line[:3] in most]
        looks = (questions(twin, held_out, plan, levels, judge, threshold, seed + 1, look=1 + i) for i in range(_LOOKS))
        again = tried(witness, side_by_side(chain.from_iterable(looks), device))
        calibrate_witness(witness, found, again, NOISE)
        power = _power(witness, flagged)
        own_odds = _own_odds(witness, rehearsal, usable)
    report("strength and evidence")
    settings = Settings(
        channels=x.shape[1], levels=levels, fpr=fpr, threshold=threshold, null_rate=null_rate,
        calibrated_on=len(held_out), chances=chances, l2_logit=told.l2_logit, harmless_logit=told.harmless_logit,
        attack_logit=told.attack_logit, apart=told.apart, quantiles=told.quantiles.tolist(),
        single=_single(told, fresh, scores(scorer, fresh.attacked), threshold), own_odds=own_odds,
        lowest=[least for least, _ in ranges], highest=[most for _, most in ranges],
        asks=asks,
        fitted={"seed": seed, "pictures": len(x), "blocks": told.blocks, "seconds": report.seconds,
                "witness": power},
    )
    return Detector(twin, scorer, told.net, witness, settings)


def _plans(blocks: int, ranges) -> tuple:
    """Attack blocks of each norm, for `rehearse_all`."""
    return ("Linf", blocks, ranges[0]), ("L2", blocks // 3, ranges[1])


def _topped_up(x: Tensor, y: Tensor, further, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Pictures and labels to rehearse on, and further clean pictures."""
    if further is None:
        return x, y, x[:0]
    order = torch.randperm(len(further[0]), generator=torch.Generator().manual_seed(seed))
    few, most = order[: max(0, ENOUGH - len(x))], min(_MORE_CLEAN, int(_MEMORY / (2 * x[0].numel())))
    return torch.cat([x, further[0][few]]), torch.cat([y, further[1][few]]), further[0][order[:most]]


class _Stages:
    """Times the stages and passes them on."""

    def __init__(self, progress):
        self.progress, self.seconds, self.last = progress, {}, time.perf_counter()

    def __call__(self, step: str) -> None:
        now = time.perf_counter()
        self.seconds[step], self.last = round(now - self.last, 2), now
        if self.progress:
            self.progress({"step": step, "seconds": self.seconds[step]})


def _ranges(x: Tensor, levels: int, config: FitConfig) -> tuple[tuple[float, float], tuple[float, float]]:
    """Lowest and highest epsilon in Linf and in L2. Well below one level, what is left after rounding has no size."""
    pixels = math.sqrt(x[0].numel())
    lowest, highest = config.linf
    return (min(max(lowest, 0.75 / levels), highest / 2), highest), (config.l2[0] * pixels, config.l2[1] * pixels)


def _power(witness: Witness, attacked: Tensor) -> dict:
    """Facts about the witness for people: its biases, and what a bet on one of the `attacked` inputs gains."""
    gain = bet(witness.testimony(attacked)).item() / len(attacked)
    return {**{name: getattr(witness, name).item() for name in ("bias", "pattern", "further")}, "gain": gain}


def _own_odds(witness: Witness, rehearsal: Rehearsal, usable: Tensor) -> list[float]:
    """Typical log odds that tell attacks along the model's own gradient from others: the most of a kind that is none,
    and half way from there to the least of one that is. The same twice where either has too few."""
    seen = usable[rehearsal.telling, : rehearsal.asked.shape[1]] & (rehearsal.norm[rehearsal.telling] == 0).unsqueeze(1)
    kinds = rehearsal.kind[rehearsal.telling].unsqueeze(1).expand_as(seen)[seen]
    odds = witness.testimony(rehearsal.asked[seen])
    parts = [odds[kinds == kind] for kind in range(TELLING)]
    own, others = ([midmean(part) for part in some if len(part) >= _HEARD]
                   for some in (parts[:OWN_KINDS], parts[OWN_KINDS:]))
    return [max(others), (max(others) + min(own)) / 2] if own and others else [0.0, 0.0]


@torch.no_grad()
def _single(told: LearnedStrength, fresh: Rehearsal, logits: Tensor, threshold: float) -> list[list[float]]:
    """Quantiles of the error of single flagged inputs, read as in service; campaigns' bounds where too few are flagged.

    Args:
        fresh: attacks on pictures that nothing was learned from.
        logits: of the score, of each of them.
    """
    logits = logits.view(fresh.real.shape)
    flagged = fresh.real & (logits > threshold) & (fresh.telling & (fresh.norm == 0)).unsqueeze(1)
    if flagged.sum() < _HEARD:
        return told.quantiles[ANY, 0, 0].tolist()
    net = told.net
    evidence = net.evidence(net.inputs(fresh.seen[flagged], logits[flagged]))
    centre, spread, says = net.read(evidence, torch.ones(len(evidence), device=evidence.device))
    true = fresh.log_epsilon.unsqueeze(1).expand_as(flagged)[flagged]
    return of_singles(*(part.cpu() for part in (true - centre[:, 0], spread[:, 0], says[:, COARSENESS]))).tolist()


def _check_told(usable: Tensor, pictures: int, epsilon: tuple[float, float]) -> None:
    told = int((usable.sum(1) >= ENOUGH_FLAGGED).sum())
    if told < _TOLD:
        raise InvalidInput(
            f"of {len(usable)} rehearsed attacks in Linf, epsilon {epsilon[0]:.3g} to {epsilon[1]:.3g}, the detector "
            f"tells {told} from clean pictures, and needs {_TOLD} to learn strength from: rehearse stronger ones, or "
            f"give more pictures than these {pictures}, and such as are not noise themselves")
