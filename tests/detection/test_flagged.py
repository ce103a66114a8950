"""Harmless pictures as they reach a campaign: what the model is asked about, fixed patterns among it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from redoubt.detection.benign import BENIGN
from redoubt.detection.flagged import flagged_measures
from redoubt.detection.witness import MEASURES


@pytest.mark.parametrize(("most", "patterns"), [(192, 88), (32, 16)])
def test_the_model_is_asked_about_every_change_and_about_many_fixed_patterns(most, patterns):
    """Flat pictures show what was added; nothing is flagged, so that the most suspicious sixth is asked about."""
    judged = []

    def judge(x):
        judged.append(x)
        return torch.full((len(x),), -1.0)

    x, level = torch.full((200, 1, 16, 16), 0.5), 1 / 65535
    model = nn.Sequential(nn.Flatten(), nn.Linear(256, 3)).requires_grad_(False)
    found = flagged_measures(model, x, 65535, judge, 0.0, 0, most=most)
    fixed = {key: part for key, part in zip(found, judged, strict=True) if key[2]}
    assert len(fixed) == patterns and {kind for kind, *_ in found} == {*BENIGN, "waves"}
    assert all((part - part[:1]).abs().max() <= level for part in fixed.values())
    same = {key[0] for key, part in zip(found, judged, strict=True)
            if not key[2] and (part - part[:1]).abs().max() <= level}
    assert same <= {"clean", "float", "brightness", "contrast", "blur", "jpeg", "steps", "gamma"}
    assert all(one.shape[1] == MEASURES for one in found.values())
    assert {len(one) for key, one in found.items() if not key[2]} == {most // 6}
    assert {len(one) for key, one in found.items() if key[2]} == {min(most, 96) // 6}


def test_no_fixed_pattern_is_another_in_another_size():
    judged = []

    def judge(x):
        judged.append(x[0].flatten() - 0.5)
        return x[:, 0, 0, 0]

    x = torch.full((96, 1, 16, 16), 0.5)
    model = nn.Sequential(nn.Flatten(), nn.Linear(256, 3)).requires_grad_(False)
    found = flagged_measures(model, x, 65535, judge, 9.0, 0, most=96)
    for kind in ("sign", "stripes", "coarse"):
        drawn = torch.stack([one for key, one in zip(found, judged, strict=True) if key[0] == kind and key[2]])
        drawn = drawn / drawn.norm(dim=1, keepdim=True)
        assert ((drawn @ drawn.T).abs() > 0.9).sum() == len(drawn) > 1   # each like itself alone


def test_few_pictures_are_not_repeated_under_a_fixed_pattern():
    sizes = []
    x = torch.full((40, 1, 16, 16), 0.5)
    model = nn.Sequential(nn.Flatten(), nn.Linear(256, 3)).requires_grad_(False)
    found = flagged_measures(model, x, 255, lambda x: sizes.append(len(x)) or x[:, 0, 0, 0], 9.0, 0, most=96)
    assert {(key[2], size) for key, size in zip(found, sizes, strict=True)} == {(False, 96), (True, 40)}
