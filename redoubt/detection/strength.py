"""Learning to read the strength of a campaign, and how far that reading can be trusted."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from redoubt.detection.bounds import ENOUGH, LEVELS, OWN, SIZES, calibrated
from redoubt.detection.networks import COARSENESS, NORMS, StrengthNet, widen
from redoubt.detection.reading import NORM_MINIMUM
from redoubt.detection.rehearsal import KINDS, OWN_KINDS

HARMLESS = len(NORMS)   # in the place of a norm: a block of pictures that were changed without malice
CAMPAIGNS = 96          # learned from in each step
ROUNDS = 24             # campaigns drawn from each block in all
CONTAMINATION = 0.15    # share of a campaign's flagged inputs that may be harmless
AT_ONCE = 64            # blocks looked at in one go
ENOUGH_FLAGGED = 4      # of a block: one that is hardly ever flagged never becomes a campaign
NORM_RISK = 0.002       # share of held-out campaigns that may be taken for L2, or for harmless, when they are not


@dataclass(frozen=True, kw_only=True)
class Rehearsed:
    """Features of B rehearsed blocks of n pictures.

    Attributes:
        inputs: float [B, n, F + 1], as `StrengthNet.inputs` gives them.
        usable: bool [B, n], whether the picture may stand in a campaign.
        log_epsilon: float [B], ln of the epsilon that arrived, in the unit of the block's norm; without meaning where
            harmless.
        norm: int [B], index into `networks.NORMS`, or `HARMLESS`.
        kind: int [B], index into `rehearsal.KINDS`, or into `rehearsal.BENIGN` where harmless.
        coarse: bool [B], whether the change stretches over several pixels; without meaning where harmless.
    """

    inputs: Tensor
    usable: Tensor
    log_epsilon: Tensor
    norm: Tensor
    kind: Tensor
    coarse: Tensor

    def first(self, n: int) -> Rehearsed:
        """The same blocks of their first n pictures."""
        return replace(self, inputs=self.inputs[:, :n], usable=self.usable[:, :n])

    def head(self, count: int) -> Rehearsed:
        """The first blocks alone; a view, as `first` is."""
        return Rehearsed(**{name: value[:count] for name, value in vars(self).items()})

    def tail(self, count: int) -> Rehearsed:
        """The last blocks alone, which may be none; a view, too."""
        return Rehearsed(**{name: value[len(value) - count :] for name, value in vars(self).items()})


@dataclass(frozen=True, kw_only=True)
class Campaigns:
    """Drawn campaigns: `mean` [M, F + 1] of inputs, `n` [M], `block` [M]."""

    mean: Tensor
    n: Tensor
    block: Tensor


@torch.no_grad()
def draw_campaigns(
    blocks: Rehearsed, suspects: Tensor, sizes: list[Tensor], generator: torch.Generator
) -> Campaigns:
    """One campaign from each block for every entry of `sizes` ([B] wished sizes), as serving would collect it.

    Args:
        suspects: inputs [M, F + 1] of harmless pictures that score high; six campaigns in ten of attacked inputs are
            contaminated with up to `CONTAMINATION` of them.
    """
    device = blocks.inputs.device
    kept = (blocks.usable.sum(1) >= ENOUGH_FLAGGED).nonzero()[:, 0]
    usable, attacked = blocks.usable[kept], blocks.norm[kept] != HARMLESS
    means, counts = torch.empty(len(sizes), len(kept), blocks.inputs.shape[2], device=device), []
    for size, mean in zip(sizes, means, strict=True):
        order = torch.rand(usable.shape, generator=generator).to(device).masked_fill(~usable, 2.0).argsort(1).argsort(1)
        chosen = ((order < size.to(device)[kept].unsqueeze(1)) & usable).float()
        n = chosen.sum(1)
        for part in torch.arange(len(kept), device=device).split(AT_ONCE):   # a copy of all takes hundreds of MB
            mean[part] = torch.einsum("bn,bnf->bf", chosen[part], blocks.inputs[kept[part]])
        mean /= n.unsqueeze(1)
        share = torch.rand(len(kept), generator=generator) * CONTAMINATION
        share = share * (torch.rand(len(kept), generator=generator) < 0.6)
        share = (share.to(device) * ((n >= 8) & attacked)).unsqueeze(1)
        rows = torch.randint(len(suspects), (len(kept), 8), generator=generator).to(device)
        mean.mul_(1 - share).add_(suspects[rows].mean(1) * share)
        counts.append(n)
    return Campaigns(mean=means.flatten(0, 1), n=torch.cat(counts), block=kept.repeat(len(sizes)))


def fold_of(block: Tensor, folds: int) -> Tensor:
    """The fold of each block; kinds alternate, so that every fold holds all of them."""
    return block // len(KINDS) % folds


def fit_strength(net: StrengthNet, blocks: Rehearsed, suspects: Tensor, *, seed: int, steps: int) -> None:
    """Teach `net` ln(epsilon) and its spread by maximum likelihood, and norm, harmlessness and coarseness, on drawn
    campaigns."""
    generator = torch.Generator().manual_seed(seed)
    count, most = blocks.usable.shape
    # Sizes from 1 to the whole block, evenly in the logarithm, the whole block twice as likely.
    sizes = [(torch.rand(count, generator=generator) * math.log(2 * most)).exp().floor() for _ in range(ROUNDS)]
    campaigns = draw_campaigns(blocks, suspects, sizes, generator)
    optimizer = torch.optim.AdamW(net.parameters(), lr=4e-3, weight_decay=0.1, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    harmless = blocks.norm[campaigns.block] == HARMLESS
    pools = ((~harmless).nonzero()[:, 0], harmless.nonzero()[:, 0])
    net.train()
    for _ in range(steps):
        rows = torch.cat([
            pool[torch.randint(len(pool), (share,), generator=generator).to(pool.device)]
            for pool, share in zip(pools, (CAMPAIGNS, CAMPAIGNS // 3), strict=True)
        ])
        loss = _loss(net, campaigns.mean[rows], campaigns.n[rows], blocks, campaigns.block[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    net.eval().requires_grad_(False)


def _loss(net: StrengthNet, mean: Tensor, n: Tensor, blocks: Rehearsed, block: Tensor) -> Tensor:
    """Mean over heads and campaigns; each head leaves out the blocks of its fold."""
    centre, spread, logits = net(net.evidence(mean), n)
    norm, truth = blocks.norm[block], blocks.log_epsilon[block]
    attacked = norm != HARMLESS
    own = norm.clamp_max(HARMLESS - 1).view(1, -1, 1).expand(len(centre), -1, 1)
    spread = widen(spread)
    error, spread = truth - centre.gather(2, own)[..., 0], spread.gather(2, own)[..., 0]
    loss = ((error / spread).square() / 2 + spread.log()) * attacked
    target = torch.stack([norm == 1, ~attacked, blocks.coarse[block]], -1).float().expand_as(logits)
    entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    loss = loss + 0.3 * (entropy[..., 0] + entropy[..., COARSENESS]) * attacked + entropy[..., 1]
    own_fold = torch.arange(net.folds, device=block.device).unsqueeze(1)
    return (loss * (fold_of(block, net.folds).unsqueeze(0) != own_fold)).mean()


@torch.no_grad()
def calibrate(net: StrengthNet, blocks: Rehearsed, suspects: Tensor, *, seed: int):
    """Quantiles of the scaled error on blocks that a head did not learn from, and when to believe the two logits.

    Returns:
        Quantiles [whose][norm][size][grain][level] for `bounds.SIZES` and `bounds.LEVELS`, as `bounds.calibrated`
        gives them of all kinds (`bounds.ANY`) and, in Linf and of enough, of those along the model's own gradient
        (`bounds.OWN`): for each kind of attack by itself, so that the bias between kinds is inside; the logit that at
        most `NORM_RISK` of held-out Linf campaigns exceed for L2, since taking one for the other starts a needless
        retrain; and the same for attacks taken for harmless. Neither is below 0.
    """
    generator = torch.Generator().manual_seed(seed + 1)
    table = torch.zeros(2, len(NORMS), len(SIZES), 2, len(LEVELS))
    as_l2, as_harmless = [], []
    for column, size in enumerate(SIZES):
        sizes = [torch.full((len(blocks.norm),), float(size))] * 4
        campaigns = draw_campaigns(blocks, suspects, sizes, generator)
        norm, truth = blocks.norm[campaigns.block], blocks.log_epsilon[campaigns.block]
        centre, spread, logits = net(net.evidence(campaigns.mean), campaigns.n)
        each, head = torch.arange(len(norm), device=norm.device), fold_of(campaigns.block, net.folds)
        centre, spread, logits = centre[head, each], spread[head, each], logits[head, each]
        error = truth.unsqueeze(1) - centre
        kind = blocks.kind[campaigns.block]
        for index in range(len(NORMS)):
            facts = error[:, index], spread[:, index], logits[:, COARSENESS], kind
            every = norm == index
            if every.any():
                table[:, index, column] = calibrated(*(fact[every].cpu() for fact in facts))
            own = every & (kind < OWN_KINDS)
            if index == 0 and own.sum() >= ENOUGH:
                table[OWN, index, column] = calibrated(*(fact[own].cpu() for fact in facts))
        if size >= NORM_MINIMUM:
            as_l2.append(logits[norm == 0, 0])
            as_harmless.append(logits[norm != HARMLESS, 1])
    bounds = [max(0.0, torch.cat(part).quantile(1 - NORM_RISK).item()) for part in (as_l2, as_harmless)]
    return table, *bounds
