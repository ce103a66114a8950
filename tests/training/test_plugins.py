"""Plug-ins: each by its formula, all off by default, and all of them together with every objective."""

import json
import math

import pytest
import torch
from training_support import L2, LINF, run, untimed, weights

from redoubt.attacks import pgd
from redoubt.errors import InvalidInput
from redoubt.training import OBJECTIVES, Plugins, TrainConfig, load_plugins
from redoubt.training.attack import Adversary, plan
from redoubt.training.plugins import class_scale, reduce
from redoubt.training.weights import buffers_kept, uphill

X = 0.2 + 0.6 * torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])


def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Flatten(),
                               torch.nn.Linear(144, 3)).eval()


def test_class_adaptive_epsilon_follows_the_formula():
    labels = torch.tensor([0] * 100 + [1] * 10 + [2])
    root = [math.sqrt(math.log(100 / k)) for k in (100, 10, 1)]
    mean = (100 * root[0] + 10 * root[1] + root[2]) / 111
    expected = torch.tensor([0.7 + 0.3 * r / mean for r in root])
    scale = class_scale(labels, 0.3, 3)
    torch.testing.assert_close(scale, expected)
    assert 0 < scale[0] < 1 < scale[1] < scale[2], "the rarest class gets the largest epsilon"
    assert scale[labels].mean() == pytest.approx(1)
    assert torch.equal(class_scale(torch.tensor([0, 1, 2]), 0.5, 3), torch.ones(3))


@pytest.mark.parametrize("threat", [LINF, L2], ids=str)
def test_a_scale_gives_every_image_a_ball_of_its_own(threat):
    scale = torch.linspace(0.2, 1.5, 8)
    draw = threat.sample(X, torch.Generator().manual_seed(1), scale)
    torch.testing.assert_close(draw, threat.sample(X, torch.Generator().manual_seed(1)) * scale.view(-1, 1, 1, 1))
    far = threat.project(100 * draw, scale)
    torch.testing.assert_close(threat.size(far), threat.epsilon * scale)
    torch.testing.assert_close(threat.project(draw, scale), draw)
    x_adv = pgd(network(), X, Y, threat, steps=4, scale=scale, generator=torch.Generator().manual_seed(2))
    size = threat.size(x_adv - X)
    assert (size <= threat.epsilon * scale * 1.0001).all()
    assert size[-1] > 1.05 * threat.epsilon, "a scale above 1 is used, too"
    short = pgd(network(), X, Y, threat, steps=1, alpha=1e-3, start=torch.zeros_like(X), scale=scale) - X
    torch.testing.assert_close(threat.size(short), 1e-3 * scale, rtol=0.01, atol=1e-6)
    alone = pgd(network(), X, Y, threat, steps=4, start=torch.zeros_like(X), scale=torch.ones(8))
    assert torch.equal(alone, pgd(network(), X, Y, threat, steps=4, random_start=False))


def test_epsilon_grows_linearly_over_the_warm_up():
    config = TrainConfig(threats=(LINF,), plugins=Plugins(warmup=0.5))
    generator = torch.Generator().manual_seed(0)
    grown = [plan(config, step, 8, X, Y, generator, class_scale=None, single=False) for step in range(8)]
    assert [p.threat.epsilon for p in grown] == pytest.approx([0.025, 0.05, 0.075, 0.1, 0.1, 0.1, 0.1, 0.1])
    assert all(LINF.size(p.noise).max() <= p.threat.epsilon for p in grown)
    scaled = plan(config, 7, 8, X, Y, generator, class_scale=torch.tensor([1.0, 0.5, 0.1]), single=False)
    assert torch.equal(scaled.scale, torch.tensor([1.0, 0.5, 0.1])[Y])


def test_reweighting_is_its_formula_and_its_gradient_a_softmax():
    losses = torch.tensor([0.1, 2.0, 0.7, 0.0], dtype=torch.double, requires_grad=True)
    value = reduce(losses, 1.0, 0.5)
    assert value.item() == pytest.approx(0.5 * math.log(sum(math.exp(2 * v) for v in (0.1, 2.0, 0.7, 0.0)) / 4))
    value.backward()
    torch.testing.assert_close(losses.grad, (2 * losses).softmax(0).detach())
    assert reduce(losses, 1.0, 1e4).item() == pytest.approx(losses.mean().item(), abs=1e-3)
    assert reduce(losses, 0.25, 0.0).item() == pytest.approx(losses.mean().item() / 4)


def test_weights_go_uphill_by_their_share_and_come_back():
    model = network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    loss = torch.nn.functional.cross_entropy(model(X), Y)
    loss.backward()
    gradient = model[3].weight.grad.clone()
    with pytest.raises(KeyError), uphill(model, 0.01):
        moved = model[3].weight - before["3.weight"]
        torch.testing.assert_close(moved, 0.01 * before["3.weight"].norm() * gradient / gradient.norm())
        assert torch.equal(model[3].bias, before["3.bias"])
        assert model[3].weight.grad is None
        assert torch.nn.functional.cross_entropy(model(X), Y) > loss
        raise KeyError
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_second_pass_leaves_the_statistics_alone():
    model = network().train()
    before = model[1].running_mean.clone()
    with buffers_kept(model):
        model(X)
        assert not torch.equal(model[1].running_mean, before)
    assert torch.equal(model[1].running_mean, before)
    assert model[1].num_batches_tracked == 0


def test_the_attack_is_made_once_however_often_the_loss_is_looked_at(monkeypatch):
    calls = []
    monkeypatch.setattr("redoubt.training.attack.pgd", lambda *a, **k: calls.append(1) or a[1])
    config = TrainConfig(threats=(LINF,))
    attack = plan(config, 0, 8, X, Y, torch.Generator(), class_scale=None, single=False)
    foe = Adversary(network(), attack, config)
    foe(X, Y)
    foe(X, Y)
    assert len(calls) == 1


ALL = {"label_smoothing": 0.1, "warmup": 1.0, "class_adaptive": 0.2, "reweight": 1.0, "weight_perturbation": 0.005,
       "flip": True, "crop": 1, "patience": 5}


@pytest.mark.parametrize("name", [name for name in ALL if name != "patience"])
def test_each_plugin_changes_the_result_and_a_seed_still_fixes_it(digits, name):
    plain = run(digits, threats=(LINF,), limit=130)
    settings = {"threats": (LINF,), "limit": 130, "plugins": Plugins(**{name: ALL[name]})}
    once, twice = run(digits, **settings), run(digits, **settings)
    assert torch.equal(weights(once), weights(twice))
    assert not torch.equal(weights(once), weights(plain))


@pytest.mark.parametrize("objective", sorted(OBJECTIVES))
def test_plugins_compose_with_each_other_and_every_objective(digits, objective):
    chosen, threats = dict(ALL), (LINF, L2)
    if objective == "standard":
        threats = ()
        del chosen["warmup"], chosen["class_adaptive"]
    result = run(digits, objective=objective, threats=threats, limit=200, epochs=2, plugins=Plugins(**chosen))
    assert weights(result).isfinite().all()
    assert untimed(result.history)[-1]["loss"] > 0


def test_plugins_are_read_from_json():
    assert load_plugins("{}") == Plugins()
    assert load_plugins('{"crop": 2}', flip=True, crop=4) == Plugins(flip=True, crop=2)
    assert load_plugins(json.dumps(ALL)).to_json() == ALL
    assert Plugins(flip=False, crop=0).to_json() == {}


@pytest.mark.parametrize(("text", "message"), [
    ("smooth", "must be a JSON object such as"),
    ("[1]", "must be a JSON object such as"),
    ('{"smoothing": 0.1}', "unknown plug-in smoothing: valid ones are class_adaptive, crop"),
    *((json.dumps({name: value}), f"plug-in {name} must be") for name, value in [
        ("label_smoothing", 1), ("label_smoothing", -0.1), ("label_smoothing", "much"), ("label_smoothing", True),
        ("warmup", 1.1), ("class_adaptive", 1), ("reweight", -1), ("reweight", float("nan")),
        ("reweight", float("inf")), ("weight_perturbation", 1), ("flip", 1), ("crop", 1.5), ("crop", -1),
        ("patience", True)]),
])
def test_plugins_that_cannot_work_are_refused(text, message):
    with pytest.raises(InvalidInput, match=message):
        load_plugins(text)


@pytest.mark.parametrize("name", ["warmup", "class_adaptive"])
def test_an_undefended_model_has_no_epsilon_to_change(name):
    with pytest.raises(InvalidInput, match="'standard' has none"):
        TrainConfig(objective="standard", plugins=Plugins(**{name: 0.5}))
