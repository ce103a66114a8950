"""Confidence intervals for a share of successes."""

from __future__ import annotations

from math import sqrt

from redoubt.errors import InvalidInput

Z95 = 1.959963984540054   # the normal distribution's 97.5 % point


def wilson(successes: int, n: int, *, z: float = Z95) -> tuple[float, float]:
    """The Wilson score interval of a share (Wilson 1927); unlike the normal one it holds near 0 and 1.

    Raises:
        InvalidInput: for n below 1, or successes outside 0 to n.
    """
    if n < 1 or not 0 <= successes <= n:
        raise InvalidInput(f"an interval needs n >= 1 and 0 <= successes <= n, not {successes} of {n}")
    share, square = successes / n, z * z
    centre = (share + square / (2 * n)) / (1 + square / n)
    half = z / (1 + square / n) * sqrt(share * (1 - share) / n + square / (4 * n * n))
    low = 0.0 if successes == 0 else max(0.0, centre - half)   # exact at the ends, where rounding would leave a crumb
    high = 1.0 if successes == n else min(1.0, centre + half)
    return low, high
