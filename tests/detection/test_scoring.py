"""What the scorer learns from, pictures turned in every way and none mixed with another, and its second look."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from redoubt.detection.networks import CERTAINTY, Scorer
from redoubt.detection.scoring import DOUBTED, _turned, score


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


def _scorer(doubt: float) -> tuple[Scorer, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    scorer = Scorer(3).eval().requires_grad_(False)
    scorer.doubt.fill_(doubt)
    return scorer, torch.rand(40, 3, 12, 12), torch.rand(40, CERTAINTY)


def test_a_second_look_gives_the_same_answer_from_all_four_sides():
    first, x, sure = _scorer(math.inf)
    again, _, _ = _scorer(-math.inf)
    sides = x, x.flip((2, 3)), x.transpose(2, 3), x.flip((2, 3)).transpose(2, 3)
    looks = torch.stack([first(side, sure) for side in sides])
    assert (looks.std(0) > 1e-4).all()
    for side in sides:
        assert torch.allclose(again(side, sure), looks.mean(0), atol=1e-6)


def test_only_what_is_doubted_is_looked_at_again():
    first, x, sure = _scorer(math.inf)
    logit = first(x, sure)
    some, _, _ = _scorer(logit.median().item())
    doubted, changed = logit > logit.median(), some(x, sure) != logit
    assert doubted.any() and torch.equal(changed, doubted)


def test_a_fifth_of_clean_pictures_is_doubted(digits, digits_detector):
    x, _ = digits.tensors("calibration")
    looked = score(digits_detector.scorer, digits_detector.model, x)
    once = copy.deepcopy(digits_detector.scorer)
    once.doubt.fill_(math.inf)
    again = (score(once, digits_detector.model, x) != looked).float().mean().item()
    assert abs(again - DOUBTED) < 0.02
