"""Fitting a detector for one model version, from trusted pictures and attacks rehearsed on the spot."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from redoubt.detection.benign import BENIGN, NOISE, benign
from redoubt.detection.detector import Detector, Settings
from redoubt.detection.features import features
from redoubt.detection.group_calibration import calibrate_groups
from redoubt.detection.networks import Scorer
from redoubt.detection.rehearsal import KINDS, Dice, fit_surrogate, rehearse
from redoubt.detection.strength import HARMLESS, Rehearsed, calibrate, fit_strength
from redoubt.detection.witness import MEASURES, Witness, bet, calibrate_witness, fit_witness, measures
from redoubt.errors import InvalidInput

CONFIDENCE = 0.99    # of `null_rate`
_LARGE = 2_000_000   # weights; beyond this each gradient on a CPU costs tens of milliseconds
_ASKED = 8           # inputs of each attack block that the model is asked about
_AMOUNTS = (0.25, 0.6, 1.0)   # of each harmless change that it is asked about


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """How much is rehearsed and learned.

    Attributes:
        blocks: Linf attack blocks; L2 adds a third as many.
        block_size: pictures in each.
        linf: range of epsilon in Linf.
        l2: range of epsilon in L2, as a multiple of the square root of the number of pixel values.
        score_epochs: passes of the scorer over all rehearsed inputs.
        strength_steps: optimiser steps of the strength network.
        smallest: pixels a side from which the model's evidence is asked for; smoothing leaves less nothing to compare.
        noise: pictures under each kind and amount of harmless change, of which the model is asked about half at most.
    """

    blocks: int = 720
    block_size: int = 32
    linf: tuple[float, float] = (0.01, 0.45)
    l2: tuple[float, float] = (0.01, 0.15)
    score_epochs: int = 5
    strength_steps: int = 1500
    noise: int = 128
    smallest: int = 16

    def __post_init__(self) -> None:
        least = {"blocks": 8 * len(KINDS), "block_size": 8, "score_epochs": 1, "strength_steps": 1, "noise": 16}
        for name, value in least.items():
            if getattr(self, name) < value:
                raise InvalidInput(f"{name} must be at least {value}, not {getattr(self, name)}")

    @classmethod
    def suited_to(cls, model: nn.Module, pictures: int) -> FitConfig:
        """The amount that pays: fewer blocks from few pictures, and from a large network without a GPU."""
        device = next(model.parameters()).device
        if device.type == "cpu" and sum(weight.numel() for weight in model.parameters()) > _LARGE:
            return cls(blocks=96, block_size=16, strength_steps=700, noise=32)
        return cls() if pictures >= 1000 else cls(blocks=360, strength_steps=700)


def fit(
    model: nn.Module,
    fit_data: tuple[Tensor, Tensor],
    calibration: tuple[Tensor, Tensor],
    *,
    levels: int,
    fpr: float = 0.01,
    seed: int = 0,
    progress: Callable[[dict], None] | None = None,
    config: FitConfig | None = None,
) -> Detector:
    """Fit the detector of `model`.

    Args:
        model: the classifier to guard; it is copied, so neither its mode nor its layout changes.
        fit_data: pictures float [N, C, S, S] in [0, 1] and labels [N], to rehearse on.
        calibration: the same, disjoint from `fit_data`; sets the threshold and enters nothing else.
        levels: largest stored pixel value of the data, 255 for 8-bit pictures.
        fpr: share of clean inputs that may be flagged. With fewer than 1 / fpr calibration pictures the least share
            that they can vouch for is used; `null_rate` tells.
        seed: fixes every random choice.
        progress: called with {"step", "seconds"} after each stage.
        config: how much to rehearse; by default `FitConfig.suited_to` decides.

    Raises:
        InvalidInput: for fewer than 16 pictures in either split, an fpr outside (0, 0.5) or levels below 1.
    """
    if not 0 < fpr < 0.5:
        raise InvalidInput(f"fpr must lie between 0 and 0.5, not {fpr}")
    if levels < 1:
        raise InvalidInput(f"levels must be at least 1, such as 255 for 8-bit pictures, not {levels}")
    if min(len(fit_data[0]), len(calibration[0])) < 16:
        raise InvalidInput("a detector needs at least 16 pictures to fit on and 16 to calibrate with")
    config, report = config or FitConfig.suited_to(model, len(fit_data[0])), _Stages(progress)
    device = next(model.parameters()).device
    x, y = (part.to(device) for part in fit_data)
    twin = copy.deepcopy(model).eval().requires_grad_(False).to(memory_format=torch.channels_last)

    surrogate = fit_surrogate(twin, x, seed=seed)
    report("surrogate")
    attacks, asked = _rehearse(twin, surrogate, x, y, levels, seed, config)
    report("rehearsal")
    harmless, weights = _harmless(x, levels, seed)
    scorer = _fit_scorer(attacks, harmless, weights, seed, config)
    clean = torch.cat([scorer(features(part.to(device))) for part in calibration[0].split(512)])
    threshold, null_rate = conformal_threshold(clean.detach(), fpr)
    report("scorer")
    suspects = harmless[scorer(harmless).argsort(descending=True)[: max(16, len(harmless) // 50)]]
    blocks = _blocks(attacks, _changed(x, levels, scorer, threshold, seed, config), scorer, threshold)
    net = fit_strength(blocks, suspects, scorer, levels=levels, seed=seed, steps=config.strength_steps)
    quantiles, l2_logit, harmless_logit = calibrate(net, blocks, suspects, scorer, levels=levels, seed=seed)
    apart, attack_logit = calibrate_groups(net, blocks, suspects, scorer, levels=levels, seed=seed)
    report("strength")
    flagged = asked[blocks.usable[: len(asked), : asked.shape[1]]]
    asks, witness, power = x.shape[-1] >= config.smallest and len(flagged) >= 32, Witness(), {}
    if asks:
        noise = [_noise(twin, part, levels, scorer, threshold, seed + index, config)
                 for index, part in enumerate((x, calibration[0].to(device)))]
        witness, power = _witness(flagged, *noise, seed)
    report("witness")
    ranges = _ranges(x, levels, config)
    settings = Settings(
        channels=x.shape[1], levels=levels, fpr=fpr, threshold=threshold, null_rate=null_rate,
        calibrated_on=len(calibration[0]), l2_logit=l2_logit, harmless_logit=harmless_logit, attack_logit=attack_logit,
        apart=apart, quantiles=quantiles, lowest=[least for least, _ in ranges], highest=[most for _, most in ranges],
        asks=asks,
        fitted={"seed": seed, "pictures": len(x), "blocks": len(blocks.norm), "seconds": report.seconds,
                "witness": power},
    )
    return Detector(twin, scorer, net, witness, settings)


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


def _rehearse(model, surrogate, x, y, levels, seed, config: FitConfig) -> tuple[Rehearsed, Tensor]:
    """Features of all attack blocks of both norms, and the model's `measures` of the first `_ASKED` inputs of each."""
    ranges = _ranges(x, levels, config)
    plans = (("Linf", config.blocks, ranges[0]), ("L2", config.blocks // 3, ranges[1]))
    seen, asked, real, logs, norms, kinds = [], [], [], [], [], []
    for index, (norm, blocks, epsilon) in enumerate(plans):
        for block in rehearse(model, surrogate, x, y, blocks=blocks, size=config.block_size, levels=levels, norm=norm,
                              epsilon=epsilon, seed=seed + index):
            seen.append(features(block.x))
            asked.append(block.x[:_ASKED])
            # A saturated softmax has no gradient: such an input stays as it was and is no attack.
            real.append(block.threat.size(block.x - block.clean) > 0.4 * block.threat.epsilon)
            logs.append(math.log(block.threat.epsilon))
            norms.append(index)
            kinds.append(KINDS.index(block.kind))
    rehearsed = Rehearsed(
        features=torch.stack(seen), usable=torch.stack(real), log_epsilon=torch.tensor(logs, device=x.device),
        norm=torch.tensor(norms, device=x.device), kind=torch.tensor(kinds, device=x.device),
    )
    if x.shape[-1] < config.smallest:
        return rehearsed, torch.zeros(0, 0, MEASURES, device=x.device)
    return rehearsed, _measured(model, torch.cat(asked)).unflatten(0, (len(asked), -1))


def _harmless(x: Tensor, levels: int, seed: int) -> tuple[Tensor, Tensor]:
    """Features of clean and harmlessly changed pictures, and the weight of each in the scorer's loss.

    A few clean pictures cannot teach what clean means: small splits are changed several times over.
    """
    generator = torch.Generator().manual_seed(seed)
    seen, weights = [], []
    for _ in range(max(1, min(8, 2000 // len(x)))):
        for kind in BENIGN:
            seen.append(features(benign(kind, x, levels=levels, generator=generator)))
            weights.append(torch.full((len(x),), 4.0 if kind == "clean" else 0.6, device=x.device))
    return torch.cat(seen), torch.cat(weights)


def _witness(attacked: Tensor, learned: dict, held_out: dict, seed: int) -> tuple[Witness, dict]:
    """The model's witness, and facts about it for people: its biases, and what a bet on one attacked input gains.

    Args:
        attacked: `measures` of flagged attacked inputs.
        learned, held_out: the same of harmlessly changed pictures, by kind, to learn from and to calibrate with.
    """
    witness = fit_witness(attacked, torch.cat(list(learned.values())), seed=seed)
    calibrate_witness(witness, held_out, NOISE)
    gain = bet(witness.testimony(attacked)).item() / len(attacked)
    return witness, {"bias": witness.bias.item(), "further": witness.further.item(), "gain": gain}


def _noise(model, x: Tensor, levels: int, scorer: Scorer, threshold: float, seed: int, config: FitConfig) -> dict:
    """`measures` of harmlessly changed pictures that are flagged, or of the most suspicious eighth, by kind."""
    dice, sent = Dice(seed + 11), []
    for kind in BENIGN:
        for amount in _AMOUNTS:
            rows = dice.rows(len(x), config.noise).to(x.device)
            changed = benign(kind, x[rows], levels=levels, generator=dice.generator, amount=amount)
            logit = scorer(features(changed))
            worst = logit.topk(max(config.noise // 8, int((logit > threshold).sum()))).indices
            sent.append(changed[worst[: config.noise // 2]])
    parts = _measured(model, torch.cat(sent)).split([len(part) for part in sent])
    count = len(_AMOUNTS)
    return {kind: torch.cat(parts[i * count : (i + 1) * count]) for i, kind in enumerate(BENIGN)}


def _measured(model, x: Tensor) -> Tensor:
    return torch.cat([measures(model, part) for part in x.split(256)])


def _changed(x: Tensor, levels: int, scorer: Scorer, threshold: float, seed: int, config: FitConfig) -> Tensor:
    """Features of harmless blocks, one change with one amount each: [blocks, block_size, F].

    Only flagged inputs ever reach a campaign: of many changed pictures some flagged ones are kept, or the most
    suspicious where too few are flagged.
    """
    dice, out, size = Dice(seed + 7), [], config.block_size
    for i in range(max(2 * len(BENIGN), config.blocks // 4)):
        rows = dice.rows(len(x), 12 * size).to(x.device)
        kind, amount = BENIGN[i % len(BENIGN)], dice.uniform(0, 1)
        seen = features(benign(kind, x[rows], levels=levels, generator=dice.generator, amount=amount))
        logit = scorer(seen)
        worst = logit.topk(max(size, int((logit > threshold).sum()))).indices
        out.append(seen[worst[dice.rows(len(worst), size).to(x.device)]])
    return torch.stack(out)


@torch.no_grad()
def _blocks(attacks: Rehearsed, kept: Tensor, scorer: Scorer, threshold: float) -> Rehearsed:
    """Attack blocks, of which the flagged inputs count, and harmless ones, of which all do."""
    flagged = scorer(attacks.features.flatten(0, 1)).view(attacks.usable.shape) > threshold
    kinds = torch.arange(len(kept), device=kept.device) % len(BENIGN)
    nothing = torch.zeros(len(kept), device=kept.device)
    return Rehearsed(
        features=torch.cat([attacks.features, kept]),
        usable=torch.cat([attacks.usable & flagged, torch.ones_like(kept[..., 0], dtype=torch.bool)]),
        log_epsilon=torch.cat([attacks.log_epsilon, nothing]),
        norm=torch.cat([attacks.norm, torch.full_like(kinds, HARMLESS)]),
        kind=torch.cat([attacks.kind, kinds]),
    )


def _fit_scorer(attacks: Rehearsed, harmless: Tensor, weights: Tensor, seed: int, config: FitConfig) -> Scorer:
    positive = attacks.features[attacks.usable]
    data = torch.cat([positive, harmless])
    label = torch.cat([torch.ones(len(positive)), torch.zeros(len(harmless))]).to(data.device)
    # Both sides weigh the same in all, however many attacks were rehearsed.
    weight = torch.cat([torch.full_like(positive[:, 0], weights.sum().item() / len(positive)), weights])
    weight = weight / weight.mean()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        scorer = Scorer(data.shape[1]).to(data.device)
    scorer.mean.copy_(data.mean(0))
    scorer.scale.copy_(data.std(0) + 0.02)
    rate, steps = 4e-3, config.score_epochs * max(1, len(data) // 256)
    optimizer = torch.optim.AdamW(scorer.parameters(), lr=rate, weight_decay=1e-3, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        rows = torch.randint(len(data), (256,), generator=generator).to(data.device)
        loss = F.binary_cross_entropy_with_logits(scorer(data[rows]), label[rows], weight=weight[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return scorer.eval().requires_grad_(False)


def conformal_threshold(scores: Tensor, fpr: float) -> tuple[float, float]:
    """The threshold for a false-positive rate, and an upper bound of the rate that it truly has.

    With k of n + 1 exchangeable scores allowed above it, the threshold is the k-th largest of the n given: a fresh one
    exceeds it with probability k / (n + 1) at most (split conformal: Vovk et al. 2005). Given these n, that rate is
    distributed as Beta(k, n + 1 - k); the second value is its 99 % quantile.

    Args:
        scores: of clean pictures that fitting never saw, [n].
        fpr: the rate asked for; k is at least 1.
    """
    n = len(scores)
    k = max(1, math.floor((n + 1) * fpr))
    threshold = scores.sort(descending=True).values[k - 1].item()
    low, high = 0.0, 1.0
    for _ in range(60):   # the rate p at which fewer than k of n exceed with probability 1 - CONFIDENCE
        p = (low + high) / 2
        fewer = sum(math.exp(_log_binomial(n, i, p)) for i in range(k))
        low, high = (p, high) if fewer > 1 - CONFIDENCE else (low, p)
    return threshold, high


def _log_binomial(n: int, i: int, p: float) -> float:
    choose = math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1)
    return choose + i * math.log(p) + (n - i) * math.log1p(-p)
