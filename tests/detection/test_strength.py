"""The strength network: each fold is judged by a head that did not learn from it."""

from __future__ import annotations

import torch

from redoubt.detection.bounds import SIZES, scaled
from redoubt.detection.networks import StrengthNet, mixture
from redoubt.detection.strength import HARMLESS, Rehearsed, _loss, calibrate, fold_of

FOLDS = 4


def network() -> StrengthNet:
    torch.manual_seed(0)
    return StrengthNet(7, folds=FOLDS)


def test_no_head_learns_from_the_fold_that_it_is_judged_on():
    net = network().train()
    blocks = Rehearsed(inputs=torch.randn(64, 4, 8), usable=torch.ones(64, 4, dtype=torch.bool),
                       log_epsilon=torch.full((64,), -2.0), norm=torch.zeros(64, dtype=torch.long),
                       kind=torch.zeros(64, dtype=torch.long), coarse=torch.zeros(64, dtype=torch.bool))
    block = (fold_of(torch.arange(64), FOLDS) == 1).nonzero()[:, 0]
    _loss(net, blocks.inputs[block].mean(1), torch.full((len(block),), 4.0), blocks, block).backward()
    learned = torch.stack([layer.grad.abs().sum((1, 2)) for layer in (net.heads[0].weight, net.heads[4].weight)])
    held_out = torch.arange(FOLDS) == 1
    assert (learned[:, held_out] == 0).all() and (learned[:, ~held_out] > 0).all()


def test_heads_are_judged_by_the_spread_that_counts_their_disagreement():
    """A head that is off by 1 is off by what all of them are unsure of, not by fifty times its own spread."""
    net = network().eval()
    with torch.no_grad():
        net.heads[-1].weight.zero_()
        net.heads[-1].bias.zero_()
        net.heads[-1].bias[:, 0, 2] = -4.0   # each is sure of what it says in Linf
        net.heads[-1].bias[0, 0, 0], net.heads[-1].bias[1, 0, 0] = 1.0, -1.0
    blocks = Rehearsed(inputs=torch.randn(96, 8, 8), usable=torch.ones(96, 8, dtype=torch.bool),
                       log_epsilon=torch.full((96,), -2.0),
                       norm=torch.tensor([0, 0, HARMLESS]).repeat_interleave(32), kind=torch.arange(96) % 8,
                       coarse=torch.zeros(96, dtype=torch.bool))
    table = calibrate(net, blocks, torch.zeros(16, 8), seed=0)[0][0, len(SIZES) - 1, 0]
    said = mixture(*net(net.evidence(blocks.inputs[:1].mean(1)), torch.tensor([8.0]))[:2])[1][0, 0]
    low, *_, high = (table * scaled(said)).tolist()
    assert -1.5 < low <= -0.9 and 0.9 <= high < 1.5
