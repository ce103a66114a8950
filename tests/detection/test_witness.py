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
from redoubt.detection.bias import calibrate_witness, seen, winners
from redoubt.detection.flagged import planned, questions
from redoubt.detection.measures import MEASURES, measures
from redoubt.detection.networks import DETAIL, PIXELS, SKETCH
from redoubt.detection.witness import RISK, Witness, bet, fit_witness
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

    def calibrated(net, changes, closely, noise):
        watched["calibrated"] += [changes, closely]
        calibrate_witness(net, changes, closely, noise)

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


def test_patterns_to_calibrate_with_are_not_those_learned_from(digits, digits_detector, watched, small):
    first, second, again = watched["asked"]
    assert first[0] != second[0] == again[0] and again[3] == {"look": 1}
    splits = ("detector_fit", "calibration", "calibration")
    assert [part[1] for part in (first, second, again)] == [len(digits.arrays(split)[0]) for split in splits]
    fixed = sum(line[2] for line in planned(small.noise))
    assert watched["groups"] == [4 * fixed] and fixed >= 30


def test_what_wins_most_is_looked_at_again_and_closely(digits_detector, watched):
    usual, plan = (part[2] for part in watched["asked"][1:])
    changes, closely = watched["calibrated"]
    assert {tuple(key) for *key, _ in plan} == {change.key for change in winners(changes, NOISE, 8)}
    assert len(closely) == len(plan) == 8 and {(*key, n // 4) for *key, n in plan} < set(usual)
    first = {change.key: change.error for change in changes}
    assert sum(change.error < first[change.key] for change in closely) >= 6


def test_the_model_is_asked_about_flagged_inputs_only(digits, digits_model, digits_detector):
    x = torch.cat([digits.tensors("test")[0][:100], sent(digits, digits_model, "pgd", 0.2)[:20]])
    asked = []
    model = nn.Sequential(digits_model)
    model.register_forward_hook(lambda module, inputs, output: asked.append(len(inputs[0])))
    detector = copy.copy(digits_detector)
    detector.model = model.eval()
    known = digits_model(x).softmax(1).detach()
    verdicts = detector.assess(x, known)
    flagged = verdicts.is_adversarial
    assert 16 <= flagged.sum() < 40 and sum(asked) == 25 * int(flagged.sum())
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
    changes = seen(net, ((key, (part, torch.zeros(400, SKETCH))) for key, part in changed.items()))
    calibrate_witness(net, changes, [], ("some",))
    assert net.bias > 0 and net.further > 0
    for at in (0.0, 0.1):
        won = [bet(net.testimony(drawn(64, at))).item() >= -math.log(RISK) for _ in range(300)]
        assert sum(won) <= 1
    assert bet(net.testimony(drawn(64, 0.4))) >= -math.log(RISK)


def test_campaigns_that_share_a_pattern_have_to_win_more(digits, digits_model, digits_detector):
    verdicts = digits_detector.assess(sent(digits, digits_model, "pgd", 0.2))
    evidence = verdicts.evidence[verdicts.is_adversarial][:64]
    strict = copy.copy(digits_detector)
    strict.witness = copy.deepcopy(digits_detector.witness)
    strict.witness.pattern.fill_(9.0)
    own = strict.campaign(evidence)
    assert own.witnessed and not own.shared and strict.wealth(evidence) == digits_detector.wealth(evidence)
    evidence[:, DETAIL:] = torch.eye(SKETCH)[0]
    shared = strict.campaign(evidence)
    assert shared.shared and not shared.witnessed and "one pattern on many inputs" in decide(shared, ()).reason
    strict.witness.pattern.fill_(0.0)
    assert strict.campaign(evidence).witnessed


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
