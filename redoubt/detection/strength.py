"""Learning to read the strength of a campaign, and how far that reading can be trusted."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from redoubt.detection.detector import LEVELS, NORM_MINIMUM, SIZES, widen
from redoubt.detection.groups import SHARE, excess, nested, upper_means
from redoubt.detection.networks import NORMS, Scorer, StrengthNet
from redoubt.detection.rehearsal import KINDS

HARMLESS = len(NORMS)   # in the place of a norm: a block of pictures that were changed without malice
CAMPAIGNS = 96          # learned from in each step
ROUNDS = 24             # campaigns drawn from each block in all
CONTAMINATION = 0.15    # share of a campaign's flagged inputs that may be harmless
NORM_RISK = 0.002       # share of held-out campaigns that may be taken for L2, or for harmless, when they are not


@dataclass(frozen=True, kw_only=True)
class Rehearsed:
    """Features of B rehearsed blocks of n pictures.

    Attributes:
        features: float [B, n, F].
        usable: bool [B, n], whether the picture may stand in a campaign.
        log_epsilon: float [B], ln(epsilon) in the unit of the block's norm; without meaning where harmless.
        norm: int [B], index into `networks.NORMS`, or `HARMLESS`.
        kind: int [B], index into `rehearsal.KINDS`, or into `rehearsal.BENIGN` where harmless.
    """

    features: Tensor
    usable: Tensor
    log_epsilon: Tensor
    norm: Tensor
    kind: Tensor


@dataclass(frozen=True, kw_only=True)
class Campaigns:
    """Drawn campaigns: `mean` [M, F + 1] standardised features and squashed score, `n` [M], `block` [M]."""

    mean: Tensor
    n: Tensor
    block: Tensor


@torch.no_grad()
def draw_campaigns(
    blocks: Rehearsed, suspects: Tensor, scorer: Scorer, sizes: list[Tensor], generator: torch.Generator
) -> Campaigns:
    """One campaign from each block for every entry of `sizes` ([B] wished sizes), as serving would collect it.

    Args:
        suspects: features [M, F] of harmless inputs that score high; six campaigns in ten of attacked inputs are
            contaminated with up to `CONTAMINATION` of them.
    """
    device = blocks.features.device
    logit = scorer(blocks.features.flatten(0, 1)).view(blocks.usable.shape)
    inputs = torch.cat([scorer.standardise(blocks.features), squash(logit)], -1)
    suspects = torch.cat([scorer.standardise(suspects), squash(scorer(suspects))], -1)
    # A block that is hardly ever flagged never becomes a campaign.
    kept = (blocks.usable.sum(1) >= 4).nonzero()[:, 0]
    inputs, usable, attacked = inputs[kept], blocks.usable[kept], blocks.norm[kept] != HARMLESS
    means, counts = [], []
    for size in sizes:
        order = torch.rand(usable.shape, generator=generator).to(device).masked_fill(~usable, 2.0).argsort(1).argsort(1)
        chosen = ((order < size.to(device)[kept].unsqueeze(1)) & usable).float()
        n = chosen.sum(1)
        mean = torch.einsum("bn,bnf->bf", chosen, inputs) / n.unsqueeze(1)
        share = torch.rand(len(kept), generator=generator) * CONTAMINATION
        share = share * (torch.rand(len(kept), generator=generator) < 0.6)
        share = (share.to(device) * ((n >= 8) & attacked)).unsqueeze(1)
        rows = torch.randint(len(suspects), (len(kept), 8), generator=generator).to(device)
        means.append(mean * (1 - share) + suspects[rows].mean(1) * share)
        counts.append(n)
    return Campaigns(mean=torch.cat(means), n=torch.cat(counts), block=kept.repeat(len(sizes)))


def squash(logit: Tensor) -> Tensor:
    """The score as evidence: bounded, so that one certain input cannot drown the others."""
    return torch.tanh(logit / 8).unsqueeze(-1)


def _evidence(net: StrengthNet, mean: Tensor) -> Tensor:
    return torch.cat([net.project(mean[:, :-1]), mean[:, -1:]], -1)


def _fold(block: Tensor, folds: int) -> Tensor:
    """The fold of each block; kinds alternate, so that every fold holds all of them."""
    return block // len(KINDS) % folds


def fit_strength(blocks: Rehearsed, suspects: Tensor, scorer: Scorer, *, levels: int, seed: int, steps: int):
    """Learn ln(epsilon) and its spread by maximum likelihood, and norm and harmlessness, on drawn campaigns.

    Returns:
        The `StrengthNet`, in eval mode.
    """
    generator = torch.Generator().manual_seed(seed)
    count, most = blocks.usable.shape
    # Sizes from 1 to the whole block, evenly in the logarithm, the whole block twice as likely.
    sizes = [(torch.rand(count, generator=generator) * math.log(2 * most)).exp().floor() for _ in range(ROUNDS)]
    campaigns = draw_campaigns(blocks, suspects, scorer, sizes, generator)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = StrengthNet(blocks.features.shape[-1]).to(campaigns.mean.device)
    optimizer = torch.optim.AdamW(net.parameters(), lr=4e-3, weight_decay=1e-2, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    harmless = blocks.norm[campaigns.block] == HARMLESS
    pools = ((~harmless).nonzero()[:, 0], harmless.nonzero()[:, 0])
    for _ in range(steps):
        rows = torch.cat([
            pool[torch.randint(len(pool), (share,), generator=generator).to(pool.device)]
            for pool, share in zip(pools, (CAMPAIGNS, CAMPAIGNS // 3), strict=True)
        ])
        loss = _loss(net, campaigns.mean[rows], campaigns.n[rows], blocks, campaigns.block[rows], levels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return net.eval().requires_grad_(False)


def _loss(net: StrengthNet, mean: Tensor, n: Tensor, blocks: Rehearsed, block: Tensor, levels: int) -> Tensor:
    """Mean over heads and campaigns; each head leaves its own fold out."""
    centre, spread, logits = net(_evidence(net, mean), n)
    norm, truth = blocks.norm[block], blocks.log_epsilon[block]
    attacked = norm != HARMLESS
    own = norm.clamp_max(HARMLESS - 1).view(1, -1, 1).expand(len(centre), -1, 1)
    spread = widen(centre.detach(), spread, levels)
    error, spread = truth - centre.gather(2, own)[..., 0], spread.gather(2, own)[..., 0]
    loss = ((error / spread).square() / 2 + spread.log()) * attacked
    target = torch.stack([(norm == 1).float(), (~attacked).float()], -1).expand_as(logits)
    entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    loss = loss + 0.3 * entropy[..., 0] * attacked + entropy[..., 1]
    folds = torch.arange(len(centre), device=block.device).unsqueeze(1)
    return (loss * (_fold(block, len(centre)).unsqueeze(0) != folds)).mean()


@torch.no_grad()
def calibrate(net: StrengthNet, blocks: Rehearsed, suspects: Tensor, scorer: Scorer, *, levels: int, seed: int):
    """Quantiles of the scaled error on blocks that a head did not learn from, and when to believe the two logits.

    Returns:
        The quantiles [norm][size][level] for `detector.SIZES` and `detector.LEVELS`, which hold for each kind of attack
        by itself, so that the bias between kinds is inside; the logit that at most
        `NORM_RISK` of held-out Linf campaigns exceed for L2, since taking one for the other starts a needless retrain;
        and the same for attacks taken for harmless. Neither is below 0.
    """
    generator = torch.Generator().manual_seed(seed + 1)
    table = torch.zeros(len(NORMS), len(SIZES), len(LEVELS))
    as_l2, as_harmless = [], []
    for column, size in enumerate(SIZES):
        sizes = [torch.full((len(blocks.norm),), float(size))] * 4
        campaigns = draw_campaigns(blocks, suspects, scorer, sizes, generator)
        norm, truth = blocks.norm[campaigns.block], blocks.log_epsilon[campaigns.block]
        centre, spread, logits = net(_evidence(net, campaigns.mean), campaigns.n)
        rows = torch.arange(len(norm), device=norm.device)
        head = _fold(campaigns.block, net.folds)
        centre, logits = centre[head, rows], logits[head, rows]
        error = (truth.unsqueeze(1) - centre) / widen(centre, spread[head, rows], levels)
        for index in range(len(NORMS)):
            if (norm == index).any():
                kind = blocks.kind[campaigns.block][norm == index].cpu()
                table[index, column] = _widest(error[norm == index, index].cpu(), kind)
        if size >= NORM_MINIMUM:
            as_l2.append(logits[norm == 0, 0])
            as_harmless.append(logits[norm != HARMLESS, 1])
    bounds = [max(0.0, torch.cat(part).quantile(1 - NORM_RISK).item()) for part in (as_l2, as_harmless)]
    return table.tolist(), *bounds


@torch.no_grad()
def calibrate_apart(net: StrengthNet, blocks: Rehearsed, suspects: Tensor, scorer: Scorer, *, levels: int, seed: int):
    """The largest excess that parts of a campaign of one kind show, by norm: [norm], see `groups`.

    Attack blocks that a head did not learn from stand for campaigns; six in ten hold up to `CONTAMINATION` of harmless
    inputs. Parts are small here, so their readings scatter more than in service: the bound errs upwards.
    """
    generator = torch.Generator().manual_seed(seed + 2)
    enough = max(8, blocks.usable.shape[1] * 3 // 4)
    kept = ((blocks.usable.sum(1) >= enough) & (blocks.norm != HARMLESS)).nonzero()[:, 0]
    suspects = _rows(net, scorer, suspects)
    found, norms = [], []
    for _ in range(4):
        rows = _one_kind(net, scorer, blocks, kept, suspects, generator)
        found.append(_largest_excess(net, rows, _fold(kept, net.folds), levels))
        norms.append(blocks.norm[kept])
    found, norms = torch.cat(found), torch.cat(norms)
    return [_high(found[norms == index]) for index in range(len(NORMS))]


def _high(values: Tensor) -> float:
    return values.quantile(1 - NORM_RISK).item() if len(values) else 10.0


def _rows(net: StrengthNet, scorer: Scorer, features: Tensor) -> Tensor:
    return net.evidence(scorer.standardise(features), scorer(features.flatten(0, -2)).view(features.shape[:-1]))


def _one_kind(net, scorer, blocks: Rehearsed, kept: Tensor, suspects: Tensor, generator) -> Tensor:
    """Evidence of one campaign from each block kept, [B, n, K]; unusable rows are replaced by usable ones."""
    rows, device = _rows(net, scorer, blocks.features[kept]), kept.device
    again = torch.multinomial(blocks.usable[kept].float().cpu(), rows.shape[1], True, generator=generator).to(device)
    rows = torch.where(blocks.usable[kept].unsqueeze(2), rows, rows[torch.arange(len(rows)).unsqueeze(1), again])
    share = torch.rand(len(kept), 1, generator=generator) * CONTAMINATION
    share = share * (torch.rand(len(kept), 1, generator=generator) < 0.6)
    count = (share * rows.shape[1]).round()
    foreign = torch.rand(rows.shape[:2], generator=generator).argsort(1).argsort(1) < count
    other = torch.randint(len(suspects), rows.shape[:2], generator=generator).to(device)
    return torch.where(foreign.to(device).unsqueeze(2), suspects[other], rows)


def _largest_excess(net: StrengthNet, rows: Tensor, head: Tensor, levels: int) -> Tensor:
    """The largest excess among the candidates of each campaign: [B, n, K] and the head of each [B] to [B]."""
    many, n = rows.shape[:2]
    at = torch.arange(many, device=rows.device)

    def read(pooled: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
        centre, spread, _ = net(pooled, size)
        return centre, widen(centre, spread, levels)

    centre, spread = (part[..., 0].view(net.folds, many, n)[head, at]
                      for part in read(rows.flatten(0, 1), torch.ones(many * n, device=rows.device)))
    order = centre.argsort(1, descending=True)
    sizes = nested(centre.gather(1, order), math.ceil(SHARE * n))
    spread, rows = spread.gather(1, order), rows[at.unsqueeze(1), order]
    whole = read(rows.mean(1), torch.full_like(at, n).float())[0][head, at, 0]
    largest = torch.zeros(many, device=rows.device)
    for mean, size in zip(upper_means(rows, sizes), sizes, strict=True):
        group = read(mean, size.float())[0][head, at, 0]
        outside = torch.arange(n, device=rows.device) >= size.unsqueeze(1)
        scatter = spread.masked_fill(outside, torch.nan).nanmedian(1).values
        largest = torch.maximum(largest, excess(group, whole, scatter))
    return largest


def _widest(error: Tensor, kind: Tensor) -> Tensor:
    """Quantiles of `error` [M] at `detector.LEVELS`, for the kind [M] whose mean error lies farthest out.

    A kind has too few blocks for a 99 % quantile of its own: scatter is pooled over kinds, bias is taken at its worst.
    """
    bias = torch.stack([error[kind == one].mean() for one in kind.unique()])
    scatter = torch.cat([error[kind == one] - error[kind == one].mean() for one in kind.unique()])
    levels = torch.tensor(LEVELS)
    return scatter.quantile(levels) + torch.where(levels < 0.5, bias.min(), bias.max())
