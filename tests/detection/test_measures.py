"""Smoothed copies: each way takes off what it is there for and leaves what it should."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from redoubt.detection import measures as module
from redoubt.detection.benign import blur
from redoubt.detection.measures import MEASURES, _like, _plain, _smooths, _waving, asking, measures

TEXTURE, DETAIL = 5, 8   # numbers in `_texture`, of three copies, and in `_detail`, of four


def half(low: float, high: float, side: int = 16) -> torch.Tensor:
    """One picture, dark on the left and light on the right: [1, 3, side, side]."""
    x = torch.full((1, 3, side, side), low)
    x[..., side // 2 :] = high
    return x


def test_an_edge_outlasts_the_mean_over_like_neighbours_and_noise_does_not():
    clean = half(0.2, 0.8)
    noise = 0.03 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0)).sign()
    left = _like(clean + noise) - clean
    assert (_like(clean) - clean).abs().max() < 1e-3
    assert left.square().mean() < 0.25 * noise.square().mean()
    once = _smooths(clean + noise)[0]
    assert (once - clean).abs().max() > 5 * left.abs().max(), "the plain mean does not spare the edge"


@pytest.mark.parametrize("light", [False, True])
def test_little_on_a_plain_background_is_taken_off(light):
    x = torch.zeros(1, 1, 16, 16)
    x[..., 4:10, 4:10] = 0.7
    changed = x + 0.08 * torch.rand(x.shape, generator=torch.Generator().manual_seed(0))
    if light:
        x, changed = 1 - x, 1 - changed
    smooth = _plain(changed)
    assert ((smooth - x).abs()[x == float(light)] < 1e-6).all()
    torch.testing.assert_close((changed - smooth).abs()[x != float(light)], torch.full((36,), 0.1))


def test_each_picture_is_smoothed_by_itself():
    x = torch.rand(5, 3, 17, 17, generator=torch.Generator().manual_seed(0))
    for whole, alone in zip(_smooths(x), zip(*(_smooths(one.unsqueeze(0)) for one in x), strict=True), strict=True):
        torch.testing.assert_close(torch.cat(alone), whole)


@pytest.mark.parametrize(("channels", "side"), [(1, 16), (3, 33)])
def test_any_picture_gives_finite_measures(channels, side):
    model = nn.Sequential(nn.Flatten(), nn.Linear(channels * side * side, 4)).eval().requires_grad_(False)
    x = torch.stack([torch.zeros(channels, side, side), torch.ones(channels, side, side),
                     torch.rand(channels, side, side, generator=torch.Generator().manual_seed(0))])
    found = measures(model, x)
    assert found.shape == (3, MEASURES) and found.isfinite().all()


@pytest.mark.parametrize(("side", "parts"), [(8, [24, 24, 2]), (32, [24, 24, 2]), (64, [6] * 8 + [2]), (512, [1] * 50)])
def test_of_large_pictures_fewer_are_tried_at_once(side, parts):
    x = torch.zeros(50, 3, 1, 1).expand(-1, -1, side, side)
    assert [len(ask.args[1]) for ask in asking(None, x)] == parts
    assert [len(ask.args[1]) for ask in asking(None, x[:0])] == [0]   # something to join


@pytest.fixture
def bent() -> nn.Module:
    """A network whose gradient is another one at every picture."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 8, 5, stride=2), nn.Tanh(), nn.Flatten(), nn.Linear(8 * 49, 4)).eval()


@pytest.mark.parametrize("order", [(3, 1, 2, 0), (0, 3, 1, 2)])
def test_each_smoothed_copy_has_measures_of_its_own(bent, monkeypatch, order):
    """Told to take the copies in another order, it gives the same numbers at other places."""
    x = torch.rand(6, 3, 18, 18, generator=torch.Generator().manual_seed(0))
    usual, copies = measures(bent, x), _smooths(x)
    monkeypatch.setattr(module, "_smooths", lambda _: tuple(copies[i] for i in order))
    other = measures(bent, x)

    def detail(found, copy):
        return found[:, 3 * TEXTURE + copy * DETAIL : 3 * TEXTURE + (copy + 1) * DETAIL]

    for place, copy in enumerate(order):
        torch.testing.assert_close(detail(other, place), detail(usual, copy), rtol=1e-3, atol=1e-4)
    textured = [0, None, 1, 2]   # whose texture is where: the repeated mean's is left out
    for place, copy in zip((0, 1, 2), (order[0], order[2], order[3]), strict=True):
        if textured[copy] is not None:
            torch.testing.assert_close(other[:, place * TEXTURE :][:, :TEXTURE],
                                       usual[:, textured[copy] * TEXTURE :][:, :TEXTURE])
    assert len({tuple(detail(usual, copy)[0].tolist()) for copy in range(4)}) == 4


@pytest.mark.parametrize("channels", [1, 3])
def test_waves_in_any_direction_are_few_frequencies_and_noise_is_many(channels):
    place = torch.arange(24) * 2 * torch.pi
    waves = torch.stack([(rows * place.view(-1, 1) + columns * place).cos()
                         for rows, columns in ((0, 0.25), (1 / 3, 0), (0.5, 0.5), (5 / 24, -7 / 24), (0.41, 0.17))])
    waves = torch.cat([waves, waves.sign()]).unsqueeze(1).expand(-1, channels, -1, -1)
    noise = torch.randn(10, channels, 24, 24, generator=torch.Generator().manual_seed(0))
    assert _waving(waves).min() > 0.6 and _waving(waves[:4]).min() > 0.99
    assert _waving(noise).max() < 0.2 and _waving(noise.sign()).max() < 0.2
    assert _waving(torch.full((2, channels, 24, 24), 0.1)).max() < 1e-6, "a constant is no wave"
    assert (_waving(torch.zeros(2, channels, 24, 24)) == 0).all() and (_waving(noise[..., :1, :1]) == 0).all()
    torch.testing.assert_close(_waving(0.01 * noise), _waving(noise), rtol=1e-3, atol=0)


def test_what_outlasts_one_mean_is_gone_after_six():
    row = (torch.arange(24) % 6 < 3).float()
    x = (0.5 + 0.1 * (row - 0.5)).expand(1, 3, 24, 24)
    once, repeated, _, _ = _smooths(x)
    assert (once - 0.5).abs()[..., 8:16].max() > 0.04 and (repeated - 0.5).abs()[..., 8:16].max() < 0.008
    torch.testing.assert_close(once, blur(x))


def test_an_edge_in_one_colour_is_an_edge():
    x = torch.full((1, 3, 16, 16), 0.5)
    x[:, 1, :, 8:] = 0.9
    assert (_like(x) - x).abs().max() < 0.02


def test_like_neighbours_count_two_pixels_away():
    x = torch.full((1, 1, 9, 9), 0.5)
    x[..., 4, 4] = 0.52
    assert _like(x)[..., 4, 6] > 0.5 and _like(x)[..., 4, 7] == 0.5


def test_no_measure_is_a_rounding_error(bent):
    """Nothing lies near black or white: what is taken off is the same everywhere, and has no fine part at all."""
    x = 0.3 + 0.4 * torch.rand(4, 3, 18, 18, generator=torch.Generator().manual_seed(0))
    exact = measures(bent.double(), x.double()).float()
    torch.testing.assert_close(measures(bent.float(), x), exact, rtol=1e-2, atol=1e-3)


def test_random_changes_that_change_nothing_move_no_answer(bent, monkeypatch):
    x = torch.rand(4, 3, 18, 18, generator=torch.Generator().manual_seed(0))
    assert measures(bent, x)[:, -4:].abs().sum() > 0
    monkeypatch.setattr(module, "_shaken", lambda x, detail: [x] * 4)
    torch.testing.assert_close(measures(bent, x)[:, -4:], torch.zeros(4, 4), rtol=0, atol=1e-4)
