"""Bounds of a strength: fine and coarse changes by their own errors, the worst kind at that."""

from __future__ import annotations

import math

import pytest
import torch

from redoubt.detection.bounds import (
    COARSE,
    FINE,
    LEVELS,
    SINGLE,
    SIZES,
    SURELY_FINE,
    calibrated,
    in_whole_levels,
    of_singles,
    scaled,
    scaled_error,
)

SURE, UNSURE = SURELY_FINE - 1, SURELY_FINE + 1


def table_of(error, coarse, kind):
    """`calibrated`, of errors in units of a spread so wide that floors do not matter."""
    return calibrated(100.0 * error, torch.full_like(error, 100.0), coarse, kind)


def test_fine_and_coarse_changes_have_bounds_of_their_own():
    generator = torch.Generator().manual_seed(1)
    coarse = torch.tensor([SURE, UNSURE]).repeat(4000)
    error = torch.randn(8000, generator=generator) * torch.tensor([1.0, 3.0]).repeat(4000)
    table = table_of(error, coarse, torch.zeros(8000, dtype=torch.long))
    assert table.shape == (2, len(LEVELS))
    assert table[FINE].tolist() == pytest.approx([-2.33, 2.33], rel=0.1)
    assert table[COARSE].tolist() == pytest.approx([-6.98, 6.98], rel=0.1)


def test_the_worst_kind_sets_the_bound():
    generator = torch.Generator().manual_seed(2)
    kind = torch.randint(3, (9000,), generator=generator)
    error = torch.randn(9000, generator=generator) + torch.tensor([-1.0, 0.0, 2.0])[kind]
    table = table_of(error, torch.tensor([SURE, UNSURE]).repeat(4500), kind)
    for own in table:
        assert own.tolist() == pytest.approx([-3.33, 4.33], rel=0.06)


def test_the_interval_of_a_single_input_holds_over_all_kinds_together():
    generator = torch.Generator().manual_seed(7)
    error = torch.randn(9000, generator=generator) + torch.tensor([-1.0, 0.0, 2.0]).repeat(3000)
    error[4500:] /= 2
    coarse, spread = torch.tensor([SURE, UNSURE]).repeat_interleave(4500), torch.full((9000,), 100.0)
    table = of_singles(100.0 * error, spread, coarse)
    for grain, own in enumerate((error[:4500], error[4500:])):
        held = (own.unsqueeze(1) <= table[grain]).float().mean(0)
        assert held.tolist() == pytest.approx(list(SINGLE), abs=0.003)
    few = of_singles(100.0 * error[4000:], spread[4000:], coarse[4000:].flip(0))
    assert few[FINE].tolist() != few[COARSE].tolist()
    few = of_singles(100.0 * error[4200:], spread[4200:], coarse[4200:])   # 300 of fine ones
    assert few[FINE].tolist() == few[COARSE].tolist()


def test_coarse_changes_never_have_the_narrower_bounds():
    generator = torch.Generator().manual_seed(4)
    coarse = torch.tensor([SURE, UNSURE]).repeat(4000)
    error = torch.randn(8000, generator=generator) * torch.tensor([3.0, 1.0]).repeat(4000)
    table, kind = table_of(error, coarse, torch.zeros(8000, dtype=torch.long)), torch.zeros(8000, dtype=torch.long)
    every = table_of(error, torch.full((8000,), SURE), kind)[FINE]
    assert table[COARSE].tolist() == pytest.approx(every.tolist(), abs=1e-5)


def test_a_few_that_strayed_set_no_bound():
    generator = torch.Generator().manual_seed(5)
    error, kind = torch.randn(8000, generator=generator), torch.zeros(8000, dtype=torch.long)
    error[:6], kind[:6] = 30.0, 1
    table = table_of(error, torch.tensor([SURE, UNSURE]).repeat(4000), kind)
    assert table[FINE, -1].item() == pytest.approx(2.33, rel=0.1)


@pytest.mark.parametrize("logit", [SURE, UNSURE])
def test_too_few_of_one_grain_borrow_from_all(logit):
    generator = torch.Generator().manual_seed(3)
    coarse = torch.full((900,), logit)
    coarse[:100] = SURE + UNSURE - logit
    table = table_of(torch.randn(900, generator=generator), coarse, torch.zeros(900, dtype=torch.long))
    assert bool(torch.isfinite(table).all()) and torch.equal(table[FINE], table[COARSE])


def test_bounds_hold_as_often_as_they_say_whether_the_spread_is_right_or_not():
    """Of campaigns that err by what was said, and of as many that err by 5 % whatever was said."""
    generator = torch.Generator().manual_seed(6)
    said = torch.rand(40_000, generator=generator) * 0.2
    right = torch.arange(40_000) % 2 == 0
    error = torch.randn(40_000, generator=generator) * torch.where(right, said, 0.05)
    coarse, kind = torch.full((40_000,), SURE), torch.zeros(40_000, dtype=torch.long)
    table = calibrated(error[:20_000], said[:20_000], coarse[:20_000], kind[:20_000])
    reach = scaled_error(table.expand(len(SIZES), -1, -1), coarse, 64)[20_000:] * scaled(said[20_000:])
    held = (error[20_000:].unsqueeze(1) <= reach).float().mean(0)
    assert held.tolist() == pytest.approx(list(LEVELS), abs=0.006)


def test_assurance_narrows_the_upper_bound_less_than_the_lower():
    sure, unsure = scaled(torch.tensor([0.0, 0.06]))
    below, above = (unsure / sure).tolist()
    assert below > 1.5 * above > 1.5


def test_between_two_sizes_lies_the_value_between():
    table = torch.arange(float(len(SIZES))).view(-1, 1, 1) + torch.tensor([0.0, 10.0]).view(1, 2, 1)
    table = table.expand(-1, -1, len(LEVELS))

    def read(logits, n):
        return scaled_error(table, torch.tensor(logits), n)[..., 0].tolist()

    assert read([SURE, UNSURE], SIZES[1]) == pytest.approx([1, 11])
    assert read([SURE], round(math.sqrt(SIZES[2] * SIZES[3]))) == pytest.approx([2.5], abs=0.05)
    assert read(UNSURE, 1000) == pytest.approx(13) and read(SURE, 1) == pytest.approx(0)


@pytest.mark.parametrize(("low", "estimate", "high", "expected"), [
    (3.1, 3.9, 4.8, (3.1, 3.9, 4.0)),      # five levels are not in it
    (3.1, 4.6, 4.9, (3.1, 4.0, 4.0)),      # the estimate follows
    (3.1, 3.9, 3.99999, (3.1, 3.9, 4.0)),  # a hair below four levels is four, as float32 has it
    (4.0, 4.0, 4.0, (4.0, 4.0, 4.0)),
    (4.2, 4.5, 4.9, (4.2, 4.5, 4.9)),      # no whole number: left alone
    (0.4, 0.6, 0.9, (0.4, 0.6, 0.9)),      # what arrived is one level at least
])
def test_an_attack_in_whole_levels_has_an_upper_bound_in_whole_levels(low, estimate, high, expected):
    found = in_whole_levels(low / 255, estimate / 255, high / 255, 255)
    assert found == pytest.approx(tuple(value / 255 for value in expected), rel=1e-5)
    assert found[0] <= found[1] <= found[2]


def test_inputs_in_fractions_take_the_whole_bound_back_by_and_by():
    shares = (1, 0.9, 0.87, 0.75, 0.6, 0)
    highs = [in_whole_levels(3.1 / 255, 3.9 / 255, 4.8 / 255, 255, share)[2] * 255 for share in shares]
    assert highs == pytest.approx([4.0, 4.0, 4.08, 4.4, 4.8, 4.8])
