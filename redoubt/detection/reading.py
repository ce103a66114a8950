"""Reading pixel evidence: the strength of an input, of a campaign, and of the strongest group inside one."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from redoubt.detection.bounds import ANY, LEVELS, OWN, SIZES, grain, scaled, scaled_error, scaled_single
from redoubt.detection.groups import REST, SHARE, excess, least, near, nested, upper_means
from redoubt.detection.networks import COARSENESS, NORMS, StrengthNet, scatter, widen
from redoubt.detection.settings import Settings
from redoubt.detection.witness import midmean

FEW_LEVELS = 64     # 8-bit budgets are whole levels, or many; half a level of 16 is a sixth of 0.2
MARGIN = 0.05       # of ln(epsilon), on top of upper bounds in Linf: no attack is quite as rehearsed;
ELSEWHERE = 0.03    # and so much more where the model says that it went another way than along its own gradient
NORM_MINIMUM = 16   # with fewer inputs neither L2 nor harmless changes are told from Linf


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What pixels say of `n` inputs pooled.

    Attributes:
        centre, spread: ln(epsilon) and its standard deviation in each norm, [norms].
        norm: which of them it is.
        harmless: whether pixels speak for harmless changes.
        logit: of that.
        coarse: the logit of coarseness, a scalar.
    """

    centre: Tensor
    spread: Tensor
    norm: int
    harmless: bool
    logit: float
    coarse: Tensor
    n: int


class Reader:
    """Reads the pixel evidence that a strength network makes, [n, PIXELS], and finds the strongest group in it."""

    def __init__(self, net: StrengthNet, settings: Settings):
        self.net, self.settings = net, settings
        self._quantiles, self._single = torch.tensor(settings.quantiles), torch.tensor(settings.single)
        shape = 2, len(NORMS), len(SIZES), 2, len(LEVELS)
        if self._quantiles.shape != shape or self._single.shape != (2, 2) or len(settings.own_odds) != 2:
            raise ValueError(f"quantiles of shape {tuple(self._quantiles.shape)}, single {settings.single}, "
                             f"own_odds {settings.own_odds}")

    def single(self, evidence: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What all heads say of each input by itself, as `StrengthNet.read` gives it."""
        return self.net.read(evidence, torch.ones(len(evidence), device=evidence.device))

    def pooled(self, mean: Tensor, n: int) -> Reading:
        """The reading of n inputs by their mean [PIXELS]."""
        centre, spread, logits = self.net.read(mean.unsqueeze(0), torch.tensor([float(n)], device=mean.device))
        enough = n >= NORM_MINIMUM
        return Reading(centre=centre[0], spread=spread[0], n=n, logit=logits[0, 1].item(), coarse=logits[0, COARSENESS],
                       norm=int(enough and logits[0, 0].item() > self.settings.l2_logit),
                       harmless=enough and logits[0, 1].item() > self.settings.harmless_logit)

    def strongest(self, evidence: Tensor) -> tuple[Tensor, Reading]:
        """The rows and the reading of the whole, or of the attack among harmless changes, or of its strongest group."""
        whole, smallest = self.pooled(evidence.mean(0), len(evidence)), least(len(evidence))
        rows = torch.arange(len(evidence), device=evidence.device)
        if len(evidence) < 2 * smallest:
            return rows, whole
        if whole.harmless:
            order, groups = self._parts(evidence, -self.single(evidence)[2][:, 1], smallest)
            attack = next((group for group in groups if group.logit < self.settings.attack_logit), None)
            if attack is None:
                return rows, whole
            rows, whole = order[: attack.n], attack
        group = self._group(evidence[rows], whole, smallest)
        return (rows, whole) if group is None else (rows[group[0]], group[1])

    def _group(self, evidence: Tensor, whole: Reading, smallest: int) -> tuple[Tensor, Reading] | None:
        """The rows and the reading of the strongest group that stands apart, if one does."""
        centre, spread, _ = self.single(evidence)
        order, groups = self._parts(evidence, centre[:, 0], smallest)
        best, own, single = whole, None, centre[order, 0].unsqueeze(0)
        scattered = scatter(single, widen(spread[order, 0]), self.settings.levels)
        for group in groups:
            size, left = torch.tensor([group.n], device=single.device), best.n - group.n
            rest = evidence[order[group.n : best.n]]
            base = self.pooled(rest.mean(0), left) if left >= max(smallest, REST * best.n) else best
            over = excess(group.centre[:1], base.centre[:1], single, scattered, size).item()
            if group.harmless or over <= self.settings.apart[whole.norm]:
                continue
            # Decoys that fill it up are not of it; what is left must be more than false alarms may be.
            rows = order[: group.n]
            rows = rows[near(centre[rows, 0], group.centre[0], base.centre[0])]
            if len(rows) >= SHARE * len(evidence):
                best, own = group, rows
        if own is None:
            return None
        alone = self.pooled(evidence[own].mean(0), len(own))
        return own, replace(alone, norm=best.norm, harmless=best.harmless)

    def _parts(self, evidence: Tensor, key: Tensor, smallest: int) -> tuple[Tensor, list[Reading]]:
        """The order of the rows by `key`, and the readings of nested first parts of it."""
        order = key.argsort(descending=True)
        sizes = nested(key[order].unsqueeze(0), smallest)
        means = upper_means(evidence[order].unsqueeze(0), sizes)
        return order, [self.pooled(mean[0], size.item()) for mean, size in zip(means, sizes, strict=True)]

    def origin(self, odds: Tensor, shared: bool) -> tuple[float, float]:
        """`own` and `extra` for `bounds`, of an attack in Linf, by the model's evidence of its inputs.

        An attack along the model's own gradient can be rehearsed much as it will come, if not its every loss and step;
        one of another network, a search, or one pattern for all pictures cannot, and is mostly read too small. One
        pattern may win as much as an attack along the gradient does, and is never taken for one.

        Args:
            odds: log odds of each input, [n]; 0 where the model was not asked.
            shared: whether most of them carry one pattern.

        Returns:
            How surely it went along the gradient, from 0 to 1, and what its upper bound is given on top, which is more
            the surer the model is that it did not. Where fewer than half were asked about, both count for less, in
            proportion. The first is 0 where fewer than 16 were, one pattern is shared or rehearsed attacks were not
            told apart, and then nothing comes on top of the margin; both are 0 of fewer than 16 inputs.
        """
        asked, (least, most) = odds[odds != 0], self.settings.own_odds
        if len(odds) < NORM_MINIMUM:
            return 0.0, 0.0
        if shared or len(asked) < NORM_MINIMUM or most <= least:
            return 0.0, MARGIN
        own, heard = min(max((midmean(asked) - least) / (most - least), 0.0), 1.0), min(2 * len(asked) / len(odds), 1.0)
        return heard * own, MARGIN + heard * (1 - own) * ELSEWHERE

    def bounds(
        self, centre: Tensor, spread: Tensor, coarse: Tensor, norm: int, n: int, own: float = 0.0, extra: float = 0.0,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Low, estimate and high of campaigns as epsilons, the first and the last one-sided bounds of 99 %.

        Args:
            centre, spread, coarse: ln(epsilon) in that norm, its standard deviation, the logit of coarseness, [...].
            n: inputs behind each.
            own: how surely the attack went along the model's own gradient, from 0 to 1.
            extra: what the upper bound is given on top, of ln(epsilon); half of it goes to the estimate of an attack
                that went another way.
        """
        table = self._quantiles[ANY, norm].lerp(self._quantiles[OWN, norm], own).to(spread.device)
        below, above = (scaled_error(table, coarse, n) * scaled(spread)).unbind(-1)
        raised = (1 - own) * extra / 2
        return self._epsilons(centre + below.clamp_max(0), centre + raised, centre + above.clamp_min(0) + extra, norm)

    def interval(self, centre: Tensor, spread: Tensor, coarse: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Low, estimate and high of single inputs in Linf, [...] each, as epsilons: an interval at `bounds.SINGLE`."""
        below, above = (self._single.to(spread.device)[grain(coarse)] * scaled_single(spread).unsqueeze(-1)).unbind(-1)
        return self._epsilons(centre + below.clamp_max(0), centre, centre + above.clamp_min(0), 0)

    def _epsilons(self, low: Tensor, middle: Tensor, high: Tensor, norm: int) -> tuple[Tensor, Tensor, Tensor]:
        """Of ln(epsilon), kept inside the rehearsed range widened by half a level.

        Strength is what arrived: of an attack in whole levels, a whole number of them. Where levels are few, what was
        set may lie far from that, and half a level is added to either side.
        """
        half = 0.5 / self.settings.levels
        room = half if norm == 0 and self.settings.levels < FEW_LEVELS else 0.0
        lowest, highest = max(self.settings.lowest[norm] - half, half / 4), self.settings.highest[norm] + half
        values = low.exp() - room, middle.exp(), high.exp() + room
        return tuple(value.clamp(lowest, highest) for value in values)
