"""Harmless pictures as they reach a campaign: what the model is asked about, fixed patterns among it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from redoubt.detection.benign import BENIGN
from redoubt.detection.flagged import questions
from redoubt.detection.measures import MEASURES


def asked(n: int, most: int) -> tuple[dict, list[torch.Tensor]]:
    """What is measured of n flat pictures, which show what was added and are not flagged; and all that was judged."""
    judged = []

    def judge(x):
        judged.append(x)
        return torch.full((len(x),), -1.0)

    model = nn.Sequential(nn.Flatten(), nn.Linear(256, 3)).requires_grad_(False)
    asked = questions(model, torch.full((n, 1, 16, 16), 0.5), 65535, judge, 0.0, 0, most=most)
    return dict(ask() for ask in asked), judged


@pytest.mark.parametrize(("most", "patterns"), [(96, 88), (32, 30)])
def test_the_model_is_asked_about_every_change_and_about_many_fixed_patterns(most, patterns):
    """Nothing is flagged, so that the most suspicious sixth is asked about."""
    (found, judged), level = asked(200, most), 1 / 65535
    alike = {key: bool((part - part[:1]).abs().max() <= level) for key, part in zip(found, judged, strict=True)}
    fixed = [key for key in found if key[2]]
    assert len(fixed) == patterns and {kind for kind, *_ in found} == {*BENIGN, "waves"}
    assert all(alike[key] for key in fixed)
    usual = {kind for (kind, _, always), same in alike.items() if same and not always}
    assert usual <= {"clean", "float", "brightness", "contrast", "blur", "jpeg", "steps", "gamma"}
    assert all(one.shape[1] == MEASURES for one in found.values())
    assert {len(one) for key, one in found.items() if not key[2]} == {most // 6}
    assert {len(one) for key, one in found.items() if key[2]} == {min(most, 96) // 6}


@pytest.mark.parametrize("kind", ["sign", "stripes", "coarse"])
def test_no_fixed_pattern_is_another_in_another_size(kind):
    found, judged = asked(96, 96)
    drawn = torch.stack([part[0].flatten() - 0.5 for key, part in zip(found, judged, strict=True)
                         if key[0] == kind and key[2]])
    drawn = drawn / drawn.norm(dim=1, keepdim=True)
    assert ((drawn @ drawn.T).abs() > 0.9).sum() == len(drawn) > 1   # each like itself alone


def test_few_pictures_are_not_repeated_under_a_fixed_pattern():
    found, judged = asked(40, 96)
    assert {(key[2], len(part)) for key, part in zip(found, judged, strict=True)} == {(False, 96), (True, 40)}


@pytest.mark.parametrize("kind", ["brightness", "gamma"])
def test_what_goes_either_way_is_tried_in_both(kind):
    found, judged = asked(40, 96)
    means = [part.mean().item() for key, part in zip(found, judged, strict=True) if key[0] == kind]
    assert min(means) < 0.35 and max(means) > 0.65
