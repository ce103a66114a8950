"""The histograms against a plain count, and the rehearsal inside its threat model."""

from __future__ import annotations

import io
import math

import pytest
import torch

from redoubt.detection.benign import BENIGN, NOISE, benign, fewer_steps, jpeg
from redoubt.detection.features import (
    NARROW,
    SPANS,
    WIDE,
    _spans,
    _without_specks,
    feature_count,
    features,
    neighbours_mean,
)
from redoubt.detection.rehearsal import KINDS, rehearse
from redoubt.detection.surrogates import fit_surrogates


@pytest.mark.parametrize("channels", [1, 3])
def test_each_histogram_is_a_share_of_pixels(channels):
    x = torch.rand(4, channels, 9, 9)
    seen = features(x)
    assert seen.shape == (4, feature_count(channels))
    assert WIDE.bins != NARROW.bins == SPANS.bins
    whole = (9 if channels > 1 else 8) * (WIDE.bins + 1)
    for part, scale in ((seen[:, :whole], WIDE), (seen[:, whole:], NARROW)):
        assert (part.numel() == 0) == (scale is NARROW and channels == 1)   # where it is flat and spans, in colour
        sums = part.square().view(4, -1, scale.bins + 1).sum(-1)
        torch.testing.assert_close(sums, torch.ones_like(sums))


def test_where_a_picture_is_flat_what_was_added_lies_bare():
    """A textured half must not hide that a flat half was changed by 4 levels."""
    generator = torch.Generator().manual_seed(0)
    x = torch.full((1, 3, 32, 32), 0.5)
    x[..., 16:] += 0.3 * torch.rand(1, 3, 32, 16, generator=generator).round() - 0.15
    x = x + torch.nn.functional.pad(torch.linspace(-0.3, 0.3, 16).expand(1, 3, 32, 16), (16, 0))
    changed = x + 4 / 255 * torch.randn(x.shape, generator=generator).sign()
    counts = features(changed)[0, 9 * (WIDE.bins + 1):][: NARROW.bins + 1].square()   # the residual, flattest fifth
    width = math.log(NARROW.highest / NARROW.lowest) / (NARROW.bins - 1)
    at = [1 + math.log(size / 255 / NARROW.lowest) / width for size in (4, 8)]
    near = sum(counts[math.floor(place) : math.floor(place) + 2].sum().item() for place in at)
    assert near + counts[0].item() > 0.99   # 0, 4 or 8 levels from the median of four
    assert features(x)[0, 9 * (WIDE.bins + 1)].square().item() > 0.99   # and nothing before


@pytest.mark.parametrize("shape", [(2, 3, 2, 2), (2, 3, 3, 3), (2, 2, 18, 31), (1, 4, 9, 5), (2, 3, 32, 32)])
def test_spans_are_the_largest_less_the_smallest_of_each_window(shape):
    x = torch.rand(shape)
    spans, x = list(_spans(x)), _without_specks(x)
    for one, other, window in zip(spans[::2], spans[1::2], (3, 5, 9, 17), strict=True):
        size = min(window, shape[2]), min(window, shape[3])   # of a small picture as much as there is
        for span, of in ((one, x), (other, x - x.roll(1, dims=1))):
            most, least = (torch.nn.functional.max_pool2d(part, size, 1) for part in (of, -of))
            torch.testing.assert_close(span, most + least, rtol=0, atol=0)
    assert features(torch.rand(shape)).shape == (shape[0], feature_count(shape[1]))


@pytest.mark.parametrize("alike", [True, False], ids=["grey", "coloured"])
def test_spans_pile_up_at_twice_the_bound_of_a_coarse_change(alike):
    """Squares of 4 x 4 pixels at plus or minus 6 levels on an even ground: neighbours differ in one place of four."""
    generator = torch.Generator().manual_seed(0)
    signs = torch.randn(40, 1 if alike else 3, 8, 8, generator=generator).sign()
    x = 0.4 + 6 / 255 * signs.repeat_interleave(4, -1).repeat_interleave(4, -2).expand(40, 3, 32, 32)
    spans = features(x).square().mean(0)[-8 * (SPANS.bins + 1) :].view(4, 2, -1)   # window, what, bins
    width = math.log(SPANS.highest / SPANS.lowest) / (SPANS.bins - 1)
    at = [1 + math.floor(math.log(size / 255 / SPANS.lowest) / width) for size in (12, 24)]
    one, other = (spans[:, what, place : place + 2].sum(1) for what, place in enumerate(at))
    assert (one.diff() > 0).all() and one[2] > 0.95 and one[3] > 0.999
    assert spans[:, 1, 0].min() > 0.999 if alike else other[3] > 0.95   # of channels four times


def test_a_speck_moves_no_span_and_a_pair_does():
    few = torch.rand(20, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    x = torch.nn.functional.interpolate(few, size=(32, 32), mode="bilinear") / 2
    rows, columns = [8, 8, 23, 23], [8, 23, 8, 23]   # in each window of 17 is one of them
    specks = x.clone()
    specks[..., rows, columns] = 1
    pairs = specks.clone()
    pairs[..., rows, [column + 1 for column in columns]] = 1
    before, one, two = (features(part).square()[:, -8 * (SPANS.bins + 1) :] for part in (x, specks, pairs))
    assert (one - before).abs().sum(1).mean() / 2 < 0.03 * 8 < (two - before).abs().sum(1).mean() / 2


def test_many_pictures_are_looked_at_in_parts():
    x = torch.rand(9, 3, 256, 256, generator=torch.Generator().manual_seed(0))
    assert torch.equal(features(x), torch.cat([features(part) for part in x.split(1)]))


def test_pixel_values_land_in_the_bin_of_their_logarithm():
    width = (math.log(0.8) - math.log(0.003)) / (WIDE.bins - 1)
    x = torch.zeros(1, 1, 8, 8)
    x[0, 0, 0, :] = 0.003 * math.exp(7 * width)          # an eighth of the pixels at bin 7
    x[0, 0, 1, :] = 0.003 * math.exp(20.25 * width)      # an eighth between bins 20 and 21
    share = features(x)[0, : WIDE.bins + 1].square()          # the first histogram is of the values themselves
    expected = torch.zeros(WIDE.bins + 1)
    expected[0], expected[8], expected[21], expected[22] = 6 / 8, 1 / 8, 3 / 32, 1 / 32
    torch.testing.assert_close(share, expected, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("shape", [(3, 1, 9, 9), (2, 3, 34, 30)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_mean_of_nine_pixels_is_that_of_torch_to_the_last_bit(shape, layout):
    x = torch.rand(shape).contiguous(memory_format=layout).requires_grad_()
    mean, expected = neighbours_mean(x), torch.nn.functional.avg_pool2d(x, 3, 1)
    assert torch.equal(mean, expected) and mean.stride() == expected.stride()
    gradients = [torch.autograd.grad(part.square().sum(), x)[0] for part in (mean, expected)]
    torch.testing.assert_close(*gradients)


def test_features_ignore_the_order_of_the_batch_and_accept_nothing():
    x = torch.rand(5, 1, 8, 8)
    torch.testing.assert_close(features(x.flip(0)), features(x).flip(0))
    for channels in (1, 3):
        assert features(torch.rand(0, channels, 8, 8)).shape == (0, feature_count(channels))


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_rehearsed_attacks_stay_inside_their_threat_model(digits, digits_model, norm):
    x, y = digits.tensors("detector_fit")
    surrogates = fit_surrogates(digits_model, x, seed=0, epochs=2)
    makers = rehearse(digits_model, surrogates, x, y, blocks=24, size=8, levels=16, norm=norm, epsilon=(0.05, 0.3),
                      seed=0)
    blocks = [make() for make in makers]
    assert {block.kind for block in blocks} == set(KINDS)
    rounded = 0
    for block in blocks:
        assert 0.05 <= block.threat.epsilon <= 0.3
        assert block.x.min() >= 0 and block.x.max() <= 1
        on_grid = torch.allclose((block.x * 16).round(), block.x * 16, atol=1e-5)
        rounded += on_grid
        slack = 1e-5 if not on_grid else (0.5 / 16) * (8 if norm == "L2" else 1) + 1e-5
        assert block.threat.size(block.x - block.clean).max() <= block.threat.epsilon + slack
    assert 10 <= rounded < 24   # most on the lattice, some not
    assert len({round(block.threat.epsilon, 6) for block in blocks}) == 24


@pytest.mark.parametrize("kind", BENIGN)
def test_harmless_changes_are_pictures_and_repeatable(kind):
    x = torch.rand(6, 3, 10, 10, generator=torch.Generator().manual_seed(0))
    one, two = (benign(kind, x, levels=255, generator=torch.Generator().manual_seed(4)) for _ in range(2))
    assert one.shape == x.shape and one.min() >= 0 and one.max() <= 1
    assert torch.equal(one, two)
    assert torch.equal(one, x) == (kind == "clean")


def test_jpeg_does_what_the_standard_says():
    # A flat picture has only its mean to lose: at quality 50 the tables hold as printed, and the first step is 16 / 8.
    flat = torch.full((3, 1, 11, 13), 100 / 255)
    out = jpeg(flat, torch.full((3, 1, 1, 1), 50.0))
    torch.testing.assert_close(out * 255, torch.full_like(out, 100))
    odd = jpeg(flat + 1 / 255, torch.full((3, 1, 1, 1), 50.0)) * 255   # 101 - 128 = -27 = -13.5 steps of two
    assert set(odd.unique().tolist()) <= {100.0, 102.0}
    x = torch.rand(4, 3, 20, 20, generator=torch.Generator().manual_seed(0))
    loss = [(jpeg(x, torch.full((4, 1, 1, 1), q)) - x).abs().mean().item() for q in (100.0, 75.0, 40.0, 10.0)]
    assert loss == sorted(loss) and loss[0] < 0.006 < 0.05 < loss[-1]
    each = jpeg(x, torch.tensor([100.0, 75.0, 40.0, 10.0]).view(4, 1, 1, 1))
    torch.testing.assert_close(each[3:], jpeg(x[3:], torch.full((1, 1, 1, 1), 10.0)))


def test_jpeg_agrees_with_an_encoder_of_its_own():
    image = pytest.importorskip("PIL.Image")
    ramp = torch.arange(28.0).view(28, 1) * 5 + torch.arange(28.0) * 3
    x = ((ramp + 40 * (torch.rand(28, 28, generator=torch.Generator().manual_seed(1)) - 0.5)).clamp(0, 255)).round()
    for quality in (90, 75, 40):
        file = io.BytesIO()
        image.fromarray(x.to(torch.uint8).numpy()).save(file, "JPEG", quality=quality)
        theirs = torch.frombuffer(bytearray(image.open(file).tobytes()), dtype=torch.uint8).view(28, 28).float()
        ours = jpeg(x.view(1, 1, 28, 28) / 255, torch.full((1, 1, 1, 1), float(quality)))[0, 0] * 255
        # A transform in integers and one in floats part near ties.
        assert (ours - theirs).abs().mean() < 0.25 * (theirs - x).abs().mean()


def test_fewer_steps_leaves_so_many_values():
    x = torch.rand(2, 1, 30, 30, generator=torch.Generator().manual_seed(2))
    few = fewer_steps(x, torch.tensor([3.0, 15.0]).view(2, 1, 1, 1))
    assert [len(picture.unique()) for picture in few] == [4, 16]


def test_stripes_run_along_rows_or_columns():
    x = torch.full((40, 1, 12, 12), 0.5)
    out = benign("stripes", x, levels=255, generator=torch.Generator().manual_seed(3), amount=0.5)
    rows, columns = ((out - out.mean(axis, keepdim=True)).abs().amax((1, 2, 3)) < 1e-6 for axis in (3, 2))
    assert (rows ^ columns).all() and 5 < rows.sum() < 35


@pytest.mark.parametrize("kind", sorted(set(NOISE) - {"float"}))   # which stays within a level
def test_a_fixed_pattern_is_the_same_on_every_picture(kind):
    x, generator = torch.full((20, 3, 12, 12), 0.5), torch.Generator().manual_seed(3)
    several, one, other = (benign(kind, x, levels=65535, generator=generator, amount=0.8, fixed=fixed)
                           for fixed in (False, True, True))
    level = 1 / 65535   # half are put on the lattice
    assert (one - one[:1]).abs().max() <= level < (several - several[:1]).abs().max()
    assert (one - other).abs().max() > level


def test_coarse_noise_is_of_one_size_on_half_of_the_pictures():
    x = torch.full((60, 1, 12, 12), 0.5)
    out = benign("coarse", x, levels=65535, generator=torch.Generator().manual_seed(3), amount=0.5) - x
    one_size = out.abs().flatten(1).std(1) < 1e-4
    assert 15 < one_size.sum() < 45


def test_waves_run_along_rows_or_columns_or_slant_or_are_checkers():
    x = torch.full((1000, 1, 12, 12), 0.5)
    out = benign("waves", x, levels=65535, generator=torch.Generator().manual_seed(3), amount=0.5) - x
    rows, columns = (out.std(axis).amax((1, 2)) < 1e-4 for axis in (3, 2))
    checker = (torch.arange(12).view(-1, 1) + torch.arange(12)) % 2 * 2 - 1
    checkers = (out[:, 0] * checker).mean((1, 2)).abs() > 0.99 * out.abs().mean((1, 2, 3))
    assert min(rows.sum(), columns.sum()) > 120 and checkers.sum() > 70 and not (rows & columns).any()
    power = torch.fft.rfft2(out[:, 0]).abs().square()
    strongest = power.flatten(1).argmax(1)
    slanting = (strongest % 7 > 0) & (strongest // 7 > 0) & ~checkers   # neither frequency is none
    assert slanting.sum() > 300
    torch.testing.assert_close(out.abs().mean((1, 2, 3)), torch.full((1000,), 0.02 * 10**0.5), rtol=0.01, atol=0)


def test_shading_is_smooth_and_of_one_colour_on_half_of_the_pictures():
    x = torch.full((200, 3, 32, 32), 0.5)
    out = benign("shading", x, levels=65535, generator=torch.Generator().manual_seed(3), amount=0.5) - x
    grey = (out - out[:, :1]).abs().amax((1, 2, 3)) < 1e-4
    assert 70 < grey.sum() < 130
    torch.testing.assert_close(out.abs().mean((1, 2, 3)), torch.full((200,), 0.03 * 10**0.5), rtol=0.02, atol=0)
    power = torch.fft.rfft2(out).abs().square().sum(1)
    slow = power[:, :6, :6].sum((1, 2)) + power[:, -5:, :6].sum((1, 2))
    assert (slow > 0.8 * power.sum((1, 2))).all()
    crossings = (out[:, 0, 16].sign().diff(dim=1) != 0).sum(1)
    assert crossings.max() >= 3 and (crossings == 1).sum() > 30, "from one slope to several turns"


def test_a_smooth_change_shows_where_the_picture_is_made_small():
    """Waves over several pixels leave the fine residual alone; the halved and quartered pictures show them."""
    wave = 0.5 + 0.1 * torch.sin(torch.arange(32) * math.pi / 8).expand(1, 1, 32, 32)
    parts = features(wave).square()[0, : 8 * (WIDE.bins + 1)].view(-1, WIDE.bins + 1)
    centres = torch.cat([torch.zeros(1), torch.logspace(math.log10(0.003), math.log10(0.8), WIDE.bins)])
    fine, quarter = (parts[row] @ centres for row in (2, 7))   # neighbours in a row, and both ways in the quarter
    assert quarter > fine
