"""The gate's rules, each with the case that it is there to stop."""

import pytest
import torch
from scipy.stats import binomtest

from redoubt.errors import InvalidInput
from redoubt.promotion import Measured, Policy, clean_allowance, detectable_difference, judge, paired_p
from redoubt.threat import ThreatModel

N = 5000
OLD, NEW = ThreatModel("Linf", 0.05), ThreatModel("Linf", 0.1)


def right(share: float, n: int = N, seed: int = 0) -> torch.Tensor:
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    return order < round(share * n)


def measured(clean=0.88, attacked=0.70, recall=0.6, trained_for=(NEW,), false_positives=0.01, seed=0):
    return Measured(clean=right(clean, seed=seed), attacked={NEW: right(attacked, seed=seed)},
                    recall=torch.tensor([recall, 0.9, 0.9, 0.95]), trained_for=trained_for,
                    false_positives=false_positives)


CHAMPION = measured(clean=0.90, attacked=0.05, trained_for=())


def failed(decision) -> str:
    return decision.reason if not decision.promoted else ""


def test_a_better_challenger_is_promoted():
    decision = judge(measured(), CHAMPION, NEW)
    assert decision.promoted, decision.reason
    assert decision.reason == "every rule passed"
    assert decision.n == N


@pytest.mark.parametrize("challenger, rule", [
    (measured(attacked=0.05), "better"),
    (measured(attacked=0.02), "not worse"),
    (measured(clean=0.75), "fall in clean accuracy"),
    (measured(recall=0.2), "recall"),
    (measured(false_positives=0.08), "false positives"),
], ids=["no better", "worse", "clean accuracy lost", "a class collapsed", "detector cries"])
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
    assert judge(measured(trained_for=()), None, None).promoted
    assert not judge(measured(recall=0.1), None, None).promoted


def test_a_clean_run_must_beat_the_champion_on_clean_pictures():
    champion = measured(clean=0.80, trained_for=())
    assert judge(measured(clean=0.88, trained_for=()), champion, None).promoted
    assert "clean accuracy, better" in failed(judge(measured(clean=0.80, trained_for=()), champion, None))


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
    assert clean_allowance((NEW,), (NEW,), policy) == policy.clean_allowance_floor


def test_more_pictures_show_smaller_gains():
    assert detectable_difference(5000) < detectable_difference(200)


def test_a_contained_threat_may_fall_a_little_and_no_more():
    def both(attacked_old):
        return Measured(clean=right(0.88), attacked={NEW: right(0.7), OLD: right(attacked_old)},
                        recall=torch.ones(4), trained_for=(NEW,), takes="same")

    champion = Measured(clean=right(0.88), attacked={NEW: right(0.4), OLD: right(0.8)}, recall=torch.ones(4),
                        trained_for=(OLD,), takes="same")
    assert judge(both(0.78), champion, NEW).promoted
    assert "which a larger one contains" in failed(judge(both(0.70), champion, NEW))


def test_the_record_is_json_with_a_line_a_rule():
    record = judge(measured(), CHAMPION, NEW).to_json()
    assert {"rule", "value", "limit", "passed"} == record["rules"][0].keys()
