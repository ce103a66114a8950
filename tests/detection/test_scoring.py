"""What the scorer learns from: pictures turned in every way, and none mixed with another."""

from __future__ import annotations

import pytest
import torch

from redoubt.detection.scoring import _turned


@pytest.mark.parametrize(("channels", "ways"), [(1, 8), (3, 48)])
def test_pictures_are_turned_in_every_way_and_stay_their_own(channels, ways):
    x = torch.arange(2 * channels * 9.0).view(2, channels, 3, 3)
    generator, seen = torch.Generator().manual_seed(0), set()
    for _ in range(20 * ways):
        out = _turned(x, generator)
        assert out.shape == x.shape
        assert torch.equal(out.flatten(1).sort(1).values, x.flatten(1))           # each picture's own pixels
        assert torch.equal((out[1] - out[0]), torch.full_like(out[0], channels * 9))   # all are turned alike
        seen.add(tuple(out[0].flatten().tolist()))
    assert len(seen) == ways
