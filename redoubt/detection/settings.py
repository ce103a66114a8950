"""What a detector keeps beside the weights of its networks."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Every number of a detector that is not a network weight; what `detector.json` holds.

    Attributes:
        channels: of the pictures it was fitted on.
        levels: largest stored pixel value, 255 or 16: below 64, half a level widens the bounds.
        fpr: the false-positive rate asked for.
        threshold: the score's logit above which an input is flagged.
        null_rate: 99 % upper confidence bound of the realised false-positive rate.
        calibrated_on: clean pictures behind the threshold.
        chances: what turns the logit above the threshold into a probability: see `probability.py`.
        l2_logit, harmless_logit: above these a campaign is called L2, or harmless.
        attack_logit: below this, part of a harmless campaign is an attack.
        apart: [norm], the excess (`groups.excess`, in units of the group's scatter) above which a group is an attack of
            its own.
        quantiles: [whose][norm][size][grain][level] of the error of ln(epsilon), as `bounds.scaled` scales it, on
            rehearsed blocks held out.
        single: [grain][`bounds.SINGLE`] of the same, of single inputs in Linf that nothing was learned from.
        own_odds: typical log odds up to which a campaign is judged by the errors of all attacks, and from which on by
            those of attacks along the model's own gradient; between them by something between. Where the second is no
            more than the first, always by those of all.
        lowest, highest: [norm], the range of epsilon that was rehearsed.
        asks: whether flagged inputs are put to the model; if not, pixels alone decide what is an attack.
        fitted: facts about the fit, for people.
    """

    channels: int
    levels: int
    fpr: float
    threshold: float
    null_rate: float
    calibrated_on: int
    chances: list
    l2_logit: float
    harmless_logit: float
    attack_logit: float
    apart: list
    quantiles: list
    single: list
    own_odds: list
    lowest: list
    highest: list
    asks: bool
    fitted: dict
