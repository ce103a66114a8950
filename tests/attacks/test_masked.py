"""Attacks on a part of each picture: the rest stays as it is, and the part is attacked as if it were all."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from redoubt.attacks import fgsm, masked, pgd
from redoubt.attacks.shaped import guessed, smooth, through
from redoubt.threat import ThreatModel

LINF, L2 = ThreatModel("Linf", 0.1), ThreatModel("L2", 0.5)


@pytest.fixture()
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 12 * 12, 5)).eval()


@pytest.fixture()
def x():
    return torch.rand(4, 3, 12, 12, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("mask", [
    masked.inside(0.2), masked.busy(0.4), masked.window(0.25, 0.5, 0.5, 0.25), masked.scattered(0.3, 7),
])
@pytest.mark.parametrize("attack", [partial(fgsm, threat=LINF), partial(pgd, threat=LINF, steps=3),
                                    partial(pgd, threat=L2, steps=3, random_start=False)])
def test_pixels_outside_stay_and_those_inside_are_attacked(net, x, mask, attack):
    y = torch.arange(4)
    x_adv = masked.within(mask, attack, net, x, y)
    free = mask(x).expand_as(x) > 0
    assert 0 < free.float().mean() < 1
    assert torch.equal(x_adv[~free], x[~free])
    assert ((x_adv - x)[free].abs() > 1e-3).float().mean() > 0.5
    assert nn.functional.cross_entropy(net(x_adv), y) > nn.functional.cross_entropy(net(x), y)


def test_the_whole_length_goes_where_it_may(net, x):
    """In L2 what is not spent outside is spent inside."""
    climb = partial(pgd, threat=L2, steps=5, alpha=0.5, random_start=False)
    x = 0.3 + 0.4 * x
    change = masked.within(masked.window(0.2, 0.2, 0.6, 0.6), climb, net, x, torch.arange(4)) - x
    assert change.flatten(1).norm(dim=1).tolist() == pytest.approx([0.5] * 4, rel=0.02)


def test_masks_say_which_pixels():
    x = torch.full((1, 1, 10, 10), 0.5)
    x[0, 0, :, 0], x[0, 0, 3, 3] = 0.05, 0.95
    assert masked.inside(0.1)(x).sum() == 89 and masked.inside(0.04)(x).sum() == 100
    window = masked.window(0.5, 0.2, 0.3, 0.4)(x)[0, 0]
    assert window.sum() == 12 and window[5:8, 2:6].all()
    for corner in (0.9, 1.0):
        assert masked.window(corner, corner, 0.01, 0.01)(x).sum() == 1, "never nothing"
    scattered = masked.scattered(0.3, 5)
    assert scattered(x).mean() == pytest.approx(0.3, abs=0.15) and torch.equal(scattered(x), scattered(x))
    assert not torch.equal(scattered(x), masked.scattered(0.3, 6)(x))


def test_busy_places_are_the_busiest_and_never_flat():
    generator = torch.Generator().manual_seed(0)
    x = 0.7 + 0.5 / 255 * torch.rand(2, 3, 20, 20, generator=generator)   # what rounding leaves of a flat place
    assert masked.busy(0.9)(x).sum() == 0
    x[0, :, :, 8:] += 5 / 255   # a faint edge
    x[1, ..., :8] = torch.rand(3, 20, 8, generator=generator)
    edge, noise = masked.busy(0.9)(x)[:, 0]
    assert edge[:, 6:10].all() and edge[:, :5].sum() == 0 and edge[:, 11:].sum() == 0
    assert noise[:, :8].all() and noise[:, 11:].sum() == 0
    assert masked.busy(0.3)(x)[1].mean() == pytest.approx(0.3, abs=0.06)


def test_a_guessed_gradient_points_about_as_the_gradient_does(net, x):
    def turned(noise):
        generator = torch.Generator().manual_seed(0)
        gradient = torch.randn(8, 3, 12, 12, generator=generator)
        shape = guessed(noise, 3)
        one, other = shape(gradient), shape(gradient)
        assert not torch.equal(one, other), "drawn anew each time"
        assert torch.equal(one, guessed(noise, 3)(gradient)), "and the same with the same seed"
        return torch.cosine_similarity(one.flatten(1), gradient.flatten(1)).mean().item()

    assert turned(0.5) == pytest.approx(1 / 1.25**0.5, abs=0.03)
    assert turned(2.0) == pytest.approx(1 / 5**0.5, abs=0.03)
    assert torch.equal(guessed(0.0, 1)(x), x)
    torch.testing.assert_close(through(net, guessed(1.0, 1))(x), net(x))


def test_chance_is_as_large_as_each_pictures_own_gradient():
    gradient = torch.randn(3, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    shaped = guessed(2.0, 3)(gradient * torch.tensor([1.0, 1e-3, 1e-25]).view(-1, 1, 1, 1))
    cosine = torch.cosine_similarity(shaped.flatten(1).double(), gradient.flatten(1).double(), eps=0)
    assert cosine.tolist() == pytest.approx([1 / 5**0.5] * 3, abs=0.1)


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float64])
def test_wide_kernels_are_as_exact_in_few_bits_and_keep_the_type(kind):
    gradient = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        smoothed = smooth(1.0)(gradient.to(kind))
    assert smoothed.dtype == kind
    torch.testing.assert_close(smoothed.float(), smooth(1.0)(gradient.to(kind).float()), atol=2e-3, rtol=4e-3)
