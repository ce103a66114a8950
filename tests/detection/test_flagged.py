"""Harmless pictures as they reach a campaign: what the model is asked about, fixed patterns among it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from redoubt.detection import flagged
from redoubt.detection.benign import BENIGN, NOISE
from redoubt.detection.flagged import planned, questions
from redoubt.detection.measures import MEASURES


def asked(n: int, most: int) -> tuple[dict, dict]:
    """What is measured of n flat pictures, which show what was added and are not flagged; and what was judged. By what
    was done to them."""
    found, judged, parts = {}, {}, []

    def judge(x):
        parts.append(x)
        return torch.full((len(x),), -1.0)

    model = nn.Sequential(nn.Flatten(), nn.Linear(256, 3)).requires_grad_(False)
    for ask in questions(model, torch.full((n, 1, 16, 16), 0.5), planned(most), 65535, judge, 0.0, 0):
        key, found_here = ask()
        found[key], judged[key] = found_here, torch.cat(parts)
        assert len(found_here[0]) == len(found_here[1])
        parts.clear()
    return found, judged


@pytest.mark.parametrize(("most", "patterns"), [(96, 88), (32, 30)])
def test_the_model_is_asked_about_every_change_and_about_many_fixed_patterns(most, patterns):
    """Nothing is flagged, so that the most suspicious are asked about."""
    (found, judged), level = asked(200, most), 1 / 65535
    alike = {key: bool((part - part[:1]).abs().max() <= level) for key, part in judged.items()}
    fixed = [key for key in found if key[2]]
    assert len(fixed) == patterns and {kind for kind, *_ in found} == {*BENIGN, "shading", "waves"}
    assert all(alike[key] for key in fixed)
    usual = {kind for (kind, _, always), same in alike.items() if same and not always}
    assert usual <= {"clean", "float", "brightness", "contrast", "blur", "jpeg", "steps", "gamma"}
    assert all(one.shape[1] == MEASURES for one, _ in found.values())
    assert {len(one) for one, _ in found.values()} == {most // 2}


@pytest.mark.parametrize("kind", ["sign", "stripes", "coarse"])
def test_no_fixed_pattern_is_another_in_another_size(kind):
    _, judged = asked(96, 96)
    drawn = torch.stack([part[0].flatten() - 0.5 for key, part in judged.items()
                         if key[0] == kind and key[2]])
    drawn = drawn / drawn.norm(dim=1, keepdim=True)
    assert ((drawn @ drawn.T).abs() > 0.9).sum() == len(drawn) > 1   # each like itself alone


def test_few_pictures_are_repeated_under_noise_alone_that_is_no_pattern():
    _, judged = asked(40, 96)
    assert {len(part) for key, part in judged.items() if key[2] or key[0] in ("clean", "jpeg", "gamma")} == {40}
    assert {len(part) for key, part in judged.items() if not key[2] and key[0] in NOISE} == {288}


@pytest.mark.parametrize("kind", ["brightness", "gamma"])
def test_what_goes_either_way_is_tried_in_both(kind):
    _, judged = asked(40, 96)
    means = [part.mean().item() for key, part in judged.items() if key[0] == kind]
    assert min(means) < 0.35 and max(means) > 0.65


def test_of_large_pictures_fewer_are_changed_at_a_time():
    judged = []
    x = torch.rand(96, 3, 128, 128, generator=torch.Generator().manual_seed(0))

    def judge(part):
        judged.append(len(part))
        return torch.full((len(part),), -1.0)

    model = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 3)).requires_grad_(False)
    plan = [line for line in planned(32) if line[0] == "gaussian"][:1] * 2
    found = [ask() for ask in questions(model, x, plan, 255, judge, 0.0, 0)]
    assert judged == [32, 32, 32] * 2 and [len(part) for _, (part, _) in found] == [16, 16]
    judged.clear()
    larger = torch.rand(20, 3, 512, 512, generator=torch.Generator().manual_seed(0))
    next(questions(model, larger, plan, 255, judge, 0.0, 0))()
    assert judged == [32], "2**23 values are ten of these pictures: twice as many as are asked about have to do"


def test_more_patterns_are_learned_from_in_as_many_questions():
    usual, spread = planned(96), planned(96, spread=4)
    assert sum(n for *_, n in usual) == sum(n for *_, n in spread) == 7488
    fixed = [[line for line in plan if line[2]] for plan in (usual, spread)]
    assert [len(one) for one in fixed] == [88, 352]
    assert len({(kind, amount) for kind, amount, *_ in fixed[1]}) == 352
    assert min(amount for _, amount, *_ in fixed[1]) > 0.3 and max(amount for _, amount, *_ in fixed[1]) == 1.3


def changed(plan: list, x: torch.Tensor, look: int, seed: int = 5) -> list[torch.Tensor]:
    """What the questions of a plan put to the scorer."""
    model, out = nn.Sequential(nn.Flatten(), nn.Linear(256, 3)).requires_grad_(False), []
    for ask in questions(model, x, plan, 65535, lambda part: out.append(part) or torch.ones(len(part)), 0.0,
                         seed, look=look):
        ask()
    return out


def test_a_further_look_has_the_same_patterns_on_other_pictures_and_other_noise():
    plan = [line for line in planned(96) if line[0] in ("sign", "coarse", "stripes", "shading", "waves")]
    flat = torch.full((600, 1, 16, 16), 0.5)
    for line, *looks in zip(plan, changed(plan, flat, 0), changed(plan, flat, 1), strict=True):
        same = [(one[0] - two[0]).abs().max() < 1e-4 for one, two in ((looks[0], looks[1]), (looks[0], looks[0][1:]))]
        assert same == [line[2]] * 2, line
    shades = torch.linspace(0, 1, 600).view(-1, 1, 1, 1).expand(-1, 1, 16, 16)
    first, second = (changed([("clean", 0.3, False, 48)], shades, look)[0].mean((1, 2, 3)) for look in (0, 1))
    assert not torch.equal(first, second)
    assert not torch.equal(changed(plan[-1:], flat, 0, seed=6)[0], changed(plan[-1:], flat, 0)[0])
    alone = changed(plan[-1:], flat, 0)[0]
    assert torch.equal(alone, changed(plan, flat, 0)[-1]), "a line means the same whatever stands beside it"


@pytest.mark.parametrize(("line", "judged"), [(0.4, 96), (0.9, 288), (2.0, 288)])
def test_the_first_flagged_ones_are_asked_about_and_few_more_judged_than_needed(monkeypatch, line, judged):
    """Serving asks about the first, too, not about those that are flagged most surely."""
    sent, told = [], []
    monkeypatch.setattr(flagged, "measured", lambda model, x: sent.append(x) or torch.zeros(len(x), MEASURES))

    def judge(x):
        told.append(x)
        return x.mean((1, 2, 3)) - line

    x = torch.linspace(0, 1, 2000).view(-1, 1, 1, 1).expand(-1, 1, 16, 16)
    monkeypatch.setattr(flagged, "sketch", lambda x: x)
    key, (_, sketched) = next(questions(None, x, planned(96), 255, judge, 0.0, 0))()
    assert torch.equal(sketched, sent[0])
    told, sent = torch.cat(told).mean((1, 2, 3)), sent[0].mean((1, 2, 3))
    assert key == ("clean", 0.3, False) and len(sent) == 48 and judged - 96 < len(told) <= judged
    if (told > line).sum() >= 48:
        torch.testing.assert_close(sent, told[told > line][:48], rtol=0, atol=0)
    else:
        torch.testing.assert_close(sent.sort().values, told.sort().values[-48:], rtol=0, atol=0)
