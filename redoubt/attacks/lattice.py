"""Putting adversarial inputs on the lattice of values that real data has: an uploaded picture holds whole levels."""

from __future__ import annotations

from torch import Tensor


def on_lattice(x: Tensor, levels: int = 255) -> Tensor:
    """Round to the nearest of `levels` + 1 values in [0, 1]: 255 for 8-bit pictures, 16 for the digits.

    The result may leave the threat model by half a level at most, as it does for any attacker who must send a picture.
    """
    return (x * levels).round() / levels
