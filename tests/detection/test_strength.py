"""The strength network: each fold is judged by a head that did not learn from it."""

from __future__ import annotations

import torch

from redoubt.detection.networks import StrengthNet
from redoubt.detection.strength import Rehearsed, _loss, fold_of

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
