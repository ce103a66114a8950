"""What is the same on many pictures is told from what is each one's own."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from redoubt.detection import pattern
from redoubt.detection.benign import benign, blur
from redoubt.detection.networks import SKETCH
from redoubt.detection.pattern import COMMON, SAME, agreement, common, sketch


def textured(n: int, seed: int = 0, channels: int = 3) -> torch.Tensor:
    """Pictures with detail of their own."""
    x = torch.rand(n, channels, 8, 8, generator=torch.Generator().manual_seed(seed))
    return 0.3 + 0.4 * F.interpolate(x, 32, mode="bicubic").clamp(0, 1)


def changed(x: torch.Tensor, kind: str, *, fixed: bool, amount: float = 0.6, seed: int = 3) -> torch.Tensor:
    return benign(kind, x, levels=255, generator=torch.Generator().manual_seed(seed), amount=amount, fixed=fixed)


def test_inner_products_are_cosines_of_detail():
    pairs, found, true = ~torch.eye(40, dtype=torch.bool), [], []
    for seed in range(20):   # right on average over patterns
        x = changed(textured(40, seed=seed), "sign", fixed=True, amount=0.3, seed=seed)
        detail = F.normalize((x - blur(x)).clamp(-0.1, 0.1).flatten(1))
        found.append(sketch(x) @ sketch(x).T)
        true.append(detail @ detail.T)
        torch.testing.assert_close(agreement(sketch(x)), found[-1].fill_diagonal_(0).sum(1) / 39, rtol=1e-3, atol=1e-5)
    found, true = torch.stack(found)[:, pairs], torch.stack(true)[:, pairs]
    assert sketch(x).shape == (40, SKETCH) and 0.1 < true.mean() < 0.9
    assert found.mean().item() == pytest.approx(true.mean().item(), rel=0.2)
    assert (found - true).std() < 2 / SKETCH**0.5


@pytest.mark.parametrize("kind", ["sign", "gaussian", "stripes", "coarse", "waves"])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_fixed_pattern_is_shared_and_noise_of_the_same_kind_is_not(kind, channels):
    x = textured(128, channels=channels)
    own, fixed = (agreement(sketch(changed(x, kind, fixed=fixed))) for fixed in (False, True))
    assert (own > SAME).float().mean() < 0.15 and (fixed > SAME).all() and fixed.mean() > 5 * SAME


def test_only_those_that_carry_the_pattern_are_counted_among_them():
    x = textured(128)
    share = agreement(sketch(torch.cat([changed(x[:32], "sign", fixed=True), x[32:]])))
    whole = agreement(sketch(changed(x, "sign", fixed=True)))
    # Some of the others lie near it by chance.
    assert (share[:32] > SAME).all() and (share[32:] > SAME).float().mean() < 0.3 and share[32:].mean().abs() < SAME / 2
    assert share[:32].mean().item() == pytest.approx(whole.mean().item() / 4, rel=0.25)


def test_a_strong_edge_counts_for_no_more_than_a_weak_one():
    faint = 0.05 * textured(1)
    step = (torch.arange(32) >= 16).float().expand(1, 3, 32, 32)
    weak, strong, none = (sketch(faint + size * step) for size in (0.4, 0.9, 0.0))
    assert (weak - strong).norm() < 1e-3 < (weak - none).norm()


def test_what_clean_pictures_have_in_common_goes_by_its_directions():
    outline = F.interpolate(torch.rand(1, 1, 6, 6, generator=torch.Generator().manual_seed(8)).round(), 32)
    x = (0.3 * outline + 0.5 * textured(300, channels=1)).clamp(0, 1)
    usual = common(sketch(x))
    torch.testing.assert_close(usual @ usual.T, torch.eye(COMMON), rtol=0, atol=1e-5)

    def less(s: torch.Tensor) -> torch.Tensor:
        return s - s @ usual.T @ usual

    assert agreement(sketch(x)).mean() > 2 * SAME > 20 * agreement(less(sketch(x))).mean().abs()
    # Strong noise leaves little of the outlines, and no less of them is taken off for that.
    noisy = changed(x, "gaussian", fixed=False, amount=1.0)
    assert agreement(less(sketch(noisy))).mean().abs() < SAME / 4
    assert (agreement(less(sketch(changed(x, "sign", fixed=True, amount=0.9)))) > SAME).all()


def test_one_picture_a_plain_one_and_very_small_ones_give_numbers():
    assert agreement(sketch(textured(1))).tolist() == [0]
    assert (sketch(torch.full((2, 3, 16, 16), 0.5)).abs() < 1e-6).all()
    assert sketch(torch.rand(5, 1, 3, 3)).isfinite().all() and sketch(torch.rand(0, 3, 8, 8)).shape == (0, SKETCH)


def test_a_sketch_does_not_depend_on_the_batch():
    x = textured(7)
    torch.testing.assert_close(sketch(x)[2:3], sketch(x[2:3]))


def test_pixels_go_to_the_same_sums_in_every_release():
    """A detector holds directions of sketches: were these drawn otherwise, they would mean nothing."""
    order, signs = pattern._drawn(3 * 32 * 32)
    assert order[:6].tolist() == [2732, 2294, 1875, 2745, 3071, 1234] and signs[:6].tolist() == [1, 1, 1, 1, 1, 1]
