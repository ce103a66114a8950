"""What is the same on many pictures is told from what is each one's own."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from redoubt.detection.benign import benign, blur
from redoubt.detection.networks import SKETCH
from redoubt.detection.pattern import SAME, alike, sketch


def textured(n: int, seed: int = 0, channels: int = 3) -> torch.Tensor:
    """Pictures with detail of their own."""
    x = torch.rand(n, channels, 8, 8, generator=torch.Generator().manual_seed(seed))
    return 0.3 + 0.4 * F.interpolate(x, 32, mode="bicubic").clamp(0, 1)


def changed(x: torch.Tensor, kind: str, *, fixed: bool, amount: float = 0.6, seed: int = 3) -> torch.Tensor:
    return benign(kind, x, levels=255, generator=torch.Generator().manual_seed(seed), amount=amount, fixed=fixed)


def test_inner_products_are_cosines_of_detail():
    pairs, found, true = ~torch.eye(40, dtype=torch.bool), [], []
    for seed in range(20):   # each sum of pixels is right on average
        x = changed(textured(40, seed=seed), "sign", fixed=True, amount=0.3, seed=seed)
        detail = F.normalize((x - blur(x)).clamp(-0.1, 0.1).flatten(1))
        found.append(sketch(x) @ sketch(x).T)
        true.append(detail @ detail.T)
        assert alike(sketch(x)) == pytest.approx(found[-1][pairs].mean().item(), abs=1e-5)
    found, true = torch.stack(found)[:, pairs], torch.stack(true)[:, pairs]
    assert sketch(x).shape == (40, SKETCH) and 0.1 < true.mean() < 0.9
    assert found.mean().item() == pytest.approx(true.mean().item(), rel=0.2)
    assert (found - true).std() < 2 / SKETCH**0.5


@pytest.mark.parametrize("kind", ["sign", "gaussian", "stripes", "coarse", "waves"])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_fixed_pattern_is_shared_and_noise_of_the_same_kind_is_not(kind, channels):
    x = textured(64, channels=channels)
    own, fixed = (alike(sketch(changed(x, kind, fixed=fixed)) - sketch(x).mean(0)) for fixed in (False, True))
    assert own < SAME < 5 * SAME < fixed


def test_a_part_that_shares_a_pattern_counts_by_its_square():
    x, usual = textured(128), sketch(textured(128, seed=1)).mean(0)
    noisy = changed(x, "sign", fixed=True)
    whole = alike(sketch(noisy) - usual)
    half = alike(sketch(torch.cat([noisy[:64], x[64:]])) - usual)
    assert whole > 0.5 and half == pytest.approx(whole / 4, rel=0.2)


def test_one_picture_a_plain_one_and_very_small_ones_give_numbers():
    assert alike(sketch(textured(1))) == 0
    assert (sketch(torch.full((2, 3, 16, 16), 0.5)).abs() < 1e-6).all()
    assert sketch(torch.rand(5, 1, 3, 3)).isfinite().all() and sketch(torch.rand(0, 3, 8, 8)).shape == (0, SKETCH)


def test_a_sketch_does_not_depend_on_the_batch():
    x = textured(7)
    torch.testing.assert_close(sketch(x)[2:3], sketch(x[2:3]))
