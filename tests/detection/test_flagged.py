"""Harmless pictures as they reach a campaign: what the model is asked about, fixed patterns among it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from redoubt.detection.benign import BENIGN
from redoubt.detection.flagged import flagged_measures
from redoubt.detection.witness import MEASURES


@pytest.mark.parametrize(("most", "patterns"), [(192, 48), (32, 9)])
def test_the_model_is_asked_about_every_change_and_about_many_fixed_patterns(most, patterns):
    """Flat pictures show what was added; nothing is flagged, so that the most suspicious eighth is asked about."""
    judged = []

    def judge(x):
        judged.append(x)
        return torch.full((len(x),), -1.0)

    x = torch.full((200, 1, 16, 16), 0.5)
    model = nn.Sequential(nn.Flatten(), nn.Linear(256, 3)).requires_grad_(False)
    found = flagged_measures(model, x, 65535, judge, 0.0, 0, most=most)
    noisy = [part for part, (kind, *_) in zip(judged, found, strict=True) if kind in ("sign", "stripes", "coarse")]
    fixed = [part for part in noisy if (part - part[:1]).abs().max() <= 1 / 65535]
    assert len(fixed) == patterns == sum(always for _, _, always in found)
    assert len({round(part.std().item(), 4) for part in fixed}) > patterns / 2   # of many sizes
    assert {kind for kind, *_ in found} == set(BENIGN) and all(one.shape[1] == MEASURES for one in found.values())
    usual = [len(one) for (*_, always), one in found.items() if not always]
    few = [len(one) for (*_, always), one in found.items() if always]
    assert set(usual) == {most // 8} and set(few) == {min(most, 96) // 8}
