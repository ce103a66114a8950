"""The detector of one model version: verdicts on inputs, and the strength of a campaign. Fitting lives in `fit.py`."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from redoubt.attacks import holds_whole_levels
from redoubt.detection.bounds import LEVELS, MOST, in_whole_levels, scaled, scaled_error
from redoubt.detection.features import feature_count, features
from redoubt.detection.groups import excess, least, nested, upper_means
from redoubt.detection.measures import measured
from redoubt.detection.networks import (
    COARSENESS,
    DETAIL,
    EVIDENCE,
    NORMS,
    ODDS,
    PIXELS,
    WHOLE,
    Scorer,
    StrengthNet,
    certainty,
    scatter,
    widen,
)
from redoubt.detection.pattern import SAME, agreement, sketch
from redoubt.detection.probability import probability
from redoubt.detection.verdicts import Strength, Verdicts
from redoubt.detection.witness import RISK, RISK_AGAINST, Budget, Witness, bet
from redoubt.errors import ArtifactError, InvalidInput

FORMAT = 13
WEIGHTS, CARD = "detector.safetensors", "detector.json"
_CHUNK = 512                     # inputs looked at in one go, which bounds the memory that they take
_FEW_LEVELS = 64                 # 8-bit budgets are whole levels, or many; half a level of 16 is a sixth of 0.2
NORM_MINIMUM = 16                # with fewer inputs neither L2 nor harmless changes are told from Linf


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
        quantiles: [norm][size][grain][level] of the error of ln(epsilon), as `bounds.scaled` scales it, on rehearsed
            blocks held out.
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
    lowest: list
    highest: list
    asks: bool
    fitted: dict


@dataclass(frozen=True, kw_only=True)
class _Reading:
    """ln(epsilon) and its spread in each norm, [norms], of `n` inputs pooled; which norm; whether harmless by pixels,
    the logit of that; the logit of coarseness; whether the model bears witness of an attack; whether most of them carry
    one pattern; and the share of them that hold whole levels."""

    centre: Tensor
    spread: Tensor
    norm: int
    harmless: bool
    logit: float
    coarse: Tensor
    n: int
    witnessed: bool = False
    shared: bool = False
    whole: float = 0.0


class Detector:
    """Judges inputs of one model version. Made by `redoubt.detection.fit` or `Detector.load`."""

    def __init__(self, model: nn.Module, scorer: Scorer, strength: StrengthNet, witness: Witness, settings: Settings):
        """
        Args:
            model: the classifier, in eval mode; asked about flagged inputs only, within `budget` if that is set.
        """
        self.budget: Budget | None = None
        self.model, self.settings = model, settings
        self.scorer, self.strength_net, self.witness = scorer.eval(), strength.eval(), witness.eval()
        self._quantiles = torch.tensor(settings.quantiles)

    @property
    def null_rate(self) -> float:
        """99 % upper confidence bound of the realised false-positive rate: what `Monitor` bets against."""
        return self.settings.null_rate

    @torch.no_grad()
    def assess(self, x: Tensor, probabilities: Tensor | None = None) -> Verdicts:
        """Judge inputs.

        Args:
            x: float [N, C, S, S] in [0, 1]; N may be 0.
            probabilities: the classifier's answers [N, classes] where they are known; else it is asked.

        Raises:
            InvalidInput: for another shape or number of channels.
        """
        if x.dim() != 4 or x.shape[1] != self.settings.channels:
            raise InvalidInput(f"expected [N, {self.settings.channels}, S, S], not {tuple(x.shape)}")
        if len(x) > _CHUNK:
            chunks = [slice(at, at + _CHUNK) for at in range(0, len(x), _CHUNK)]
            parts = [self.assess(x[at], None if probabilities is None else probabilities[at]) for at in chunks]
            return Verdicts(**{name: torch.cat([getattr(part, name) for part in parts]) for name in vars(parts[0])})
        x = x.float()
        if probabilities is None:
            probabilities = self.model(x).float().softmax(1) if len(x) else x.new_zeros(0, 2)
        logit = self.scorer(x, certainty(probabilities.to(x.device)))
        flagged = logit > self.settings.threshold
        rows = flagged.nonzero()[:, 0]
        evidence, bounds = x.new_zeros(len(x), EVIDENCE), x.new_zeros(3, len(x))
        if len(rows):
            net = self.strength_net
            pixels = net.evidence(net.inputs(features(x[rows]), logit[rows]))
            centre, spread, logits = self._read(pixels, torch.ones(len(rows), device=x.device))
            whole = holds_whole_levels(x[rows], self.settings.levels).float().unsqueeze(1)
            detail = self.witness.detail(sketch(x[rows]))
            evidence[rows] = torch.cat([pixels, self._odds(x, rows), whole, detail], 1)
            bounds[:, rows] = torch.stack(self._bounds(
                centre[:, 0], spread[:, 0], logits[:, COARSENESS], 0, 1, (0.05, 0.95)))
        low, middle, high = bounds
        margin = logit - self.settings.threshold
        return Verdicts(score=torch.sigmoid(margin), probability=probability(margin, self.settings.chances),
                        is_adversarial=flagged, strength=middle, low=low, high=high, evidence=evidence)

    def _odds(self, x: Tensor, flagged: Tensor) -> Tensor:
        """The model's evidence of the flagged rows [M] of x, [M, 1]; 0 where none is asked for."""
        odds, asked = torch.zeros(len(flagged), 1, device=x.device), len(flagged)
        if not self.settings.asks:
            return odds
        if self.budget is not None:
            asked = self.budget.take(len(x), len(flagged))
        if asked:
            odds[:asked, 0] = self.witness.testimony(measured(self.model, x[flagged[:asked]]))
        return odds

    @torch.no_grad()
    def campaign(self, evidence: Tensor) -> Strength:
        """The strength of an attack, from the evidence of its flagged inputs.

        Whether it is an attack at all is a bet on the model's evidence of each input: see `witness.bet`.

        Neither weak decoys nor harmless pictures hide a strong attack: if a group of the inputs, at least 16 and 18 %
        of them, reads stronger than a campaign of one kind could by chance, the answer is that group's strength. `n`
        is the number of rows all the same: `decide` asks how much was seen before judging, and whether a group of 16
        is an attack of its own has been tested here.

        Args:
            evidence: [n, K] rows of `Verdicts.evidence`; up to about 15 % may stem from normal inputs.

        Raises:
            InvalidInput: for no rows, another width or values that are not finite.
        """
        best = self._strongest(self._checked(evidence))
        norm = best.norm
        bounds = self._bounds(best.centre[norm], best.spread[norm], best.coarse, norm, best.n, (0.01, 0.99))
        low, estimate, high = (value.item() for value in bounds)
        levels = None
        if norm == 0 and self.settings.levels >= _FEW_LEVELS:
            low, estimate, high = in_whole_levels(low, estimate, high, self.settings.levels, best.whole)
            levels = self.settings.levels if best.whole >= MOST else None
        return Strength(norm=NORMS[norm], estimate=estimate, low=low, high=high, n=len(evidence),
                        harmless=best.harmless and not best.witnessed, witnessed=best.witnessed, shared=best.shared,
                        levels=levels)

    @torch.no_grad()
    def wealth(self, evidence: Tensor, *, harmless: bool = False) -> float:
        """What a bet on an attack has won with these inputs, as a logarithm: see `witness.bet`.

        Args:
            evidence: [n, K] as for `campaign`; those that the model was not asked about neither win nor lose.
            harmless: pixels speak for a harmless change, so that more is asked for.

        Raises:
            InvalidInput: as `campaign` does.
        """
        evidence = self._checked(evidence)
        return self._won(evidence[:, ODDS], _sharing(evidence), harmless)

    @torch.no_grad()
    def strengths(self, evidence: Tensor) -> Tensor:
        """The epsilon that fits each input best if it is an Linf attack: [n, K] to [n], as in `Verdicts.strength` but
        without its bounds. For putting inputs in order; raises as `campaign` does."""
        here = torch.as_tensor(evidence).device
        evidence = self._checked(evidence)
        ones = torch.ones(len(evidence), device=evidence.device)
        return self._read(evidence[:, :PIXELS], ones)[0][:, 0].exp().to(here)

    def _strongest(self, evidence: Tensor) -> _Reading:
        """The strongest group that pixels show, and whether the model bears witness of an attack in it or beside it."""
        rows, best = self._strongest_by_pixels(evidence[:, :PIXELS])
        best = replace(best, whole=evidence[rows, WHOLE].mean().item())
        if not self.settings.asks:
            return replace(best, witnessed=not best.harmless)
        line, shared = -math.log(RISK_AGAINST if best.harmless else RISK), _sharing(evidence)
        own = shared[rows] | _sharing(evidence[rows])
        best = replace(best, shared=_mostly(own))
        group, anywhere = (self._won(odds, sharing, best.harmless) >= line for odds, sharing in (
            (evidence[rows, ODDS], own), (evidence[:, ODDS], shared)))
        # Beside a witnessed attack, a stronger group is taken for one too: decoys must not cover for it.
        if group or not anywhere or not best.harmless:
            return replace(best, witnessed=group or anywhere)
        # An attack among strong harmless changes: those that the model speaks of, and no fewer than make a group.
        odds = evidence[:, ODDS]
        rows = odds.argsort(descending=True)[: max(least(len(odds)), int((odds > 0).sum()))]
        return replace(self._pooled(evidence[rows, :PIXELS].mean(0), len(rows)), witnessed=True,
                       shared=_mostly(shared[rows]), whole=evidence[rows, WHOLE].mean().item())

    def _won(self, odds: Tensor, sharing: Tensor, harmless: bool) -> float:
        more = (self.witness.pattern * sharing).clamp_min(self.witness.further.item() if harmless else 0.0)
        return bet(odds - more * (odds != 0)).item()

    def _pooled(self, mean: Tensor, n: int) -> _Reading:
        centre, spread, logits = self._read(mean.unsqueeze(0), torch.tensor([float(n)], device=mean.device))
        enough = n >= NORM_MINIMUM
        norm = int(enough and logits[0, 0].item() > self.settings.l2_logit)
        harmless = enough and logits[0, 1].item() > self.settings.harmless_logit
        return _Reading(centre=centre[0], spread=spread[0], norm=norm, harmless=harmless, n=n,
                        logit=logits[0, 1].item(), coarse=logits[0, COARSENESS])

    def _strongest_by_pixels(self, evidence: Tensor) -> tuple[Tensor, _Reading]:
        """The rows and the reading of the whole, or of the attack among harmless changes, or of its strongest group."""
        whole, smallest = self._pooled(evidence.mean(0), len(evidence)), least(len(evidence))
        rows = torch.arange(len(evidence), device=evidence.device)
        if len(evidence) < 2 * smallest:
            return rows, whole
        centre, spread, logits = self._read(evidence, torch.ones(len(evidence), device=evidence.device))
        if whole.harmless:
            order, groups = self._parts(evidence, -logits[:, 1], smallest)
            attack = next((group for group in groups if group.logit < self.settings.attack_logit), None)
            if attack is None:
                return rows, whole
            rows, whole = order[: attack.n], attack
            evidence, centre, spread = evidence[rows], centre[rows], spread[rows]
        order, groups = self._parts(evidence, centre[:, 0], smallest)
        best, single = whole, centre[order, 0].unsqueeze(0)
        scattered = scatter(single, widen(spread[order, 0]), self.settings.levels)
        for group in groups:
            size = torch.tensor([group.n], device=single.device)
            over = excess(group.centre[:1], best.centre[:1], single, scattered, size).item()
            if not group.harmless and over > self.settings.apart[whole.norm]:
                best = group
        if best is whole:
            return rows, whole
        # Decoys that fill it up are not read with it.
        order = order[: best.n]
        own = order[centre[order, 0] - whole.centre[0] >= 0.5 * (best.centre[0] - whole.centre[0])]
        alone = self._pooled(evidence[own].mean(0), len(own))
        return rows[own], replace(alone, norm=best.norm, harmless=best.harmless)

    def _parts(self, evidence: Tensor, key: Tensor, smallest: int) -> tuple[Tensor, list[_Reading]]:
        """The order of the rows by `key`, and the readings of nested first parts of it."""
        order = key.argsort(descending=True)
        sizes = nested(key[order].unsqueeze(0), smallest)
        means = upper_means(evidence[order].unsqueeze(0), sizes)
        return order, [self._pooled(mean[0], size.item()) for mean, size in zip(means, sizes, strict=True)]

    def _read(self, pooled: Tensor, n: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """ln(epsilon), its spread and the logits by all heads at once. Where these disagree, the campaign is unlike
        what they learned, and the spread is wider (deep ensembles: Lakshminarayanan et al. 2017, arXiv 1612.01474)."""
        centre, spread, logits = self.strength_net(pooled, n)
        middle = centre.mean(0)
        variance = (spread.square() + (centre - middle).square()).mean(0)
        return middle, variance.sqrt(), logits.mean(0)

    def _bounds(
        self, centre: Tensor, spread: Tensor, coarse: Tensor, norm: int, n: int, quantiles: tuple[float, float]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Low, estimate and high as epsilons, kept inside the rehearsed range widened by half a level.

        Strength is what arrived: of an attack in whole levels, a whole number of them. Where levels are few, what was
        set may lie far from that, and half a level is added to either side.
        """
        errors = scaled_error(self._quantiles[norm].to(spread.device), coarse, n) * scaled(spread)
        below, above = (errors[..., LEVELS.index(level)] for level in quantiles)
        half = 0.5 / self.settings.levels
        margin = half if norm == 0 and self.settings.levels < _FEW_LEVELS else 0.0
        least, most = max(self.settings.lowest[norm] - half, half / 4), self.settings.highest[norm] + half
        low, high = (centre + below.clamp_max(0)).exp() - margin, (centre + above.clamp_min(0)).exp()
        return tuple(value.clamp(least, most) for value in (low, centre.exp(), high + margin))

    def _checked(self, evidence: Tensor) -> Tensor:
        """Evidence as the networks want it, on their device; serving keeps it in the processor's memory."""
        evidence = torch.as_tensor(evidence, dtype=torch.float32, device=self.strength_net.mean.device)
        if evidence.dim() != 2 or evidence.shape[1] != EVIDENCE or len(evidence) == 0:
            raise InvalidInput(f"evidence must be [n >= 1, {EVIDENCE}], not {tuple(evidence.shape)}")
        if not torch.isfinite(evidence).all():
            raise InvalidInput("evidence holds values that are not finite")
        return evidence

    def save(self, folder: Path | str) -> None:
        """Write `detector.safetensors` and `detector.json` into an existing folder."""
        folder = Path(folder)
        nets = {"scorer": self.scorer, "strength": self.strength_net, "witness": self.witness}
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
            if (found := card.pop("format")) != FORMAT:
                raise ArtifactError(f"{folder / CARD} has format {found}, this release reads {FORMAT}: run the "
                                    "pipeline again, or fit the detector again")
            settings = Settings(**card)
            weights = load_file(folder / WEIGHTS)
            count = feature_count(settings.channels)
            nets = {"scorer": Scorer(settings.channels), "strength": StrengthNet(count), "witness": Witness()}
            for name, net in nets.items():
                prefix = f"{name}."
                net.load_state_dict({k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)})
            device = next(model.parameters()).device
            return cls(model, *(net.to(device) for net in nets.values()), settings)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
            raise ArtifactError(f"{folder}: the detector cannot be read ({error}): fit it again") from None


def _sharing(evidence: Tensor) -> Tensor:
    """Which of the inputs share a pattern with others: bool [n]."""
    return agreement(evidence[:, DETAIL:]) > SAME


def _mostly(which: Tensor) -> bool:
    return which.float().mean().item() >= 0.5
