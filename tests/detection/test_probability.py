"""The probability of an attack: fitted where the truth is known, and on the digits."""

from __future__ import annotations

import pytest
import torch

from redoubt.detection.probability import at_share, calibrate_probability, probability
from redoubt.detection.rehearsal import rehearse_all
from redoubt.detection.surrogates import fit_surrogates
from redoubt.errors import InvalidInput


def drawn(n: int, mean: float, seed: int) -> torch.Tensor:
    return mean + 1.5 * torch.randn(n, generator=torch.Generator().manual_seed(seed))


def test_two_normal_sides_give_the_true_odds():
    """Means -+2 and deviation 1.5: the log odds of an attack are 4 x / 2.25."""
    numbers = calibrate_probability(drawn(20_000, -2, 0), drawn(5_000, 2, 1), torch.ones(5_000))
    margin = torch.linspace(-3, 3, 25)
    torch.testing.assert_close(probability(margin, numbers), torch.sigmoid(margin * 4 / 2.25), atol=0.02, rtol=0)


def test_each_side_has_its_own_slope():
    generator, margin = torch.Generator().manual_seed(0), torch.linspace(-6, 6, 200_001)
    attacked = torch.rand(len(margin), generator=generator) < probability(margin, [0.7, 2.0, -1.0])
    below, above, _ = calibrate_probability(margin[~attacked], margin[attacked], torch.ones(int(attacked.sum())))
    assert (below, above) == (pytest.approx(0.7, abs=0.05), pytest.approx(2, abs=0.05))


def test_weights_count():
    attacked = torch.cat([drawn(1000, 2, 0), drawn(1000, -2, 1)])
    light = calibrate_probability(drawn(1000, -2, 2), attacked, torch.tensor([1.0, 1e-6]).repeat_interleave(1000))
    even = calibrate_probability(drawn(1000, -2, 2), attacked, torch.ones(2000))
    low = torch.tensor(-2.0)
    assert probability(low, light) < 0.1 < 0.25 < probability(low, even)


def test_sides_that_do_not_overlap_give_finite_numbers():
    numbers = calibrate_probability(torch.linspace(-9, -4, 50), torch.linspace(4, 9, 60), torch.ones(60))
    assert all(abs(number) < 100 for number in numbers) and min(numbers[:2]) >= 0
    said = probability(torch.linspace(-50, 50, 101), numbers)
    assert said.isfinite().all() and (said.diff() >= 0).all() and said[0] < 0.05 and said[-1] > 0.95


def test_a_score_that_says_nothing_says_one_half():
    numbers = calibrate_probability(drawn(5000, 0, 0), drawn(5000, 0, 1), torch.ones(5000))
    assert (probability(drawn(100, 0, 2), numbers) - 0.5).abs().max() < 0.1


def test_another_share_is_bayes_rule():
    half = torch.tensor([0.0, 0.5, 0.9, 1.0])
    torch.testing.assert_close(at_share(half, 0.5), half)
    torch.testing.assert_close(at_share(half, 0.01), torch.tensor([0.0, 0.01, 0.009 / 0.108, 1.0]))
    for share in (0, 1, -0.1):
        with pytest.raises(InvalidInput, match="between 0 and 1"):
            at_share(half, share)


def test_what_is_said_of_the_digits_comes_true(digits, digits_model, digits_detector):
    """Half of the traffic is attacked: so much is said on average, and of what seems likely as much is attacked."""
    x, y = digits.tensors("test")
    settings = digits_detector.settings
    plans = tuple((norm, blocks, (settings.lowest[at], settings.highest[at]))
                  for at, (norm, blocks) in enumerate((("Linf", 60), ("L2", 20))))
    surrogates = fit_surrogates(digits_model, digits.tensors("detector_fit")[0], seed=9)
    mix = rehearse_all(digits_model, surrogates, x, y, plans=plans, size=32, levels=16, asks=False, seed=9).examples()
    clean, attacked = digits_detector.assess(x), digits_detector.assess(mix.x.float())
    said = torch.cat([clean.probability, attacked.probability])
    mass = torch.cat([torch.full((len(x),), 0.5 / len(x)), mix.weight / mix.weight.sum() / 2])
    assert mass @ said == pytest.approx(0.5, abs=0.05)
    for low, high in ((0, 0.2), (0.2, 0.8), (0.8, 1.01)):
        inside = (said >= low) & (said < high)
        seen = mass[len(x):][inside[len(x):]].sum() / mass[inside].sum()
        assert seen == pytest.approx((mass[inside] @ said[inside] / mass[inside].sum()).item(), abs=0.15)
    assert (clean.probability[clean.score.argsort()].diff() >= -1e-6).all()
