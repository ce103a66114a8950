"""Putting adversarial inputs on the lattice of values that real data has: an uploaded picture holds whole levels."""

from __future__ import annotations

from torch import Tensor

_NEAR = 0.02   # of a level: half of 1e-4 is 0.013 of one in 255


def on_lattice(x: Tensor, levels: int = 255) -> Tensor:
    """Round to the nearest of `levels` + 1 values in [0, 1]: 255 for 8-bit pictures, 16 for the digits.

    The result may leave the threat model by half a level at most, as it does for any attacker who must send a picture.
    """
    return (x * levels).round() / levels


def holds_whole_levels(x: Tensor, levels: int = 255) -> Tensor:
    """Which pictures [N, ...] lie on that lattice, as bool [N]; a value sent with four decimals still does."""
    scaled = (x * levels).flatten(1)
    return ((scaled - scaled.round()).abs() < _NEAR).all(1)
