"""Gradients that are given a shape: the answers stay, what is built of them is smooth or coarse."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from redoubt.attacks import pgd
from redoubt.attacks.shaped import cells, smooth, through
from redoubt.threat import ThreatModel


@pytest.fixture()
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 12 * 12, 5)).eval()


def attacked(net, shape):
    x = torch.full((4, 3, 12, 12), 0.5)
    return x, pgd(through(net, shape), x, torch.arange(4), ThreatModel("Linf", 0.1), steps=3, random_start=False)


def test_answers_are_the_models_own(net):
    x = torch.rand(2, 3, 12, 12)
    torch.testing.assert_close(through(net, smooth(1.0))(x), net(x))


def test_cells_are_squares_of_one_value_that_begin_at_the_corner(net):
    x, x_adv = attacked(net, cells(5, (2, 3)))
    change = x_adv - x
    assert change.abs().amax() == pytest.approx(0.1)
    assert (change[:, :, 2:7, 3:8].flatten(2).std(2) < 1e-6).all()      # a whole cell
    assert (change[:, :, :2, :3].flatten(2).std(2) < 1e-6).all()        # what is left of one at the edge
    assert change[:, :, 1:3].std(2).amax() > 0.05                       # two cells meet between rows 1 and 2


def test_a_cell_gets_the_sign_of_its_mean():
    gradient = torch.zeros(1, 1, 4, 4)
    gradient[0, 0, :2, :2] = torch.tensor([[3.0, -1.0], [-1.0, 0.0]])
    shaped = cells(2)(gradient)
    assert (shaped[0, 0, :2, :2] == 0.25).all() and (shaped[0, 0, 2:] == 0).all()


def test_a_smooth_gradient_changes_sign_less_often(net):
    def turns(change):
        return (change[..., 1:].sign() != change[..., :-1].sign()).float().mean()

    fine, coarse = (x_adv - x for x, x_adv in (attacked(net, smooth(0.2)), attacked(net, smooth(2.0))))
    assert turns(coarse) < 0.6 * turns(fine)


def test_shapes_keep_a_constant_away_from_the_edges():
    constant = torch.full((1, 2, 9, 9), 2.0)
    torch.testing.assert_close(cells(3)(constant), constant)
    torch.testing.assert_close(smooth(0.5)(constant)[..., 2:-2, 2:-2], constant[..., 2:-2, 2:-2])


def test_gradients_keep_their_type_under_autocast(net):
    x = torch.rand(2, 3, 12, 12)
    with torch.autocast("cpu", torch.bfloat16):
        x_adv = pgd(through(net, smooth(1.0)), x, torch.tensor([0, 1]), ThreatModel("Linf", 0.1), steps=2)
    assert x_adv.dtype == torch.float32 and (x_adv - x).abs().amax() <= 0.1 + 1e-6
