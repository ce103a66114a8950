"""Bounds of a strength: fine and coarse changes by their own errors, the worst kind at that."""

from __future__ import annotations

import math

import pytest
import torch

from redoubt.detection.bounds import COARSE, FINE, LEVELS, SIZES, SURELY_FINE, calibrated, scaled_error

SURE, UNSURE = SURELY_FINE - 1, SURELY_FINE + 1


def test_fine_and_coarse_changes_have_bounds_of_their_own():
    generator = torch.Generator().manual_seed(1)
    coarse = torch.tensor([SURE, UNSURE]).repeat(4000)
    error = torch.randn(8000, generator=generator) * torch.tensor([1.0, 3.0]).repeat(4000)
    table = calibrated(error, coarse, torch.zeros(8000, dtype=torch.long))
    assert table.shape == (2, len(LEVELS))
    assert table[FINE].tolist() == pytest.approx([-2.33, -1.64, 1.64, 2.33], rel=0.1)
    assert table[COARSE].tolist() == pytest.approx([-6.98, -4.93, 4.93, 6.98], rel=0.1)


def test_the_worst_kind_sets_the_bound():
    generator = torch.Generator().manual_seed(2)
    kind = torch.randint(3, (9000,), generator=generator)
    error = torch.randn(9000, generator=generator) + torch.tensor([-1.0, 0.0, 2.0])[kind]
    table = calibrated(error, torch.tensor([SURE, UNSURE]).repeat(4500), kind)
    for own in table:
        assert own.tolist() == pytest.approx([-3.33, -2.64, 3.64, 4.33], rel=0.06)


def test_coarse_changes_never_have_the_narrower_bounds():
    generator = torch.Generator().manual_seed(4)
    coarse = torch.tensor([SURE, UNSURE]).repeat(4000)
    error = torch.randn(8000, generator=generator) * torch.tensor([3.0, 1.0]).repeat(4000)
    table, kind = calibrated(error, coarse, torch.zeros(8000, dtype=torch.long)), torch.zeros(8000, dtype=torch.long)
    every = calibrated(error, torch.full((8000,), SURE), kind)[FINE]
    assert table[COARSE].tolist() == pytest.approx(every.tolist(), abs=1e-5)


def test_a_few_that_strayed_set_no_bound():
    generator = torch.Generator().manual_seed(5)
    error, kind = torch.randn(8000, generator=generator), torch.zeros(8000, dtype=torch.long)
    error[:6], kind[:6] = 30.0, 1
    table = calibrated(error, torch.tensor([SURE, UNSURE]).repeat(4000), kind)
    assert table[FINE, -1].item() == pytest.approx(2.33, rel=0.1)


@pytest.mark.parametrize("logit", [SURE, UNSURE])
def test_too_few_of_one_grain_borrow_from_all(logit):
    generator = torch.Generator().manual_seed(3)
    coarse = torch.full((900,), logit)
    coarse[:100] = SURE + UNSURE - logit
    table = calibrated(torch.randn(900, generator=generator), coarse, torch.zeros(900, dtype=torch.long))
    assert bool(torch.isfinite(table).all()) and torch.equal(table[FINE], table[COARSE])


def test_between_two_sizes_lies_the_value_between():
    table = torch.arange(float(len(SIZES))).view(-1, 1, 1) + torch.tensor([0.0, 10.0]).view(1, 2, 1)
    table = table.expand(-1, -1, len(LEVELS))

    def read(logits, n):
        return scaled_error(table, torch.tensor(logits), n)[..., 0].tolist()

    assert read([SURE, UNSURE], SIZES[1]) == pytest.approx([1, 11])
    assert read([SURE], round(math.sqrt(SIZES[2] * SIZES[3]))) == pytest.approx([2.5], abs=0.05)
    assert read(UNSURE, 1000) == pytest.approx(13) and read(SURE, 1) == pytest.approx(0)
