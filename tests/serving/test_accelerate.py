"""The frozen form of a model answers the same, is used where it is quicker, and is left aside where it is not."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from redoubt.bundle import open_bundle
from redoubt.models import Architecture, build
from serving import accelerate as room
from serving.accelerate import NEVER, Accelerated, accelerate
from serving.model import load


@pytest.fixture
def model():
    torch.manual_seed(0)
    shape = Architecture(name="compact-cnn", num_classes=10, channels=1, size=8, mean=(0.3,), std=(0.4,))
    return build(shape).eval().requires_grad_(False)


def quick(form: str):
    """A clock by which one form is the quicker one."""
    return lambda what, x: 1.0 if isinstance(what, nn.Module) and not isinstance(what, torch.jit.ScriptModule) \
        and form == "frozen" else 0.5


def test_it_answers_the_same(model, monkeypatch):
    monkeypatch.setattr(room, "_seconds", quick("frozen"))
    found = accelerate(model, (1, 8, 8))
    assert isinstance(found, Accelerated)
    assert found.least == 1
    with torch.inference_mode():
        for n in (1, 2, 7, 40):
            x = torch.rand(n, 1, 8, 8)
            torch.testing.assert_close(found(x), model(x), rtol=1e-4, atol=1e-5)


def test_where_it_is_no_quicker_the_model_itself_answers(model, monkeypatch):
    monkeypatch.setattr(room, "_seconds", quick("neither"))
    assert accelerate(model, (1, 8, 8)) is model


def test_a_form_that_answers_otherwise_is_left_aside(model, monkeypatch, caplog):
    monkeypatch.setattr(torch.jit, "optimize_for_inference", lambda traced: lambda x: traced(x) + torch.rand(10))
    assert accelerate(model, (1, 8, 8)) is model
    assert "answers otherwise" in caplog.text


def test_what_cannot_be_traced_is_served_as_it_is(monkeypatch):
    class Odd(nn.Module):
        def forward(self, x):
            raise ValueError("not while tracing") if torch.jit.is_tracing() else None

    odd = Odd()
    assert accelerate(odd, (1, 8, 8)) is odd


def test_what_was_measured_holds_for_the_next_version(make_bundle, other_model, untrained, monkeypatch):
    monkeypatch.setattr(room, "_seconds", quick("frozen"))
    first = load(open_bundle(untrained), "1", quick=True)
    assert first.forward.least == 1
    monkeypatch.setattr(room, "_seconds", None)   # whoever measures now fails, and serves the model as it is
    bundle = open_bundle(make_bundle(detector=False, model=other_model))
    second = load(bundle, "2", quick=True, like=first)
    assert second.forward.least == 1
    x = torch.rand(5, 1, 8, 8)
    torch.testing.assert_close(second.probabilities(x), bundle.model()(x).softmax(1))
    unlike = SimpleNamespace(bundle=SimpleNamespace(architecture=None))
    other = load(open_bundle(untrained), "3", quick=True, like=unlike)
    assert other.forward is other.model


def test_what_does_not_pay_is_not_traced(model, monkeypatch):
    monkeypatch.setattr(torch.jit, "trace", None)
    assert accelerate(model, (1, 8, 8), least=NEVER) is model


def test_on_a_cpu_a_forward_pass_takes_no_more_than_32_inputs(untrained):
    loaded, sizes = load(open_bundle(untrained), "1"), []

    def forward(x):
        sizes.append(len(x))
        return loaded.model(x)

    x = torch.rand(70, 1, 8, 8)
    found = replace(loaded, forward=forward).probabilities(x)
    assert sizes == [32, 32, 6]   # what a pass holds in memory grows with its inputs
    with torch.inference_mode():
        torch.testing.assert_close(found, loaded.model(x).softmax(1))
