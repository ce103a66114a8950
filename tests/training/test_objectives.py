"""Each objective's loss beside its formula written out again, and the settings' limits."""

import pytest
import torch

from redoubt.attacks import pgd
from redoubt.attacks.gradient import input_gradient
from redoubt.errors import InvalidInput
from redoubt.threat import ThreatModel
from redoubt.training import OBJECTIVES, TrainConfig
from redoubt.training.attack import Adversary, Plan

LINF = ThreatModel("Linf", 0.1)
X = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([0, 1, 2, 3, 4, 0])


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 5))


def darker(x, y, rows=slice(None)):
    return (x[rows] - 0.1).clamp(0, 1)


def divergence(model, x, other):
    """KL(p(x) || p(other)) of each image, from its definition."""
    p, q = (scores / scores.sum(1, keepdim=True) for scores in (model(x).exp(), model(other).exp()))
    return (p * (p / q).log()).sum(1)


def surprise(model, x):
    """Minus the log probability of each image's own class, from the definition of the softmax."""
    scores = model(x).exp()
    return -(scores[range(len(Y)), Y] / scores.sum(1)).log()


@pytest.mark.parametrize("lam", [0.5, 1.0, 3.0])
def test_losses_follow_their_formulas(model, lam):
    clean, attacked = surprise(model, X), surprise(model, darker(X, Y))
    expected = {
        "standard": clean,
        "pgd": attacked,
        "mixed": clean + lam * attacked,
        "half": torch.where(torch.arange(6) % 2 == 0, attacked, clean),
        "blend": torch.where(torch.arange(6) % 4 == 0, clean, attacked),
        "trades": clean + lam * divergence(model, X, darker(X, Y)),
        "fast": attacked,
    }
    assert expected.keys() == OBJECTIVES.keys()
    for name, value in expected.items():
        torch.testing.assert_close(OBJECTIVES[name](model, X, Y, darker, lam=lam), value)


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_an_objective_leaves_its_batch_alone_and_reaches_every_weight(model, name):
    x = X.clone()
    model.zero_grad()
    OBJECTIVES[name](model, x, Y, darker, lam=1.0).mean().backward()
    assert torch.equal(x, X)
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.parameters())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"objective": "magic"}, "unknown objective 'magic'.*blend, fast, half, mixed, pgd, standard, trades"),
        ({"objective": "standard", "threats": (LINF,)}, "takes no threat models"),
        ({"objective": "pgd"}, "at least one"),
        ({"precision": "float16"}, "unknown precision"),
        *(({name: value, "threats": (LINF,)}, name) for name, value in [
            ("epochs", 0), ("epochs", 1.5), ("batch_size", 0), ("steps", 0), ("steps", -3),
            ("learning_rate", 0), ("learning_rate", float("nan")), ("learning_rate", float("inf")),
            ("step_size", -1), ("lam", 0), ("weight_decay", -1e-4), ("average", 1.0), ("average", -0.1),
        ]),
    ],
    ids=str,
)
def test_settings_that_cannot_work_are_refused(settings, message):
    with pytest.raises(InvalidInput, match=message):
        TrainConfig(**settings)


def test_the_threats_are_kept_in_their_shortest_form():
    config = TrainConfig(threats=(LINF, ThreatModel("Linf", 0.05)))
    assert config.threats == (LINF,)


def test_an_attack_without_labels_climbs_the_divergence_from_the_own_prediction(model):
    """What TRADES attacks with: its gradient is that of KL(p(x) || p(x_adv)), by finite differences."""
    x, target = (X + 0.05).double(), model(X).softmax(1).detach().double()
    twin = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 5)).double()
    twin.load_state_dict(model.state_dict())
    gradient = input_gradient(twin, x, target)
    for pixel in (0, 17, 63):
        nudge = torch.zeros(64, dtype=torch.double)
        nudge[pixel] = 1e-6
        up, down = (divergence_from(target, twin(x + sign * nudge.view(1, 1, 8, 8))) for sign in (1, -1))
        torch.testing.assert_close(gradient.flatten(1)[:, pixel], ((up - down) / 2e-6).detach(), atol=1e-7, rtol=1e-5)


def divergence_from(p, logits):
    return (p * (p.log() - logits.log_softmax(1))).sum(1)


def test_smoothing_spreads_the_label(model):
    expected = 0.9 * surprise(model, X) + 0.1 * -model(X).log_softmax(1).mean(1)
    torch.testing.assert_close(OBJECTIVES["standard"](model, X, Y, darker, lam=1.0, smoothing=0.1), expected)


def test_both_sides_of_the_divergence_carry_gradients(model):
    got, expected = (torch.autograd.grad(loss.mean(), list(model.parameters())) for loss in (
        OBJECTIVES["trades"](model, X, Y, darker, lam=6.0),
        surprise(model, X) + 6.0 * divergence(model, X, darker(X, Y))))
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("name", sorted(set(OBJECTIVES) - {"standard"}))
def test_only_trades_attacks_without_labels(model, name):
    labels = []

    def watch(x, y, rows=slice(None)):
        labels.append(y)
        return darker(x, y, rows)

    OBJECTIVES[name](model, X, Y, watch, lam=1.0)
    assert len(labels) == 1
    assert (labels[0] is None) == (name == "trades")


def test_without_labels_the_adversary_leads_away_from_the_models_probabilities(model):
    noise = LINF.sample(X, torch.Generator().manual_seed(1))
    adversary = Adversary(model, Plan(threat=LINF, noise=noise, scale=None, single=False),
                          TrainConfig(threats=(LINF,), steps=3))
    x_adv = pgd(model, X, model(X).softmax(1).detach(), LINF, steps=3, start=noise, alpha=1.5 * LINF.epsilon / 3)
    assert torch.equal(adversary(X, None), x_adv)
    assert not torch.equal(x_adv, pgd(model, X, model(X).argmax(1), LINF, steps=3, start=noise, alpha=0.05))
