"""The detector of one model version: verdicts on inputs, and the strength of a campaign. Fitting lives in `fit.py`."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from redoubt.detection.features import feature_count, features
from redoubt.detection.groups import excess, least, nested, upper_means
from redoubt.detection.networks import EVIDENCE, NORMS, Scorer, StrengthNet
from redoubt.detection.verdicts import Strength, Verdicts
from redoubt.errors import ArtifactError, InvalidInput

FORMAT = 2
WEIGHTS, CARD = "detector.safetensors", "detector.json"
SIZES = (1, 4, 16, 32)           # campaign sizes at which intervals are calibrated
LEVELS = (0.01, 0.05, 0.95, 0.99)   # quantiles of the scaled error, kept for each norm and size
SPREAD_FLOOR = 0.02              # no estimate of ln(epsilon) is trusted beyond this
NORM_MINIMUM = 16                # with fewer inputs neither L2 nor harmless changes are told from Linf


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Every number of a detector that is not a network weight; what `detector.json` holds.

    Attributes:
        channels: of the pictures it was fitted on.
        levels: largest stored pixel value, 255 or 16: half a level is the finest strength that can be told.
        fpr: the false-positive rate asked for.
        threshold: the score's logit above which an input is flagged.
        null_rate: 99 % upper confidence bound of the realised false-positive rate.
        calibrated_on: clean pictures behind the threshold.
        l2_logit, harmless_logit: above these a campaign is called L2, or harmless.
        apart: [norm], the excess (`groups.excess`) above which a group is an attack of its own.
        quantiles: [norm][size][level] of (ln epsilon - estimate) / spread on rehearsed blocks held out.
        lowest, highest: [norm], the range of epsilon that was rehearsed.
        fitted: facts about the fit, for people.
    """

    channels: int
    levels: int
    fpr: float
    threshold: float
    null_rate: float
    calibrated_on: int
    l2_logit: float
    harmless_logit: float
    apart: list
    quantiles: list
    lowest: list
    highest: list
    fitted: dict


@dataclass(frozen=True, kw_only=True)
class _Reading:
    """ln(epsilon) and its spread in each norm, [norms], of `n` inputs pooled; which norm, and whether harmless."""

    centre: Tensor
    spread: Tensor
    norm: int
    harmless: bool
    n: int


class Detector:
    """Judges inputs of one model version. Made by `redoubt.detection.fit` or `Detector.load`."""

    def __init__(self, scorer: Scorer, strength: StrengthNet, settings: Settings):
        self.scorer, self.strength_net, self.settings = scorer.eval(), strength.eval(), settings
        self._quantiles = torch.tensor(settings.quantiles)

    @property
    def null_rate(self) -> float:
        """99 % upper confidence bound of the realised false-positive rate: what `Monitor` bets against."""
        return self.settings.null_rate

    @torch.no_grad()
    def assess(self, x: Tensor) -> Verdicts:
        """Judge inputs.

        Args:
            x: float [N, C, S, S] in [0, 1]; N may be 0.

        Raises:
            InvalidInput: for another shape or number of channels.
        """
        if x.dim() != 4 or x.shape[1] != self.settings.channels:
            raise InvalidInput(f"expected [N, {self.settings.channels}, S, S], not {tuple(x.shape)}")
        seen = features(x.float())
        logit = self.scorer(seen)
        evidence = self.strength_net.evidence(self.scorer.standardise(seen), logit)
        centre, spread, _ = self._read(evidence, torch.ones(len(x), device=x.device))
        low, middle, high = self._bounds(centre[:, 0], spread[:, 0], 0, 1, LEVELS.index(0.05), LEVELS.index(0.95))
        return Verdicts(
            score=torch.sigmoid(logit - self.settings.threshold),
            is_adversarial=logit > self.settings.threshold,
            strength=middle, low=low, high=high, evidence=evidence,
        )

    @torch.no_grad()
    def campaign(self, evidence: Tensor) -> Strength:
        """The strength of an attack, from the evidence of its flagged inputs.

        Weak decoys hide no strong attack: if a group of the inputs, at least 16 and more than 15 % of them, reads
        stronger than a campaign of one kind could by chance, the answer is that group's strength. `n` is the number of
        rows all the same: it says how much was seen before judging, and that 16 are enough for a group is tested here.

        Args:
            evidence: [n, K] rows of `Verdicts.evidence`; up to about 15 % may stem from normal inputs.

        Raises:
            InvalidInput: for no rows, another width or values that are not finite.
        """
        evidence = torch.as_tensor(evidence, dtype=torch.float32)
        if evidence.dim() != 2 or evidence.shape[1] != EVIDENCE or len(evidence) == 0:
            raise InvalidInput(f"evidence must be [n >= 1, {EVIDENCE}], not {tuple(evidence.shape)}")
        if not torch.isfinite(evidence).all():
            raise InvalidInput("evidence holds values that are not finite")
        whole = best = self._pooled(evidence.mean(0), len(evidence))
        for group, scatter in self._groups(evidence):
            over = excess(group.centre[0], best.centre[0], scatter).item()
            if not whole.harmless and not group.harmless and over > self.settings.apart[whole.norm]:
                best = group
        bounds = self._bounds(
            best.centre[best.norm], best.spread[best.norm], best.norm, best.n, LEVELS.index(0.01), LEVELS.index(0.99)
        )
        low, estimate, high = (value.item() for value in bounds)
        return Strength(norm=NORMS[best.norm], estimate=estimate, low=low, high=high, n=len(evidence),
                        harmless=best.harmless)

    def _pooled(self, mean: Tensor, n: int) -> _Reading:
        centre, spread, logits = self._read(mean.unsqueeze(0), torch.tensor([float(n)], device=mean.device))
        enough = n >= NORM_MINIMUM
        norm = int(enough and logits[0, 0].item() > self.settings.l2_logit)
        harmless = enough and logits[0, 1].item() > self.settings.harmless_logit
        return _Reading(centre=centre[0], spread=spread[0], norm=norm, harmless=harmless, n=n)

    def _groups(self, evidence: Tensor) -> Iterator[tuple[_Reading, Tensor]]:
        """Readings of nested stronger parts, and how far the strength of one input scatters in each."""
        smallest = least(len(evidence))
        if len(evidence) < 2 * smallest:
            return
        centre, spread, _ = self._read(evidence, torch.ones(len(evidence), device=evidence.device))
        order = centre[:, 0].argsort(descending=True)
        sizes = nested(centre[order, 0].unsqueeze(0), smallest)
        for mean, size in zip(upper_means(evidence[order].unsqueeze(0), sizes), sizes, strict=True):
            yield self._pooled(mean[0], size.item()), spread[order[:size], 0].median()

    def _read(self, pooled: Tensor, n: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        centre, spread, logits = self.strength_net(pooled, n)
        centre, logits = centre.mean(0), logits.mean(0)
        return centre, widen(centre, spread.square().mean(0).sqrt(), self.settings.levels), logits

    def _bounds(self, centre: Tensor, spread: Tensor, norm: int, n: int, lower: int, upper: int):
        """Low, estimate and high as epsilons, kept inside the rehearsed range widened by half a level."""
        table = self._quantiles[norm]
        below = _at_size(table[:, lower], n).clamp_max(0)
        above = _at_size(table[:, upper], n).clamp_min(0)
        half = 0.5 / self.settings.levels
        least, most = max(self.settings.lowest[norm] - half, half / 4), self.settings.highest[norm] + half
        values = (centre + below * spread, centre, centre + above * spread)
        return tuple(value.exp().clamp(least, most) for value in values)

    def save(self, folder: Path | str) -> None:
        """Write `detector.safetensors` and `detector.json` into an existing folder."""
        folder = Path(folder)
        nets = {"scorer": self.scorer, "strength": self.strength_net}
        weights = {
            f"{name}.{key}": value.detach().cpu().contiguous()
            for name, net in nets.items()
            for key, value in net.state_dict().items()
        }
        save_file(weights, folder / WEIGHTS)
        (folder / CARD).write_text(json.dumps({"format": FORMAT, **asdict(self.settings)}, indent=1, allow_nan=False))

    @classmethod
    def load(cls, folder: Path | str, model: nn.Module) -> Detector:
        """Read what `save` wrote; nothing in it is ever executed.

        Args:
            model: the classifier that the detector was fitted for; the detector works on its device.

        Raises:
            ArtifactError: when a file is missing, altered or of another release.
        """
        folder = Path(folder)
        try:
            card = json.loads((folder / CARD).read_text())
            if card.pop("format") != FORMAT:
                raise ArtifactError(f"{folder / CARD} has another format than {FORMAT}: fit the detector again")
            settings = Settings(**card)
            weights = load_file(folder / WEIGHTS)
            count = feature_count(settings.channels)
            nets = {"scorer": Scorer(count), "strength": StrengthNet(count)}
            for name, net in nets.items():
                prefix = f"{name}."
                net.load_state_dict({k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)})
            device = next(model.parameters()).device
            return cls(nets["scorer"].to(device), nets["strength"].to(device), settings)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
            raise ArtifactError(f"{folder}: the detector cannot be read ({error}): fit it again") from None


def widen(centre: Tensor, spread: Tensor, levels: int) -> Tensor:
    """Standard deviation of ln(epsilon) with what no network can know: rounding to the lattice, and a floor.

    Args:
        centre, spread: ln(epsilon) and the network's own standard deviation of it, [..., 2] for (Linf, L2).

    Returns:
        The same shape. Half a level, spread evenly, has a standard deviation of level / sqrt(12); in L2 the roundings
        of many pixels average out.
    """
    rounding = 1 / (levels * math.sqrt(12)) / centre.exp()
    rounding = torch.stack([rounding[..., 0], torch.zeros_like(rounding[..., 1])], -1)
    return (spread.square() + rounding.square() + SPREAD_FLOOR**2).sqrt()


def _at_size(column: Tensor, n: int) -> Tensor:
    """Value of a column over `SIZES`, between two sizes by the logarithm of n."""
    place = [math.log(size) for size in SIZES]
    at = min(max(math.log(n), place[0]), place[-1])
    right = next(i for i in range(1, len(place)) if at <= place[i])
    share = (at - place[right - 1]) / (place[right] - place[right - 1])
    return column[right - 1] * (1 - share) + column[right] * share
