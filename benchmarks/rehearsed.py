"""Attacks of the kinds that a detector rehearses, made anew on test pictures, which nothing was fitted to."""

from __future__ import annotations

from itertools import chain

from benchmarks.unseen import Subject
from redoubt.attacks import on_lattice
from redoubt.detection import Detector
from redoubt.detection.networks import NORMS
from redoubt.detection.rehearsal import KINDS, TELLING, Rehearsal, rehearse_all
from redoubt.detection.surrogates import fit_surrogates

FEWEST = 16   # flagged inputs that make a campaign here
HAIR = 1e-6   # a bound in whole levels is reached, not passed


def rehearsed(of: Subject, detector: Detector, blocks: int, seed: int) -> Rehearsal:
    """The mix that `fit` rehearses, of 32 pictures a block; a third as many blocks in L2."""
    settings = detector.settings
    plans = tuple(zip(NORMS, (blocks, blocks // 3), zip(settings.lowest, settings.highest, strict=True), strict=True))
    surrogates = fit_surrogates(of.model, of.data.tensors("detector_fit")[0], seed=seed)
    return rehearse_all(of.model, surrogates, *of.data.tensors("test"), plans=plans, size=32, levels=of.data.levels,
                        asks=False, seed=seed)


def measured(detector: Detector, made: Rehearsal) -> dict:
    """How the kinds that strength was learned from are measured, in Linf.

    Returns:
        By kind how many inputs are `flagged` and which share of these has its epsilon in the 90 % interval, `inside`,
        and that share of all, `coverage`; `campaigns`, the blocks of which 16 inputs or more are flagged, and which
        share of these has it in its 98 % interval, `held`.
    """
    blocks = made.attacked.x.unflatten(0, made.real.shape)
    inside: dict[str, list[bool]] = {kind: [] for kind in KINDS[:TELLING]}
    held = []
    for i in (made.telling & (made.norm == 0)).nonzero()[:, 0].tolist():
        true = made.log_epsilon[i].exp().item()
        sent = blocks[i][made.real[i]].float()   # kept in 16 bits, which are no whole levels
        verdicts = detector.assess(on_lattice(sent, detector.settings.levels) if made.stored[i] else sent)
        rows = verdicts.is_adversarial
        inside[KINDS[made.kind[i]]] += holds(verdicts, true)[rows].tolist()
        if rows.sum() >= FEWEST:
            strength = detector.campaign(verdicts.evidence[rows])
            held.append(strength.norm == "Linf" and holds(strength, true))
    return {"flagged": {kind: len(each) for kind, each in inside.items()},
            "inside": {kind: _share(each) for kind, each in inside.items()},
            "coverage": _share(list(chain.from_iterable(inside.values()))), "campaigns": len(held),
            "held": _share(held)}


def holds(interval, epsilon: float):
    """Whether an interval, of something with `low` and `high`, or each of several, holds epsilon."""
    return (interval.low <= epsilon + HAIR) & (epsilon <= interval.high + HAIR)


def _share(which: list[bool]) -> float | None:
    return sum(which) / len(which) if which else None
