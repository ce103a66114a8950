"""The detector of one model version: verdicts on inputs, and the strength of a campaign. Fitting lives in `fit.py`."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from redoubt.attacks import holds_whole_levels
from redoubt.detection.bounds import MOST, in_whole_levels
from redoubt.detection.features import feature_count, features
from redoubt.detection.groups import least
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
)
from redoubt.detection.pattern import SAME, agreement, sketch
from redoubt.detection.probability import probability
from redoubt.detection.reading import FEW_LEVELS, Reader, Reading
from redoubt.detection.settings import Settings
from redoubt.detection.verdicts import Strength, Verdicts
from redoubt.detection.witness import RISK, RISK_AGAINST, Budget, Witness, bet
from redoubt.errors import ArtifactError, InvalidInput

FORMAT = 18
WEIGHTS, CARD = "detector.safetensors", "detector.json"
_CHUNK = 512   # inputs looked at in one go, which bounds the memory that they take


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
        self.reader = Reader(self.strength_net, settings)

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
            centre, spread, logits = self.reader.single(pixels)
            whole = holds_whole_levels(x[rows], self.settings.levels).float().unsqueeze(1)
            detail = self.witness.detail(sketch(x[rows]))
            evidence[rows] = torch.cat([pixels, self._odds(x, rows), whole, detail], 1)
            bounds[:, rows] = torch.stack(self.reader.interval(centre[:, 0], spread[:, 0], logits[:, COARSENESS]))
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
        of them, reads stronger than a campaign of one kind could by chance, the answer is that group's strength, less
        what is unlike it (less than a third of the group, and what is left is still 18 %). `n`
        is the number of rows all the same: `decide` asks how much was seen before judging, and whether a group of 16
        is an attack of its own has been tested here.

        Args:
            evidence: [n, K] rows of `Verdicts.evidence`; up to about 15 % may stem from normal inputs.

        Raises:
            InvalidInput: for no rows, another width or values that are not finite.
        """
        evidence = self._checked(evidence)
        rows, best, told, witnessed, shared = self._judged(evidence, *self.reader.strongest(evidence[:, :PIXELS]))
        norm, levels, whole = best.norm, None, evidence[rows, WHOLE].mean().item()
        origin = self.reader.origin(told, shared) if norm == 0 else (0.0, 0.0)
        bounds = self.reader.bounds(best.centre[norm], best.spread[norm], best.coarse, norm, best.n, *origin)
        low, estimate, high = (value.item() for value in bounds)
        if norm == 0 and self.settings.levels >= FEW_LEVELS:
            low, estimate, high = in_whole_levels(low, estimate, high, self.settings.levels, whole)
            levels = self.settings.levels if whole >= MOST else None
        return Strength(norm=NORMS[norm], estimate=estimate, low=low, high=high, n=len(evidence), witnessed=witnessed,
                        harmless=best.harmless and not witnessed, shared=shared, levels=levels)

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
        return self.reader.single(evidence[:, :PIXELS])[0][:, 0].exp().to(here)

    def _judged(self, evidence: Tensor, rows: Tensor, best: Reading) -> tuple[Tensor, Reading, Tensor, bool, bool]:
        """What the model says of the strongest group that pixels show, and of all beside it.

        Returns:
            The rows that are the attack, their reading, the log odds that tell where it comes from, whether the model
            bears witness of one, and whether most of the rows carry one pattern.
        """
        if not self.settings.asks:
            return rows, best, evidence[:0, ODDS], not best.harmless, False
        line, odds, shared = -math.log(RISK_AGAINST if best.harmless else RISK), evidence[:, ODDS], _sharing(evidence)
        own = shared[rows] | _sharing(evidence[rows])
        group, anywhere = (self._won(*part, best.harmless) >= line for part in ((odds[rows], own), (odds, shared)))
        # Beside a witnessed attack, a stronger group is taken for one too: decoys must not cover for it.
        if group or not anywhere or not best.harmless:
            return rows, best, odds[rows], group or anywhere, _mostly(own)
        # An attack among strong harmless changes: those that the model speaks of, and no fewer than make a group. Odds
        # that they were chosen by do not tell where it comes from.
        rows = odds.argsort(descending=True)[: max(least(len(odds)), int((odds > 0).sum()))]
        reading = self.reader.pooled(evidence[rows, :PIXELS].mean(0), len(rows))
        return rows, reading, torch.zeros_like(odds[rows]), True, _mostly(shared[rows])

    def _won(self, odds: Tensor, sharing: Tensor, harmless: bool) -> float:
        more = (self.witness.pattern * sharing).clamp_min(self.witness.further.item() if harmless else 0.0)
        return bet(odds - more * (odds != 0)).item()

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
            if unset := sorted(name for name, value in weights.items() if not value.isfinite().all()):
                raise ArtifactError(f"{folder / WEIGHTS}: {', '.join(unset)} holds values that are not finite: fit the "
                                    "detector again")
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
