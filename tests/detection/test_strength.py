"""The strength network: each fold is judged by a head that did not learn from it."""

from __future__ import annotations

import pytest
import torch

from redoubt.detection.bounds import ANY, FLOORS, OWN
from redoubt.detection.networks import StrengthNet
from redoubt.detection.rehearsal import OWN_KINDS
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


def sure() -> tuple[StrengthNet, torch.Tensor]:
    """A network whose heads each say something else, by much, and are sure of it; and what they say, [FOLDS]."""
    net, said = network().eval(), torch.tensor([-3.0, -2.0, -1.5, -0.5])
    with torch.no_grad():
        net.heads[-1].weight.zero_()
        net.heads[-1].bias.zero_()
        net.heads[-1].bias[:, 0, 0] = said + 2   # the centre in Linf
        net.heads[-1].bias[:, 0, 2] = -5.0       # its spread: exp(-6)
    return net, said


@pytest.mark.parametrize("off", [0.0, 0.1, -0.1])
def test_bounds_come_from_the_head_that_did_not_learn_a_block_in_its_own_spread(off):
    """Of its own fold each is right, or off by the same."""
    net, said = sure()
    rows = torch.arange(128)
    blocks = Rehearsed(inputs=torch.randn(128, 8, 8), usable=torch.ones(128, 8, dtype=torch.bool),
                       log_epsilon=said[fold_of(rows, FOLDS)] + off,
                       norm=torch.where(rows < 96, 0, HARMLESS), kind=rows % 8,
                       coarse=torch.zeros(128, dtype=torch.bool))
    table = calibrate(net, blocks, torch.zeros(16, 8), seed=0)[0][ANY, 0]   # of Linf, [sizes, grains, levels]
    expected = off / torch.tensor(FLOORS)
    torch.testing.assert_close(table, expected.expand_as(table), rtol=0.02, atol=1e-4)


@pytest.mark.parametrize(("count", "kinds", "expected"), [
    (384, 8, 0.1),   # 5 of 8 kinds, four campaigns of a block
    (128, 8, 0.2),   # too few for a quantile of their own
    (384, 3, 0.2),   # none
])
def test_attacks_along_the_gradient_have_bounds_of_their_own(count, kinds, expected):
    """They are read too small by a tenth here, and the others by a fifth; in L2 nothing is told apart."""
    net, said = sure()
    with torch.no_grad():
        net.heads[-1].bias[:, 0, 1] = said + 2
        net.heads[-1].bias[:, 0, 3] = -5.0
    rows = torch.arange(count)
    kind = 7 - rows % kinds
    blocks = Rehearsed(inputs=torch.randn(count, 8, 8), usable=torch.ones(count, 8, dtype=torch.bool),
                       log_epsilon=said[fold_of(rows, FOLDS)] + torch.where(kind < OWN_KINDS, 0.1, 0.2),
                       norm=torch.where(rows < count // 2, 0, torch.where(rows < count - 16, 1, HARMLESS)), kind=kind,
                       coarse=torch.zeros(count, dtype=torch.bool))
    table, above = calibrate(net, blocks, torch.zeros(16, 8), seed=0)[0][..., 2:], torch.tensor(FLOORS[2:])
    for part, off in ((table[OWN, 0], expected), (table[ANY, 0], 0.2), (table[OWN, 1], 0.2), (table[ANY, 1], 0.2)):
        torch.testing.assert_close(part, (off / above).expand_as(part), rtol=0.02, atol=0)
