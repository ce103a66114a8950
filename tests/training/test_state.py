"""The state of a run: what falling back does, that all of it is written down, and which weights a look prefers."""

import copy

import pytest
import torch
from training_support import LINF, run

from redoubt.models import Architecture, build
from redoubt.training import Plugins, TrainConfig
from redoubt.training.distributed import World
from redoubt.training.state import State
from redoubt.training.validate import validate


def state(model=None, **settings):
    torch.manual_seed(0)
    model = model or build(
        Architecture(name="compact-cnn", num_classes=10, channels=1, size=8, mean=(0.3,), std=(0.4,)))
    return State(copy.deepcopy(model), TrainConfig(threats=(LINF,), **settings), total=10)


def step(here):
    """Anything that moves the weights and fills the optimizer."""
    here.optimizer.zero_grad()
    here.model(torch.rand(4, 1, 8, 8)).square().mean().backward()
    here.optimizer.step()
    here.schedule.step()
    here.advance()


def test_falling_back_returns_to_the_best_weights_and_forgets_the_moments():
    here = state()
    step(here)
    here.keep({"epoch": 1, "robust_accuracy": 0.5, "clean_accuracy": 0.9}, here.model)
    best = copy.deepcopy(here.model.state_dict())
    step(here)
    assert not torch.equal(here.model.body.head[1].weight, best["body.head.1.weight"])
    here.fall_back()
    for module in (here.model, here.average):
        assert all(torch.equal(value, best[name]) for name, value in module.state_dict().items())
    assert not here.optimizer.state
    assert here.fallback


def test_everything_of_a_state_survives_being_written_down():
    first, second = state(), state(seed=1)
    step(first)
    first.keep({"epoch": 1, "robust_accuracy": 0.1 + 0.2, "clean_accuracy": 1 / 3}, first.average)
    first.fallback, first.stale, first.seconds, first.total = True, 3, 1.1, 0.7
    second.restore(first.tensors(), first.values())
    assert second.values() == first.values()
    one, other = first.tensors(), second.tensors()
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert (second.fallback, second.stale, second.best_key) == (True, 3, first.best_key)
    torch.manual_seed(5)
    step(first)
    torch.manual_seed(5)
    step(second)
    assert all(torch.equal(a, b) for a, b in zip(first.model.parameters(), second.model.parameters(), strict=True))


@pytest.mark.parametrize("broken", ["raw", "average"])
def test_a_look_takes_the_better_of_raw_and_averaged_weights(digits, digits_model, broken):
    here = state(digits_model)
    with torch.no_grad():
        for parameter in (here.model if broken == "raw" else here.average).parameters():
            parameter.zero_()
    row, candidate = validate(here, digits.tensors("validation"), World())
    assert row["weights"] != broken
    assert candidate is (here.average if broken == "raw" else here.model)
    assert row["clean_accuracy"] > 0.9


def test_weight_perturbation_counts_a_batch_once_in_the_statistics(digits):
    result = run(digits, name="preactresnet-18", limit=48, batch_size=16, average=0.0, threats=(LINF,), steps=1,
                 plugins=Plugins(weight_perturbation=0.005))
    assert result.model.body.norm.num_batches_tracked == 3
