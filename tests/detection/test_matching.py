"""Matching rounds the upper bound up on the grid; a decision needs the lower bound above what is covered."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redoubt.detection import Strength, decide, match
from redoubt.errors import InvalidInput
from redoubt.threat import ThreatModel


def strength(low=0.095, estimate=0.1, high=0.105, n=64, norm="Linf", **more) -> Strength:
    return Strength(norm=norm, estimate=estimate, low=low, high=high, n=n, **more)


@given(high=st.floats(0.011, 0.29), ratio=st.floats(1.01, 1.1))
def test_match_is_the_least_grid_point_not_below_the_upper_bound(high, ratio):
    matched = match(strength(low=0.01, estimate=0.0105, high=high), floor=0.01, ceiling=0.3, ratio=ratio)
    assert matched >= high * (1 - 1e-6)
    assert matched <= max(high * ratio, 0.01) * (1 + 1e-6)
    steps = math.log(matched / 0.01) / math.log(ratio)
    assert matched == 0.3 or steps == pytest.approx(round(steps), abs=1e-6)


def test_match_keeps_a_bound_on_the_grid_and_stays_inside_floor_and_ceiling():
    assert match(strength(high=0.1 * 1.05**2), floor=0.1, ratio=1.05) == pytest.approx(0.1 * 1.05**2)
    assert match(strength(low=0.001, estimate=0.002, high=0.003), floor=0.02) == 0.02
    assert match(strength(low=0.3, estimate=0.4, high=0.5), ceiling=0.25) == 0.25


@pytest.mark.parametrize(("high", "matched"), [
    (5 / 255, 5 / 255), (4.6 / 255, 0.01 * 1.05**13), (4.9 / 255, 5 / 255), (20 / 255, 20 / 255),
    (19.9 / 255, 20 / 255), (30 / 255, 0.01 * 1.05**51), (1 / 255, 0.01),
])
def test_whole_levels_lie_on_the_grid_where_they_are_further_apart_than_its_step(high, matched):
    assert match(strength(low=0.001, estimate=0.002, high=high, levels=255)) == pytest.approx(matched, rel=1e-9)


def test_without_levels_a_bound_of_whole_levels_is_rounded_up_like_any_other():
    assert match(strength(low=0.001, estimate=0.002, high=5 / 255)) == pytest.approx(0.01 * 1.05**14)


def test_the_ceiling_holds_for_whole_levels_too():
    assert match(strength(low=0.001, estimate=0.002, high=7 / 255, levels=255), ceiling=0.02) == 0.02


def test_lengths_know_no_levels():
    length = strength(low=0.001, estimate=0.002, high=5 / 255, levels=255, norm="L2")
    assert match(length) == pytest.approx(0.01 * 1.05**14)


@given(high=st.floats(0.002, 0.29), more=st.floats(1, 1.2), levels=st.sampled_from([64, 255, 1023, 65535]),
       ratio=st.floats(1.001, 1.1))
def test_with_whole_levels_the_match_is_not_below_the_bound_nor_above_what_it_was_and_grows_with_it(
        high, more, levels, ratio):
    def found(bound, **known):
        return match(strength(low=0.001, estimate=0.0015, high=bound, **known), ratio=ratio)

    assert high * (1 - 1e-6) <= found(high, levels=levels) <= found(high)
    assert found(high, levels=levels) <= found(min(high * more, 0.3), levels=levels)


@pytest.mark.parametrize(("low", "retrain"), [(4.99, False), (5.02, False), (5.4, False), (5.6, True)])
def test_who_exceeds_a_whole_level_has_another_half_to_show(low, retrain):
    covered = (ThreatModel("Linf", 5 / 255),)
    bounds = {"low": low / 255, "estimate": 5.8 / 255, "high": 6 / 255}
    decision = decide(strength(**bounds, levels=255), covered)
    assert decision.retrain is retrain and decision.covered is not retrain
    assert ("lies within" in decision.reason) is (low < 5)
    assert ("less than half a pixel level above" in decision.reason) is (5 < low < 5.5)
    assert decide(strength(**bounds), covered).retrain is (low > 5)   # in fractions, any excess counts
    assert decide(strength(**bounds, levels=255), ()).retrain   # of nothing, all of it


@pytest.mark.parametrize("bad", [{"floor": 0}, {"floor": 0.4}, {"ceiling": 1.5}, {"ratio": 1.0}, {"ratio": 1.2},
                                 {"ceiling": math.nan}, {"ratio": math.nan}], ids=str)
def test_match_refuses_a_bad_grid(bad):
    with pytest.raises(InvalidInput):
        match(strength(), **bad)


@pytest.mark.parametrize("bad", [{"high": math.nan}, {"high": math.inf}, {"low": 0.0}, {"low": 0.2}, {"norm": "L1"}],
                         ids=str)
def test_match_refuses_a_bad_strength(bad):
    with pytest.raises(InvalidInput):
        match(strength(**bad))


def test_an_undefended_champion_is_retrained_at_the_match():
    decision = decide(strength(), ())
    assert decision.retrain and not decision.capped
    assert decision.threat == ThreatModel("Linf", match(strength()))
    assert "nothing" in decision.reason


@pytest.mark.parametrize(("covered", "retrain"), [(0.09, True), (0.0949, True), (0.095, False), (0.2, False)])
def test_only_the_lower_bound_decides(covered, retrain):
    decision = decide(strength(), (ThreatModel("Linf", covered),))
    assert decision.retrain is retrain
    assert f"{covered:.4g}" in decision.reason


def test_another_norm_covers_nothing():
    assert decide(strength(), (ThreatModel("L2", 2.0),)).retrain


@pytest.mark.parametrize("few", [None, strength(n=63)], ids=["none", "63"])
def test_too_few_inputs_decide_nothing(few):
    decision = decide(few, ())
    assert not decision.retrain and decision.threat is None
    assert "64" in decision.reason


def test_above_the_ceiling_it_is_capped_and_people_are_told():
    strong = strength(low=0.38, estimate=0.4, high=0.42)
    decision = decide(strong, (), ceiling=0.3)
    assert decision.retrain and decision.capped and decision.threat.epsilon == 0.3
    assert "people" in decision.reason
    again = decide(strong, (ThreatModel("Linf", 0.3),), ceiling=0.3)   # nothing higher may be trained for
    assert not again.retrain and again.capped


def test_harmless_changes_are_shift_and_never_a_retrain():
    decision = decide(strength(harmless=True), ())
    assert not decision.retrain and decision.threat is None
    assert "shift" in decision.reason


def test_decide_refuses_bad_values():
    with pytest.raises(InvalidInput):
        decide(strength(), (), minimum=0)
    with pytest.raises(InvalidInput):
        decide(strength(), (), ratio=2)


def test_changes_that_do_nothing_to_the_model_are_shift():
    decision = decide(strength(0.1, witnessed=False), ())
    assert not decision.retrain and decision.shift and "random" in decision.reason
    covered = decide(strength(0.1, witnessed=False), (ThreatModel("Linf", 0.2),))
    assert not covered.retrain and not covered.shift   # an attack that a robust champion shrugs off stays an attack
