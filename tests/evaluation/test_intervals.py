"""Wilson intervals beside published and simulated ones."""

import numpy as np
import pytest

from redoubt.errors import InvalidInput
from redoubt.evaluation.intervals import wilson


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [   # Newcombe 1998, Statistics in Medicine 17, table I, method 3
        (81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718),
    ],
)
def test_published_intervals(successes, n, low, high):
    assert wilson(successes, n) == pytest.approx((low, high), abs=5e-5)
    assert wilson(n - successes, n) == pytest.approx((1 - high, 1 - low), abs=5e-5)


@pytest.mark.parametrize("share", [0.02, 0.5, 0.93])
def test_about_95_of_100_intervals_hold_the_truth(share):
    counts = np.random.default_rng(0).binomial(300, share, 2000)
    held = [low <= share <= high for low, high in (wilson(int(c), 300) for c in counts)]
    assert np.mean(held) == pytest.approx(0.95, abs=0.025)


@pytest.mark.parametrize(("successes", "n"), [(0, 0), (-1, 5), (6, 5)])
def test_impossible_counts_are_refused(successes, n):
    with pytest.raises(InvalidInput, match="n >= 1"):
        wilson(successes, n)
