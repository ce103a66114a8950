"""Threat models: how they are written, projected, sampled, and kept as a set."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from redoubt.errors import InvalidInput
from redoubt.threat import (
    ThreatModel,
    cover,
    covered_epsilon,
    covers,
    dump_threats,
    load_threats,
    parse_epsilon,
)

threats = st.builds(ThreatModel, st.sampled_from(["L2", "Linf"]), st.floats(1e-3, 1))
perturbations = st.integers(0, 2**31).map(
    lambda seed: torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(seed))
)


@pytest.mark.parametrize(
    ("text", "value"), [("0.1", 0.1), ("8/255", 8 / 255), (" 1 / 16 ", 1 / 16), (0.2, 0.2), ("1", 1.0), ("1e-3", 1e-3)]
)
def test_an_epsilon_is_read_as_number_or_fraction(text, value):
    assert parse_epsilon(text) == value


@pytest.mark.parametrize(
    "text", ["", "a lot", "8/", "1/2/3", "8/0", None, [0.1], "nan", "inf", math.nan, 0, "0/255", -0.1]
)
def test_what_is_no_epsilon_is_refused(text):
    with pytest.raises(InvalidInput):
        parse_epsilon(text)


def test_above_one_is_refused_in_linf_with_advice_and_allowed_in_l2():
    with pytest.raises(InvalidInput, match="8/255 rather than 8"):
        parse_epsilon("8")
    assert parse_epsilon("8", norm="L2") == 8


def test_an_unknown_norm_names_the_valid_ones():
    with pytest.raises(InvalidInput, match=r"'L3'.*L2, Linf"):
        ThreatModel("L3", 0.1)


@settings(deadline=None, max_examples=40)
@given(threats, perturbations)
def test_projection_lands_inside_and_stays(threat, delta):
    inside = threat.project(delta)
    assert (threat.size(inside) <= threat.epsilon * (1 + 1e-5)).all()
    torch.testing.assert_close(threat.project(inside), inside)
    small = delta * (0.5 * threat.epsilon / threat.size(delta).max())
    torch.testing.assert_close(threat.project(small), small)


def test_projection_finds_the_nearest_point():
    delta = torch.tensor([[[[3.0, 4.0]]]])
    torch.testing.assert_close(ThreatModel("L2", 1).project(delta), torch.tensor([[[[0.6, 0.8]]]]))
    torch.testing.assert_close(ThreatModel("Linf", 1).project(-delta), torch.tensor([[[[-1.0, -1.0]]]]))


@settings(deadline=None, max_examples=40)
@given(threats, perturbations)
def test_no_step_of_unit_size_gains_more_than_the_steepest(threat, gradient):
    step = threat.steepest(gradient)
    unit = ThreatModel(threat.norm, 1)
    assert torch.allclose(unit.size(step), torch.ones(len(step)))
    rival = unit.sample(gradient, torch.Generator().manual_seed(0))
    gain, other = ((gradient * d).flatten(1).sum(1) for d in (step, rival))
    assert (gain >= other).all()


@pytest.mark.parametrize("size", [1e-8, 1e-15, 1e-30])
def test_a_vanishing_gradient_still_gives_a_whole_step(size):
    gradient = size * torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(ThreatModel("L2", 1).steepest(gradient).flatten(1).norm(dim=1), torch.ones(2))


def test_a_zero_gradient_gives_no_step():
    assert not ThreatModel("L2", 1).steepest(torch.zeros(2, 1, 4, 4)).any()


@pytest.mark.parametrize("norm", ["L2", "Linf"])
def test_samples_fill_the_ball_evenly(norm):
    threat = ThreatModel(norm, 0.5)
    delta = threat.sample(torch.empty(4000, 1, 1, 2), torch.Generator().manual_seed(1))
    assert (threat.size(delta) <= 0.5 + 1e-6).all()
    half = (threat.size(delta) <= 0.25).float().mean().item()   # half the radius holds a quarter of a flat ball
    assert half == pytest.approx(0.25, abs=0.03)
    assert delta.mean().abs() < 0.02


def test_a_set_keeps_the_largest_epsilon_of_each_norm():
    a, b, c = ThreatModel("Linf", 0.1), ThreatModel("Linf", 0.2), ThreatModel("L2", 0.5)
    assert cover([a, c], [b]) == (c, b) == cover([b, c])
    assert cover() == () == cover([])
    assert covers([b], a)
    assert not covers([a], b)
    assert not covers([b], c)
    assert covers([a], a)
    assert covered_epsilon([a, c], "Linf") == 0.1
    assert covered_epsilon([a], "L2") == 0.0


def test_a_set_survives_being_written_and_read():
    threats = (ThreatModel("L2", 0.5), ThreatModel("Linf", 8 / 255))
    assert load_threats(dump_threats(threats)) == threats
    assert load_threats("[]") == ()


@pytest.mark.parametrize(
    "text", ["", "null", "{}", "3", '["Linf", 0.1]', '[["Linf"]]', '[["Linf", null]]', '[["L0", 0.1]]']
)
def test_a_set_that_is_none_is_refused(text):
    with pytest.raises(InvalidInput):
        load_threats(text)
