"""What the scorer learns from, pictures turned in every way and none mixed with another, and its second look."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from redoubt.detection.networks import CERTAINTY, Scorer
from redoubt.detection.scoring import DOUBTED, _turned, conformal_threshold, doubt, score


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
    looked = []
    first.layers[0].register_forward_hook(lambda *_: looked.append(1))
    logit = first(x, sure)
    assert len(looked) == 1
    some, _, _ = _scorer(logit.median().item())
    doubted, changed = logit > logit.median(), some(x, sure) != logit
    assert doubted.any() and torch.equal(changed, doubted)


@pytest.mark.parametrize(("fpr", "share"), [(None, DOUBTED), (0.01, DOUBTED), (0.1, DOUBTED), (0.3, 0.6)])
def test_a_fifth_of_clean_pictures_is_doubted_and_twice_those_that_may_be_flagged(digits, digits_detector, fpr, share):
    x, _ = digits.tensors("calibration")
    scorer, model = copy.deepcopy(digits_detector.scorer), digits_detector.model
    if fpr is not None:   # else as fitted
        scorer.doubt.fill_(math.inf)
        doubt(scorer, model, x, fpr)
    looked = score(scorer, model, x)
    scorer.doubt.fill_(math.inf)
    assert abs((score(scorer, model, x) != looked).float().mean().item() - share) < 0.02


def test_the_threshold_is_set_on_second_looks(digits, digits_detector):
    x, _ = digits.tensors("calibration")
    threshold, _ = conformal_threshold(score(digits_detector.scorer, digits_detector.model, x), 0.01)
    assert threshold == pytest.approx(digits_detector.settings.threshold, abs=1e-5)
    once = copy.deepcopy(digits_detector.scorer)
    once.doubt.fill_(math.inf)
    assert conformal_threshold(score(once, digits_detector.model, x), 0.01)[0] != pytest.approx(threshold, abs=1e-3)


def test_many_doubtful_pictures_take_no_more_memory_at_once_and_any_shape_will_do():
    again, x, sure = _scorer(-math.inf)
    many = torch.cat([x, x, x, x])[:, :, :, :10], torch.cat([sure] * 4)
    held = []
    hook = again.layers[0].register_forward_hook(lambda layer, given, out: held.append(len(given[0])))
    logit = again(*many)
    hook.remove()
    assert held[0] == len(logit) == 160 and max(held[1:]) <= 64 and sum(held[1:]) == 3 * 160
    assert torch.allclose(again(many[0][:40], sure), logit[120:], atol=1e-6)
