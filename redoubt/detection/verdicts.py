"""What a detector answers: plain values, no behaviour."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Verdicts:
    """One row for each of N inputs.

    Attributes:
        score: float [N] in [0, 1]; above 0.5 means flagged. Ordered, but no probability.
        probability: float [N], that the input is attacked, where half of the traffic is attacked with the rehearsed
            mix of attacks and half is clean. `probability.at_share` gives it for another share.
        is_adversarial: bool [N], the verdict at the detector's false-positive rate.
        strength: float [N], the epsilon that fits this input best if it is an Linf attack; coarse for a single input.
            0 where it is not flagged.
        low, high: float [N], a 90 % interval for it; of 200 rehearsed inputs 15 lie below it and 1 above.
        evidence: float [N, K] with K < 100, what `Detector.campaign` needs of this input; zeros where not flagged.
    """

    score: Tensor
    probability: Tensor
    is_adversarial: Tensor
    strength: Tensor
    low: Tensor
    high: Tensor
    evidence: Tensor


@dataclass(frozen=True, kw_only=True)
class Strength:
    """The measured strength of a campaign: of all its inputs, or of the strongest sizeable group that stands apart.

    Attributes:
        norm: `Linf` or `L2`.
        estimate: the epsilon that arrived, in that norm's unit over pixels in [0, 1]. In Linf it has half of the margin
            below, the less the surer the attack went along the model's own gradient: others are read too small.
        low, high: one-sided 99 % bounds of it, the bias between kinds of attack included, and half a level where
            pictures have fewer than 64. Of an attack along the model's own gradient `high` is the bound of such alone;
            of 16 inputs and more it mostly has a margin on top (`Reader.origin`).
        n: how many inputs were judged; a group that stands apart may be as small as 16 of them.
        harmless: the inputs look like noise or another change without malice; then the bounds mean nothing.
        witnessed: the changes do to the classifier what random ones would not; without that nothing is retrained.
        shared: most of those whose strength it is carry one pattern, of which more is asked before it is taken for an
            attack.
        levels: largest stored pixel value, at least 64, where the campaign is one in Linf and arrived in whole levels:
            then its epsilon is a whole number of them. None otherwise.
    """

    norm: str
    estimate: float
    low: float
    high: float
    n: int
    harmless: bool = False
    witnessed: bool = True
    shared: bool = False
    levels: int | None = None
