"""Learning to read the strength of a campaign, and how far that reading can be trusted."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from redoubt.detection.detector import LEVELS, SIZES, widen
from redoubt.detection.networks import Scorer, StrengthNet
from redoubt.detection.rehearsal import KINDS

CAMPAIGNS = 96        # drawn a step
CONTAMINATION = 0.15   # share of a campaign's flagged inputs that may be harmless


@dataclass(frozen=True, kw_only=True)
class Rehearsed:
    """Features of B rehearsed attack blocks of n pictures.

    Attributes:
        features: float [B, n, F].
        real: bool [B, n], whether the attack changed the picture at all.
        log_epsilon: float [B], ln(epsilon) in the unit of the block's norm.
        norm: int [B], index into `networks.NORMS`.
        kind: int [B], index into `rehearsal.KINDS`.
    """

    features: Tensor
    real: Tensor
    log_epsilon: Tensor
    norm: Tensor
    kind: Tensor


class _Campaigns:
    """Draws campaigns from blocks as serving would collect them: flagged inputs, some of them harmless."""

    def __init__(self, attacks: Rehearsed, suspects: Tensor, scorer: Scorer, threshold: float, seed: int):
        with torch.no_grad():
            logit = scorer(attacks.features.flatten(0, 1)).view(attacks.real.shape)
            self.inputs = torch.cat([scorer.standardise(attacks.features), squash(logit)], -1)
            self.suspects = torch.cat([scorer.standardise(suspects), squash(scorer(suspects))], -1)
        self.usable = attacks.real & (logit > threshold)
        # A block that is hardly ever flagged never becomes a campaign.
        self.blocks = (self.usable.sum(1) >= 4).nonzero()[:, 0]
        self.generator = torch.Generator().manual_seed(seed)

    def draw(self, blocks: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
        """Mean inputs [B, F + 1] and the number behind them [B], for blocks [B] and wished sizes [B]."""
        device = self.inputs.device
        order = torch.rand(len(blocks), self.usable.shape[1], generator=self.generator).to(device)
        order = order.masked_fill(~self.usable[blocks], 2.0).argsort(1).argsort(1)
        chosen = ((order < size.to(device).unsqueeze(1)) & self.usable[blocks]).float()
        n = chosen.sum(1)
        mean = torch.einsum("bn,bnf->bf", chosen, self.inputs[blocks]) / n.unsqueeze(1)
        share = torch.rand(len(blocks), generator=self.generator) * CONTAMINATION
        share *= (torch.rand(len(blocks), generator=self.generator) < 0.6) & (n.cpu() >= 8)
        share = share.to(device).unsqueeze(1)
        rows = torch.randint(len(self.suspects), (len(blocks), 8), generator=self.generator).to(device)
        return mean * (1 - share) + self.suspects[rows].mean(1) * share, n


def squash(logit: Tensor) -> Tensor:
    return torch.tanh(logit / 8).unsqueeze(-1)


def _evidence(net: StrengthNet, mean: Tensor) -> Tensor:
    return torch.cat([net.project(mean[:, :-1]), mean[:, -1:]], -1)


def _fold(index: Tensor, folds: int) -> Tensor:
    """The fold of each block; kinds alternate, so that every fold holds all of them."""
    return index // len(KINDS) % folds


def fit_strength(
    attacks: Rehearsed, suspects: Tensor, scorer: Scorer, threshold: float, *, levels: int, seed: int, steps: int
) -> StrengthNet:
    """Learn ln(epsilon) and its spread by maximum likelihood on drawn campaigns of 1 to a block's number of inputs.

    Args:
        suspects: features [M, F] of the harmless inputs that score highest; campaigns are contaminated with them.
    """
    campaigns = _Campaigns(attacks, suspects, scorer, threshold, seed)
    device, most = attacks.features.device, attacks.real.shape[1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = StrengthNet(attacks.features.shape[-1]).to(device)
    optimizer = torch.optim.AdamW(net.parameters(), lr=4e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    draw = campaigns.generator
    for _ in range(steps):
        blocks = campaigns.blocks[torch.randint(len(campaigns.blocks), (CAMPAIGNS,), generator=draw).to(device)]
        size = (torch.rand(CAMPAIGNS, generator=draw) * math.log(2 * most)).exp().clamp_max(most).floor()
        mean, n = campaigns.draw(blocks, size)
        loss = _loss(net, _evidence(net, mean), n, attacks, blocks, levels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return net.eval().requires_grad_(False)


def _loss(net: StrengthNet, pooled: Tensor, n: Tensor, attacks: Rehearsed, blocks: Tensor, levels: int) -> Tensor:
    centre, spread, logit = net(pooled, n)
    norm, truth = attacks.norm[blocks], attacks.log_epsilon[blocks]
    own = norm.view(1, -1, 1).expand(len(centre), -1, 1)
    spread = widen(centre.detach(), spread, levels)
    error, spread = truth - centre.gather(2, own)[..., 0], spread.gather(2, own)[..., 0]
    fit = (error / spread).square() / 2 + spread.log()
    is_l2 = norm.float().expand(len(centre), -1)
    fit = fit + 0.3 * F.binary_cross_entropy_with_logits(logit, is_l2, reduction="none")
    folds = torch.arange(len(centre), device=blocks.device).unsqueeze(1)
    return (fit * (_fold(blocks, len(centre)).unsqueeze(0) != folds)).mean()


@torch.no_grad()
def calibrate(
    net: StrengthNet, attacks: Rehearsed, suspects: Tensor, scorer: Scorer, threshold: float, *, levels: int, seed: int
) -> tuple[list, float]:
    """Quantiles of the scaled error on blocks that a head did not learn from, and the logit that means L2.

    Returns:
        [norm][size][level] for `detector.SIZES` and `detector.LEVELS`, and the norm threshold: no held-out Linf
        campaign of 16 inputs or more exceeds it, since taking Linf for L2 would start a needless retraining run.
    """
    campaigns = _Campaigns(attacks, suspects, scorer, threshold, seed + 1)
    blocks = campaigns.blocks
    own_head = _fold(blocks, len(net.heads))
    table = torch.zeros(2, len(SIZES), len(LEVELS))
    highest_linf = 0.0
    for column, size in enumerate(SIZES):
        errors, norms = [], []
        for _ in range(4):
            mean, n = campaigns.draw(blocks, torch.full((len(blocks),), float(size)))
            centre, spread, logit = net(_evidence(net, mean), n)
            rows = torch.arange(len(blocks), device=blocks.device)
            centre, spread, logit = centre[own_head, rows], spread[own_head, rows], logit[own_head, rows]
            norm = attacks.norm[blocks]
            spread = widen(centre, spread, levels)[rows, norm]
            errors.append((attacks.log_epsilon[blocks] - centre[rows, norm]) / spread)
            norms.append(norm)
            if size >= 16:
                highest_linf = max(highest_linf, logit[norm == 0].max().item())
        errors, norms = torch.cat(errors), torch.cat(norms)
        for index in range(2):
            if (norms == index).any():
                table[index, column] = errors[norms == index].cpu().quantile(torch.tensor(LEVELS))
    return table.tolist(), highest_linf
