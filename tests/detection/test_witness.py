"""The model's evidence: attacks bear witness, noise of the same size does not, and clean inputs cost nothing."""

from __future__ import annotations

import copy
import math
import sys
from dataclasses import replace

import pytest
import torch
from torch import nn

from redoubt.attacks import on_lattice, pgd
from redoubt.detection import Budget, decide, fit, witness
from redoubt.detection.benign import NOISE
from redoubt.detection.bias import calibrate_witness, tried, winners
from redoubt.detection.flagged import planned, questions
from redoubt.detection.measures import MEASURES, measures
from redoubt.detection.networks import DETAIL, ODDS, PIXELS, SKETCH
from redoubt.detection.pattern import common, sketch
from redoubt.detection.witness import RISK, Witness, bet, fit_witness, midmean
from redoubt.threat import ThreatModel


@pytest.fixture(scope="module")
def watched() -> dict[str, list]:
    """Of the fit below: what was asked about harmless changes, how many fixed patterns were learned from, and what was
    calibrated with."""
    return {"asked": [], "groups": [], "calibrated": []}


@pytest.fixture(scope="module")
def digits_detector(digits, digits_model, small, watched):
    """Asked in spite of the size: it is the only data set that is here at once."""

    def asked(model, x, plan, levels, judge, threshold, seed, **look):
        watched["asked"].append((seed, len(x), plan, look))
        return questions(model, x, plan, levels, judge, threshold, seed, **look)

    def learned(attacked, changed, *, seed):
        watched["groups"].append(sum(fixed for *_, fixed in changed))
        return fit_witness(attacked, changed, seed=seed)

    def calibrated(net, changes, again, noise):
        watched["calibrated"] += [changes, again]
        calibrate_witness(net, changes, again, noise)

    with pytest.MonkeyPatch.context() as patch:
        for name, function in {"questions": asked, "fit_witness": learned, "calibrate_witness": calibrated}.items():
            patch.setattr(sys.modules["redoubt.detection.fit"], name, function)
        return fit(digits_model, digits.tensors("detector_fit"), digits.tensors("calibration"), levels=16,
                   config=replace(small, smallest=8))


def sent(digits, model, change: str, size: float) -> torch.Tensor:
    x, y = digits.tensors("test")
    noise = torch.Generator().manual_seed(7)
    if change == "pgd":
        return on_lattice(pgd(model, x, y, ThreatModel("Linf", size), generator=noise), 16)
    return on_lattice((x + size * torch.randn(x.shape, generator=noise).sign()).clamp(0, 1), 16)


@pytest.mark.parametrize(("change", "size", "attack"), [
    ("pgd", 0.15, True), ("pgd", 0.2, True), ("sign", 0.1, False), ("sign", 0.2, False),
])
def test_attacks_bear_witness_and_noise_does_not(digits, digits_model, digits_detector, change, size, attack):
    verdicts = digits_detector.assess(sent(digits, digits_model, change, size))
    evidence = verdicts.evidence[verdicts.is_adversarial]
    strength = digits_detector.campaign(evidence)
    assert strength.witnessed is attack
    assert decide(strength, ()).retrain is attack


def test_attacks_along_the_gradient_are_told_from_others(digits, digits_model, digits_detector):
    """By what was rehearsed, and have an upper bound of their own; from elsewhere it is higher than from who knows."""
    verdicts = digits_detector.assess(sent(digits, digits_model, "pgd", 0.2))
    evidence = verdicts.evidence[verdicts.is_adversarial][:64]
    evidence[:, DETAIL:] = 0.0   # nothing in common
    least, most = digits_detector.settings.own_odds
    assert least < most < midmean(evidence[:, ODDS])
    unasked, elsewhere = evidence.clone(), evidence.clone()
    unasked[:, ODDS], elsewhere[:, ODDS] = 0.0, least - 0.1
    asked, alone, strange = (digits_detector.campaign(part) for part in (evidence, unasked, elsewhere))
    assert asked.low == alone.low == strange.low and asked.high <= alone.high < strange.high


def test_patterns_to_calibrate_with_are_not_those_learned_from(digits, digits_detector, watched, small):
    first, second, *again = watched["asked"]
    assert first[0] != second[0] and {part[0] for part in again} == {second[0]}
    assert [part[3] for part in again] == [{"look": look} for look in (1, 2, 3, 4)]
    sizes = [len(digits.arrays(split)[0]) for split in ("detector_fit", *["calibration"] * 5)]
    assert [part[1] for part in watched["asked"]] == sizes
    fixed = sum(line[2] for line in planned(small.noise))
    assert watched["groups"] == [4 * fixed] and fixed >= 30


def test_what_wins_most_is_tried_again(digits_detector, watched):
    changes, again = watched["calibrated"]
    _, (*_, usual, _), *looks = watched["asked"]
    best = {change.key for change in winners(changes, NOISE, 8)}
    assert all({line[:3] for line in plan} == best and set(plan) < set(usual) for *_, plan, _ in looks)
    first = {change.key: change.error for change in changes}
    assert {change.key for change in again} == best and sum(one.error < first[one.key] for one in again) >= 6


def test_the_details_that_clean_pictures_have_in_common_are_told_from_all_of_them(digits, digits_detector):
    usual = common(sketch(digits.tensors("calibration")[0]))
    torch.testing.assert_close(digits_detector.witness.usual.abs(), usual.abs(), rtol=1e-3, atol=1e-3)


def test_the_model_is_asked_about_flagged_inputs_only(digits, digits_model, digits_detector):
    x = torch.cat([digits.tensors("test")[0][:100], sent(digits, digits_model, "pgd", 0.2)[:60]])
    asked = []
    model = nn.Sequential(digits_model)
    model.register_forward_hook(lambda module, inputs, output: asked.append(len(inputs[0])))
    detector = copy.copy(digits_detector)
    detector.model = model.eval()
    known = digits_model(x).softmax(1).detach()
    verdicts = detector.assess(x, known)
    flagged = verdicts.is_adversarial
    assert 16 <= flagged.sum() < 80 and sum(asked) == 25 * int(flagged.sum())
    assert (verdicts.evidence[~flagged, PIXELS] == 0).all() and (verdicts.evidence[flagged, PIXELS] != 0).all()
    asked.clear()
    detector.assess(x[:100][~flagged[:100]], known[:100][~flagged[:100]])
    assert not asked
    torch.testing.assert_close(detector.assess(x).score, verdicts.score)   # it asks by itself where nothing is known
    assert len(x) in asked


def test_a_flood_is_put_to_the_model_in_parts(digits, digits_model, digits_detector):
    """Each flagged input is tried in twenty ways: a chunk of 512 in one pass would be 10,240 pictures."""
    x, largest = sent(digits, digits_model, "pgd", 0.2), []
    model = nn.Sequential(digits_model)
    model.register_forward_hook(lambda module, inputs, output: largest.append(len(inputs[0])))
    detector = copy.copy(digits_detector)
    detector.model = model.eval()
    verdicts = detector.assess(x)
    flagged = verdicts.is_adversarial
    assert flagged.sum() > 64 and max(largest) <= 512
    whole = detector.witness.testimony(measures(digits_model, x[flagged]))
    torch.testing.assert_close(verdicts.evidence[flagged, PIXELS], whole, rtol=1e-3, atol=1e-3)


def test_a_flood_cannot_spend_more_than_the_budget(digits, digits_model, digits_detector):
    detector, x = copy.copy(digits_detector), sent(digits, digits_model, "pgd", 0.2)[:64]
    detector.budget = Budget(first=5, share=1 / 16)
    asked = [int((detector.assess(x).evidence[:, PIXELS] != 0).sum()) for _ in range(3)]
    assert asked == [9, 0, 8]   # the reserve, a rest, and a clump again
    budget = Budget(first=2, most=10, share=0.5)
    assert [budget.take(*call) for call in ((0, 3), (8, 3), (1000, 3), (0, 100), (2, 1))] == [2, 0, 3, 7, 0]


def test_measures_do_not_depend_on_the_batch_or_on_how_they_are_asked(digits, digits_model):
    x, model = digits.tensors("test")[0][:6], copy.deepcopy(digits_model).requires_grad_(True)
    whole = measures(model, x)
    assert whole.shape == (6, MEASURES) and whole.isfinite().all()
    torch.testing.assert_close(torch.cat([measures(model, one.unsqueeze(0)) for one in x]), whole, rtol=1e-3, atol=1e-4)
    with torch.inference_mode():
        torch.testing.assert_close(measures(model, x), whole)
    assert all(weight.grad is None for weight in model.parameters())
    assert measures(model, x[:0]).shape == (0, MEASURES)


def test_a_constant_model_gives_finite_measures():
    class Constant(nn.Module):
        def forward(self, x):
            return x.flatten(1)[:, :3] * 0

    assert measures(Constant(), torch.rand(3, 1, 8, 8)).isfinite().all()


def test_noise_wins_no_bet_on_average_and_attacks_do():
    generator = torch.Generator().manual_seed(0)

    def drawn(n, at):
        return torch.randn(n, MEASURES, generator=generator) + at

    net = fit_witness(drawn(400, 0.4), {"some": drawn(400, 0.0)}, seed=0, steps=150)
    changed = {("some", 0.5): drawn(400, 0.0), ("some", 1.0): drawn(400, 0.1), ("harmless", 1.0): drawn(400, 0.2)}
    changes = tried(net, (((*key, False), (part, torch.zeros(400, SKETCH))) for key, part in changed.items()))
    calibrate_witness(net, changes, [], ("some",))
    assert net.bias > 0 and net.further > 0
    for at in (0.0, 0.1):
        won = [bet(net.testimony(drawn(64, at))).item() >= -math.log(RISK) for _ in range(300)]
        assert sum(won) <= 1
    assert bet(net.testimony(drawn(64, 0.4))) >= -math.log(RISK)


@pytest.fixture
def strict(digits_detector):
    """The detector, which asks much of a pattern."""
    detector = copy.copy(digits_detector)
    detector.witness = copy.deepcopy(digits_detector.witness)
    detector.witness.pattern.fill_(9.0)
    return detector


def campaign(digits, digits_model, detector, n: int = 64) -> torch.Tensor:
    """Evidence of an attack, of inputs that have nothing in common."""
    verdicts = detector.assess(sent(digits, digits_model, "pgd", 0.2))
    evidence = verdicts.evidence[verdicts.is_adversarial][:n].clone()
    sketches = torch.randn(n, SKETCH, generator=torch.Generator().manual_seed(1))
    sketches[:, 0] = 0   # left for a pattern
    evidence[:, DETAIL:] = 0.1 * sketches / sketches.norm(dim=1, keepdim=True)
    return evidence


def test_inputs_that_share_a_pattern_have_to_win_more(digits, digits_model, digits_detector, strict):
    evidence = campaign(digits, digits_model, strict)
    own = strict.campaign(evidence)
    assert own.witnessed and not own.shared and strict.wealth(evidence) == digits_detector.wealth(evidence)
    evidence[:, DETAIL:] = torch.eye(SKETCH)[0]
    shared = strict.campaign(evidence)
    assert shared.shared and not shared.witnessed and "one pattern" in decide(shared, ()).reason
    strict.witness.pattern.fill_(0.0)
    assert strict.campaign(evidence).witnessed


def test_a_pattern_on_a_part_costs_the_others_nothing(digits, digits_model, digits_detector, strict):
    evidence = campaign(digits, digits_model, strict)
    alone = strict.wealth(evidence[:40])
    evidence[40:, DETAIL:] = torch.eye(SKETCH)[0]
    assert strict.wealth(evidence) == pytest.approx(alone + 24 * math.log(0.7), abs=0.1)
    assert not strict.campaign(evidence).shared


def test_the_strongest_group_is_held_against_itself(digits, digits_model, strict, monkeypatch):
    """What some carry faintly shows among themselves where it is lost among all."""
    evidence = campaign(digits, digits_model, strict, n=128)
    evidence[:24, DETAIL] = 0.25
    few, (_, reading) = torch.arange(24), strict.reader.strongest(evidence[:, :PIXELS])
    assert not strict.campaign(evidence).shared
    monkeypatch.setattr(strict.reader, "strongest", lambda pixels: (few, reading))
    assert strict.campaign(evidence).shared


def test_evidence_is_less_what_clean_pictures_have_in_common(digits, digits_model, digits_detector):
    evidence = digits_detector.assess(sent(digits, digits_model, "pgd", 0.2)).evidence
    detail, usual = evidence[:, DETAIL:], digits_detector.witness.usual
    assert detail.norm() > 1 and usual.norm() > 1 and (detail @ usual.T).abs().max() < 1e-5


def test_what_pixels_and_patterns_ask_for_is_not_asked_twice_nor_of_those_not_asked(digits, digits_model, strict):
    evidence = campaign(digits, digits_model, strict)
    evidence[:, DETAIL:], evidence[:, PIXELS] = torch.eye(SKETCH)[0], 2.0
    strict.witness.pattern.fill_(0.5)
    strict.witness.further.fill_(0.75)
    each = [math.log(0.7 + 0.3 * math.exp(2.0 - more)) for more in (0.5, 0.75)]
    assert [strict.wealth(evidence, harmless=harmless) for harmless in (False, True)] == pytest.approx(
        [64 * one for one in each], rel=1e-4)
    evidence[10:, PIXELS] = 0
    assert strict.wealth(evidence) == pytest.approx(10 * each[0], rel=1e-4)


def test_the_worst_harmless_change_teaches_most(monkeypatch):
    """A few pictures of one kind look like attacks in half of what tells these: seen often, they win less."""
    generator = torch.Generator().manual_seed(0)

    def drawn(n, first, second):
        out = torch.randn(n, MEASURES, generator=generator)
        out[:, :16] += first
        out[:, 16:32] += second
        return out

    attacked, changed = drawn(600, 0.5, 0.25), {"usual": drawn(2000, 0.0, 0.0), "rare": drawn(100, 0.5, -0.25)}

    def worst():
        net = fit_witness(attacked, changed, seed=0, steps=400)
        return max(net(part).exp().mean().item() for part in changed.values())

    weighted = worst()
    monkeypatch.setattr(witness, "_PRESS", 0.0)   # every picture as often as another
    assert weighted < 0.7 * worst()


def test_without_evidence_nothing_is_won_or_lost():
    assert bet(torch.zeros(50)).item() == 0
    assert (Witness()(torch.randn(5, MEASURES)) == 0).all()


def test_small_pictures_leave_the_decision_to_the_pixels(digits, digits_model, digits_detector):
    silent = copy.copy(digits_detector)
    silent.settings = replace(digits_detector.settings, asks=False)
    verdicts = silent.assess(sent(digits, digits_model, "pgd", 0.3))
    assert (verdicts.evidence[:, PIXELS] == 0).all()
    strength = silent.campaign(verdicts.evidence[verdicts.is_adversarial])
    assert strength.witnessed and decide(strength, ()).retrain


def test_few_pictures_are_not_learned_by_heart():
    """Attacks and harmless changes that differ in nothing: there is nothing to learn about them but themselves."""
    generator = torch.Generator().manual_seed(0)
    attacked, changed = (100 * torch.randn(1000, MEASURES, generator=generator) for _ in range(2))   # of any size
    net = fit_witness(attacked, {"some": changed}, seed=0, steps=500)
    assert net(attacked).mean() - net(changed).mean() < 1.0
