"""Each check on verdicts made by hand: what passes, what fails, and how many images it takes."""

import pytest
import torch
from scipy.stats import binomtest

from redoubt.evaluation import sanity
from redoubt.evaluation.sanity import FAIL, NOT_APPLICABLE, PASS, Check, Claim, failed, surely_above, worst_of

N = 100


def right(*ranges, n=N):
    """bool [n], true inside the given half-open ranges."""
    out = torch.zeros(n, dtype=torch.bool)
    for start, end in ranges:
        out[start:end] = True
    return out


def curve(*points, n=N):
    return {"PGD-20": [(epsilon, k, n) for epsilon, k in points]}


@pytest.mark.parametrize("points, large, verdict", [
    (curve((0, 90), (0.1, 60), (0.2, 20)), (0.5, 0, N), PASS),
    (curve((0, 90), (0.1, 60), (0.2, 62)), (0.5, 0, N), PASS),      # noise
    (curve((0, 90), (0.1, 30), (0.2, 70)), (0.5, 0, N), FAIL),      # rises
    (curve((0, 90), (0.1, 60), (0.2, 20)), (0.5, 15, N), PASS),     # about chance
    (curve((0, 90), (0.1, 60), (0.2, 20)), (0.5, 40, N), FAIL),     # never gets there
    ({}, (0.5, 0, N), PASS),
])
def test_accuracy_must_fall_to_chance(points, large, verdict):
    check = sanity.falls_with_epsilon(points, large, 0.1)
    assert check.verdict == verdict
    assert check.numbers["accuracy_at_large"] == large[1] / N


@pytest.mark.parametrize("single, iterative, verdict", [
    (right((0, 60)), right((0, 50)), PASS),
    (right((0, 60)), right((3, 63)), PASS),      # three images are chance
    (right((0, 40)), right((0, 70)), FAIL),      # FGSM stronger than PGD
    (right((0, 85)), right((0, 5)), FAIL),       # overfitted to the single step
    (right((0, 20)), right((0, 0)), PASS),       # undefended: FGSM razes it, too
])
def test_iterative_against_single(single, iterative, verdict):
    check = sanity.iterative_beats_single(right((0, 90)), single, iterative)
    assert check.verdict == verdict
    if verdict == FAIL:
        assert "FGSM" in check.detail


def test_a_black_box_that_finds_more_convicts():
    white = right((0, 80))
    assert sanity.white_box_strongest(white, {"transfer": right((0, 79)), "Square": right((0, 78))}).verdict == PASS
    check = sanity.white_box_strongest(white, {"transfer": right((0, 79)), "Square": right((0, 40))})
    assert (check.verdict, check.numbers["only_by"]) == (FAIL, {"transfer": 1, "Square": 40})
    assert sanity.white_box_strongest(white, {}).verdict == NOT_APPLICABLE


def test_noise_must_hurt_less():
    assert sanity.noise_hurts_less(right((0, 50)), right((0, 80))).verdict == PASS
    assert sanity.noise_hurts_less(right((0, 80)), right((0, 50))).verdict == FAIL


def test_more_steps_must_not_help_much():
    assert sanity.converged(right((0, 50)), right((0, 48)), (20, 100)).verdict == PASS
    check = sanity.converged(right((0, 50)), right((0, 20)), (20, 100))
    assert (check.verdict, check.numbers["more"], check.numbers["steps"]) == (FAIL, 30, [20, 100])


@pytest.mark.parametrize("zero, beats, n, verdict", [
    (0, 98, 100, PASS), (4, 90, 100, PASS), (30, 70, 100, FAIL), (100, 0, 100, FAIL), (0, 50, 100, FAIL),
    (0, 5, 5, NOT_APPLICABLE),
])
def test_gradients_must_point_somewhere(zero, beats, n, verdict):
    assert sanity.loss_not_flat(zero, beats, n).verdict == verdict


def test_two_evaluations_must_agree():
    first, labels = right((0, 60)), ("PGD-20", "margin")
    assert sanity.evaluations_agree(first, first, right((0, 57)), labels).verdict == PASS
    assert "repeated" in sanity.evaluations_agree(first, right((5, 60)), first, labels).detail
    assert sanity.evaluations_agree(first, right((5, 60)), first, labels).verdict == FAIL
    assert "fitted to that attack" in sanity.evaluations_agree(first, first, right((0, 30)), labels).detail


def claimed(attacked, n, clean=0.85):
    return Claim(attacked=attacked, clean=clean, n=n)


@pytest.mark.parametrize("claim, clean, attacked, n, verdict", [
    (claimed(0.72, 2000), 0.85, 0.73, 5000, PASS),            # honest, and lucky
    (claimed(0.75, 2000), 0.85, 0.72, 5000, PASS),            # PGD-20 instead of PGD-10, other images
    (claimed(0.55, 280), 0.85, 0.36, 299, FAIL),              # overfitted to its attack
    (claimed(0.55, 40), 0.85, 0.36, 40, PASS),                # few images: it may be chance
    (claimed(0.46, 280), 0.85, 0.03, 299, FAIL),              # catastrophically overfitted
    (claimed(0.60, 2000), 0.70, 0.48, 2000, PASS),            # harder images: it is less accurate without attack, too
    (claimed(0.60, 2000, clean=0.5), 0.85, 0.48, 2000, FAIL),     # easier ones are no excuse
    (None, 0.85, 0.03, 299, NOT_APPLICABLE),
    (claimed(0.46, 280), 0.85, None, 299, NOT_APPLICABLE),
])
def test_what_training_reported_must_hold(claim, clean, attacked, n, verdict):
    check = sanity.claim_holds(claim, clean, attacked, n)
    assert check.verdict == verdict
    assert verdict != FAIL or "fitted to the attack" in check.detail


def test_few_classes_say_what_was_left_out():
    assert sanity.few_classes(10, ()).verdict == NOT_APPLICABLE
    assert sanity.few_classes(3, ("apgd-ce", "fab-t")).numbers["autoattack_parts"] == ["apgd-ce", "fab-t"]


def test_randomness_and_training_mode():
    assert sanity.deterministic(1e-6, 0, 4, N).verdict == PASS
    assert sanity.deterministic(0.3, 2, 4, N).verdict == FAIL
    assert sanity.eval_mode(0, 0, 1e-6, []).verdict == PASS
    for found in ((1, 0, 0.0, []), (0, 1, 0.0, []), (0, 0, 0.5, []), (0, 0, 0.0, ["running_mean"])):
        assert sanity.eval_mode(*found).verdict == FAIL


def test_what_is_much_of_all_may_be_little_of_what_was_left():
    assert sanity.overlooks(30, 50, N)
    assert not sanity.overlooks(15, 60, N), "a quarter of what was left: one attack finds what another does not"
    assert not sanity.overlooks(3, 3, N), "three images of a hundred"
    assert sanity.converged(right((0, 60)), right((0, 45)), (20, 100)).verdict == PASS


def test_few_images_convict_nobody():
    assert not surely_above(2, 10, 0.04)
    assert surely_above(20, 100, 0.04)
    assert not surely_above(0, 0, 0.04)
    assert sanity.converged(right((0, 5), n=8), right((1, 5), n=8), (20, 100)).verdict == PASS


@pytest.mark.parametrize("limit", [0.005, 0.04, 0.3, 0.9])
@pytest.mark.parametrize("n", [1, 8, 100, 2000, 60000])
def test_whether_a_share_is_surely_above_is_the_binomial_test(n, limit):
    for count in {round(share * n) for share in (0, limit, 1.02 * limit, 1.2 * limit, 2 * limit, 1) if share <= 1}:
        p = binomtest(count, n, limit, alternative="greater").pvalue
        assert surely_above(count, n, limit) == (count > limit * n and p < sanity.LEVEL), (count, p)


def test_one_is_more_than_never():
    assert surely_above(1, 5, 0.0)
    assert not surely_above(5, 5, 1.0)


def test_the_worst_threat_model_decides():
    good, bad = (Check(name="converged", verdict=verdict, detail="x", numbers={"n": 1}) for verdict in (PASS, FAIL))
    check = worst_of([("Linf 0.1", good), ("L2 1", bad)])
    assert (check.verdict, check.detail) == (FAIL, "L2 1: x")
    assert set(check.numbers) == {"Linf 0.1", "L2 1"}
    assert failed({"checks": [check.to_json(), good.to_json()]}) == [check.to_json()]
    assert failed({}) == []
