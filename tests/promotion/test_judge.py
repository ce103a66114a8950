"""The gate's rules, each with the case that it is there to stop."""

import pytest
import torch
from scipy.stats import binomtest

from redoubt.errors import InvalidInput
from redoubt.promotion.checks import sanity_rules
from redoubt.promotion.gate import Measured, Probe, clean_allowance, judge
from redoubt.promotion.paired import detectable_difference, paired_p
from redoubt.promotion.policy import Policy
from redoubt.promotion.record import FAIL, NOT_APPLICABLE, PASS
from redoubt.threat import ThreatModel

N = 5000
OLD, NEW = ThreatModel("Linf", 0.05), ThreatModel("Linf", 0.1)


def right(share: float, n: int = N, seed: int = 0) -> torch.Tensor:
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    return order < round(share * n)


def measured(clean=0.88, attacked=0.70, recall=0.6, trained_for=(NEW,), false_positives=0.01, seed=0, probe=None):
    return Measured(clean=right(clean, seed=seed), attacked={NEW: right(attacked, seed=seed)},
                    recall=torch.tensor([recall, 0.9, 0.9, 0.95]), trained_for=trained_for,
                    guarded=false_positives is not None, false_positives=false_positives, probe=probe)


def seen(flagged=200, estimate=0.1) -> Probe:
    return Probe(threat=NEW, true=0.1, n=256, flagged=flagged, estimate=estimate)


CHAMPION = measured(clean=0.90, attacked=0.05, trained_for=())
BLIND = measured(clean=0.90, attacked=0.05, trained_for=(), false_positives=None)   # without a detector


def failed(decision) -> str:
    return decision.reason if not decision.passed else ""


def verdict(decision, name: str) -> str:
    return next(line.verdict for line in decision.rules if name in line.rule)


def test_a_better_challenger_is_promoted():
    decision = judge(measured(), CHAMPION, NEW)
    assert decision.passed, decision.reason
    assert decision.reason == "every rule passed"
    assert decision.n == N


@pytest.mark.parametrize("challenger, rule", [
    (measured(attacked=0.05), "better"),
    (measured(attacked=0.02), "better"),
    (measured(clean=0.75), "fall in clean accuracy"),
    (measured(recall=0.2), "recall"),
    (measured(false_positives=0.08), "false positives"),
    (measured(probe=seen(flagged=20)), "share flagged"),
    (measured(probe=seen(estimate=0.14)), "strength error"),
    (measured(probe=seen(estimate=0.07)), "strength error"),
    (measured(probe=seen(estimate=0.0)), "strength error"),
], ids=["no better", "worse", "clean accuracy lost", "a class collapsed", "detector cries", "detector is blind",
        "reads too much", "reads too little", "reads nothing"])
def test_each_rule_refuses(challenger, rule):
    assert rule in failed(judge(challenger, CHAMPION, NEW))


def test_the_champions_threats_must_stay_covered():
    champion = measured(attacked=0.4, trained_for=(ThreatModel("L2", 1.0),))
    assert "L2 1" in failed(judge(measured(), champion, NEW))


def test_noise_is_no_improvement():
    """Equally good models that err on different pictures pass at about the level, no more."""
    passed = 0
    for seed in range(200):
        ours, theirs = torch.rand(2, 1000, generator=torch.Generator().manual_seed(seed)) < 0.6
        passed += paired_p(ours, theirs) <= 0.05
    assert passed <= 20


def test_the_first_version_needs_no_champion_but_must_be_sound():
    assert judge(measured(trained_for=()), None, None).passed
    assert not judge(measured(recall=0.1), None, None).passed
    assert "first version" in failed(judge(measured(clean=0.25), None, None))
    assert "first version" in failed(judge(measured(), None, None, policy=Policy(bootstrap_accuracy=0.9)))


def test_a_clean_run_must_beat_the_champion_on_clean_pictures():
    champion = measured(clean=0.80, trained_for=())
    assert judge(measured(clean=0.88, trained_for=()), champion, None).passed
    assert "clean accuracy, which was asked for: better" in failed(
        judge(measured(clean=0.80, trained_for=()), champion, None))


def test_different_pictures_cannot_be_compared():
    other = Measured(clean=right(0.9, 100), attacked={NEW: right(0.5, 100)}, recall=torch.ones(4), trained_for=())
    with pytest.raises(InvalidInput, match="same pictures"):
        judge(measured(), other, NEW)


@pytest.mark.parametrize("wins, losses", [(0, 0), (5, 5), (9, 1), (1, 9), (300, 250), (2500, 0)])
def test_the_paired_test_is_the_binomial_one(wins, losses):
    ours = torch.tensor([True] * wins + [False] * losses + [True] * 10)
    theirs = torch.tensor([False] * wins + [True] * losses + [True] * 10)
    expected = 1.0 if wins + losses == 0 else binomtest(wins, wins + losses, alternative="greater").pvalue
    assert paired_p(ours, theirs) == pytest.approx(expected, abs=1e-9)


def test_the_allowance_grows_with_what_is_added():
    policy = Policy()
    assert clean_allowance((NEW,), (), policy) > clean_allowance((NEW,), (OLD,), policy)
    assert clean_allowance((NEW,), (NEW,), policy) == policy.allowed("Linf", 0)
    assert clean_allowance((NEW,), (), policy) == pytest.approx(0.1), "ten points at 0.1"
    assert clean_allowance((), (NEW,), policy) == policy.allowed("Linf", 0), "less robust is no excuse"


def test_more_pictures_show_smaller_gains():
    assert detectable_difference(5000) < detectable_difference(200)
    assert detectable_difference(20, share=1.0) <= 1


@pytest.mark.parametrize("n, share", [(5000, 0.1), (500, 0.2)])
def test_the_difference_said_to_be_detectable_is_detected(n, share):
    """Simulated: a gain of that size passes the test about as often as is said, half of it far less often."""
    gain = detectable_difference(n, share)
    found = {factor: sum(_one_gain(n, share, factor * gain, seed) for seed in range(200)) for factor in (1, 0.5)}
    assert found[1] >= 180
    assert found[0.5] <= 150


def _one_gain(n: int, share: float, gain: float, seed: int) -> bool:
    dice = torch.rand(n, generator=torch.Generator().manual_seed(seed))
    ours, theirs = dice < share / 2 + gain, (dice >= share / 2 + gain) & (dice < share + gain)
    return paired_p(ours, theirs) <= 0.05


def test_a_contained_threat_may_fall_a_little_and_no_more():
    def both(attacked_old):
        return Measured(clean=right(0.88), attacked={NEW: right(0.7), OLD: right(attacked_old)},
                        recall=torch.ones(4), trained_for=(NEW,), takes="same")

    champion = Measured(clean=right(0.88), attacked={NEW: right(0.4), OLD: right(0.8)}, recall=torch.ones(4),
                        trained_for=(OLD,), takes="same")
    assert judge(both(0.78), champion, NEW).passed
    assert "which a larger one contains" in failed(judge(both(0.70), champion, NEW))


def test_the_record_is_json_with_a_line_a_rule():
    record = judge(measured(), CHAMPION, NEW).to_json()
    assert {"rule", "value", "limit", "verdict"} == record["rules"][0].keys()
    assert (record["passed"], record["n"], record["attack"]) == (True, N, "PGD-20")


def two(linf, l2):
    threats = (ThreatModel("L2", 1.0), NEW)
    return Measured(clean=right(0.88), attacked={threats[0]: right(l2), NEW: right(linf)}, recall=torch.ones(4),
                    trained_for=threats)


def test_every_other_threat_must_not_be_worse():
    assert judge(two(0.75, 0.60), two(0.70, 0.60), NEW).passed
    assert judge(two(0.75, 0.598), two(0.70, 0.60), NEW).passed is False, "nested vectors: a loss without a win is sure"
    assert "L2 1: not worse" in failed(judge(two(0.75, 0.55), two(0.70, 0.60), NEW))


def test_the_tests_on_the_other_threats_share_their_level():
    """Wins 10, losses 22: p of being worse is 0.025, above the shared level of 0.02 and below a level of 0.05."""
    ours, theirs = right(0.5), right(0.5)
    ours[:22], theirs[:22] = False, True
    ours[22:32], theirs[22:32] = True, False
    base, threat = two(0.75, 0.6), ThreatModel("L2", 1.0)
    challenger = Measured(**{**vars(base), "attacked": {NEW: right(0.75), threat: ours}})
    champion = Measured(**{**vars(base), "attacked": {NEW: right(0.70), threat: theirs}})
    assert judge(challenger, champion, NEW).passed
    assert not judge(challenger, champion, NEW, policy=Policy(worse_level=0.05)).passed


def lower(clean, attacked, trained_for):
    threats = {OLD: right(attacked), NEW: right(attacked - 0.2)}
    return Measured(clean=right(clean), attacked=threats, recall=torch.ones(4), trained_for=trained_for)


def test_a_run_that_was_asked_for_less_must_gain_on_clean_pictures_and_hold_what_it_covers():
    champion = lower(0.84, 0.75, (NEW,))
    decision = judge(lower(0.88, 0.75, (OLD,)), champion, OLD, lowered=True)
    assert decision.passed, decision.reason
    assert verdict(decision, "given up") == NOT_APPLICABLE
    assert "clean accuracy, which was asked for: better" in failed(
        judge(lower(0.84, 0.75, (OLD,)), champion, OLD, lowered=True))
    assert "Linf 0.05: not worse" in failed(judge(lower(0.88, 0.70, (OLD,)), champion, OLD, lowered=True))
    assert "contains the champion's Linf 0.1" in failed(judge(lower(0.88, 0.75, (OLD,)), champion, OLD))


def test_without_any_detector_its_rules_do_not_apply():
    decision = judge(measured(false_positives=None), BLIND, NEW)
    assert decision.passed
    assert verdict(decision, "false positives") == verdict(decision, "strength error") == NOT_APPLICABLE
    assert judge(measured(false_positives=None, trained_for=()), None, None).passed


def test_a_challenger_without_a_detector_does_not_follow_a_champion_with_one():
    decision = judge(measured(false_positives=None), CHAMPION, NEW)
    assert "false positives is no detector, needs a detector, as the champion has" in failed(decision)


def test_too_few_flagged_to_read_a_strength_from_are_a_fault_unless_none_could_be_enough():
    few = judge(measured(probe=seen(flagged=60, estimate=None)), CHAMPION, NEW)
    assert verdict(few, "share flagged") == PASS
    assert "strength error is none: 60 of 256 flagged, read from 64 on" in failed(few)
    nobody_asked = judge(measured(probe=seen(flagged=60, estimate=None)), CHAMPION, NEW, policy=Policy(detection=0))
    assert verdict(nobody_asked, "strength error") == NOT_APPLICABLE
    small = Probe(threat=NEW, true=0.1, n=50, flagged=50, estimate=None)
    assert verdict(judge(measured(probe=small), CHAMPION, NEW), "strength error") == NOT_APPLICABLE


@pytest.mark.parametrize("checks, expected", [
    ([{"title": "a", "verdict": "pass"}, {"title": "b", "verdict": "not applicable"}], "pass"),
    ([{"title": "a", "verdict": "pass"}, {"title": "masked gradients", "verdict": "fail"}], "fail"),
    ([{"title": "a", "verdict": "pass"}, {"title": "b", "verdict": "perhaps"}], "fail"),
    ([{"title": "a", "verdict": "not applicable"}], "fail"),
    ([], "not applicable"),
    (None, "not applicable"),
], ids=["passed", "failed", "unreadable", "nothing applied", "empty", "absent"])
def test_sanity_checks_out_of_the_report(checks, expected):
    (line,) = sanity_rules({"checks": checks}, Policy())
    assert line.verdict == expected
    assert "masked gradients" in line.value or expected != FAIL or len(checks) < 2 or checks[1]["title"] == "b"
    (strict,) = sanity_rules({"checks": checks} if checks else None, Policy(sanity="required"))
    assert strict.verdict == ("fail" if not checks else expected)
