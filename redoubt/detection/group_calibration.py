"""What parts of a campaign of one kind look like by selection alone: the bounds that a separate group must pass."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from redoubt.detection.groups import excess, nested, upper_means
from redoubt.detection.networks import NORMS, StrengthNet, scatter, widen
from redoubt.detection.strength import CONTAMINATION, HARMLESS, NORM_RISK, Rehearsed, fold_of

DRAWS = 4       # campaigns from each block
NEVER = 1000.0  # standard deviations; for a norm of which no block can be judged. JSON has no infinity
SHARE = 0.25    # of a block that a part must hold: 4 of 16 inputs, which scatter more than the 16 asked for in service
REST = 0.4      # of a block that a part must leave to be held against that: 7 of 16; in service it is 22 of 64


@torch.no_grad()
def calibrate_groups(net: StrengthNet, blocks: Rehearsed, suspects: Tensor, *, levels: int, seed: int):
    """Bounds on held-out campaigns of one kind, which at most `NORM_RISK` of these pass.

    Args:
        suspects: inputs [M, F + 1] of harmless pictures that score high; six attack campaigns in ten hold up to
            `CONTAMINATION` of them.

    Returns:
        The largest `groups.excess` that parts of an attack show, for each norm [norm]; and the lowest logit of
        harmlessness that parts of a harmless campaign show, at most 0.
    """
    generator = torch.Generator().manual_seed(seed + 2)
    suspects, apart = net.evidence(suspects), []
    for index in range(len(NORMS)):
        rows, head = _one_kind(net, blocks, index, generator)
        rows, head = _contaminate(rows.repeat(DRAWS, 1, 1), suspects, generator), head.repeat(DRAWS)
        apart.append(_largest_excess(net, rows, head, levels).quantile(1 - NORM_RISK).item() if len(rows) else NEVER)
    lowest = _lowest_logit(net, *_one_kind(net, blocks, HARMLESS, generator))
    return apart, min(0.0, lowest.quantile(NORM_RISK).item())


def _one_kind(net, blocks: Rehearsed, norm: int, generator) -> tuple[Tensor, Tensor]:
    """Evidence [B, n, K] of the blocks of a norm, or harmless ones, and the head [B] that did not learn from each.

    Only blocks of which three quarters may stand in a campaign; the other inputs are replaced by usable ones.
    """
    enough = blocks.usable.shape[1] * 3 // 4
    kept = ((blocks.usable.sum(1) >= enough) & (blocks.norm == norm)).nonzero()[:, 0]
    rows, usable = net.evidence(blocks.inputs[kept]), blocks.usable[kept]
    if len(kept):
        again = torch.multinomial(usable.float().cpu(), rows.shape[1], True, generator=generator).to(rows.device)
        rows = torch.where(usable.unsqueeze(2), rows, rows.take_along_dim(again.unsqueeze(2), 1))
    return rows, fold_of(kept, net.folds)


def _contaminate(rows: Tensor, suspects: Tensor, generator: torch.Generator) -> Tensor:
    """Up to `CONTAMINATION` of the rows [B, n, K] of six campaigns in ten replaced by suspects [M, K]."""
    share = torch.rand(len(rows), 1, generator=generator) * CONTAMINATION
    share = share * (torch.rand(len(rows), 1, generator=generator) < 0.6)
    foreign = torch.rand(rows.shape[:2], generator=generator).argsort(1).argsort(1) < (share * rows.shape[1]).round()
    other = torch.randint(len(suspects), rows.shape[:2], generator=generator).to(rows.device)
    return torch.where(foreign.to(rows.device).unsqueeze(2), suspects[other], rows)


def _read(net: StrengthNet, pooled: Tensor, size: Tensor, head: Tensor) -> tuple[Tensor, ...]:
    """ln(epsilon), its spread and the logits, each [B, ...], of means [B, K] over `size` [B], by the `head` [B]."""
    at = torch.arange(len(pooled), device=pooled.device)
    return tuple(part[head, at] for part in net(pooled, size))


def _read_single(net: StrengthNet, rows: Tensor, head: Tensor) -> tuple[Tensor, ...]:
    """As `_read`, of single inputs [B, n, K]: each [B, n, ...]."""
    ones = torch.ones(rows.shape[0] * rows.shape[1], device=rows.device)
    single = _read(net, rows.flatten(0, 1), ones, head.repeat_interleave(rows.shape[1]))
    return tuple(part.unflatten(0, rows.shape[:2]) for part in single)


def _parts(rows: Tensor, key: Tensor):
    """The order of the rows by `key`, and (mean, size) of each candidate part in it."""
    order = key.argsort(1, descending=True)
    sizes = nested(key.gather(1, order), math.ceil(SHARE * rows.shape[1]))
    return order, list(zip(upper_means(rows.take_along_dim(order.unsqueeze(2), 1), sizes), sizes, strict=True))


def _largest_excess(net: StrengthNet, rows: Tensor, head: Tensor, levels: int) -> Tensor:
    """The largest excess among the parts of each campaign: [B, n, K] to [B]."""
    centre, spread, _ = _read_single(net, rows, head)
    order, parts = _parts(rows, centre[..., 0])
    scattered = scatter(centre[..., 0], widen(spread)[..., 0], levels).gather(1, order)
    single = centre[..., 0].gather(1, order)

    def strength(mean: Tensor, size: Tensor) -> Tensor:
        return _read(net, mean, size.float(), head)[0][:, 0]

    n, mean_of_all = rows.shape[1], rows.mean(1)
    whole, found = strength(mean_of_all, torch.full_like(head, n)), []
    for mean, size in parts:
        left = (n - size).clamp_min(1)
        rest = strength((n * mean_of_all - size.unsqueeze(1) * mean) / left.unsqueeze(1), left)
        base = torch.where(left >= REST * n, rest, whole)
        found.append(excess(strength(mean, size), base, single, scattered, size))
    return torch.stack(found).amax(0).clamp_min(0)


def _lowest_logit(net: StrengthNet, rows: Tensor, head: Tensor) -> Tensor:
    """The lowest logit of harmlessness among the parts that look least harmless: [B, n, K] to [B]."""
    _, parts = _parts(rows, -_read_single(net, rows, head)[2][..., 1])
    return torch.stack([_read(net, mean, size.float(), head)[2][:, 1] for mean, size in parts]).amin(0)
