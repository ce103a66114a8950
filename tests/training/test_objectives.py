"""Each objective's loss beside its formula written out again, and the settings' limits."""

import pytest
import torch

from redoubt.errors import InvalidInput
from redoubt.threat import ThreatModel
from redoubt.training import OBJECTIVES, TrainConfig

LINF = ThreatModel("Linf", 0.1)
X = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([0, 1, 2, 3, 4, 0])


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 5))


def darker(x, y):
    return (x - 0.1).clamp(0, 1)


def surprise(model, x):
    """Minus the log probability of each image's own class, from the definition of the softmax."""
    scores = model(x).exp()
    return -(scores[range(len(Y)), Y] / scores.sum(1)).log()


@pytest.mark.parametrize("lam", [0.5, 1.0, 3.0])
def test_losses_follow_their_formulas(model, lam):
    clean, attacked = surprise(model, X), surprise(model, darker(X, Y))
    expected = {
        "standard": clean.mean(),
        "pgd": attacked.mean(),
        "mixed": clean.mean() + lam * attacked.mean(),
        "half": (attacked[::2].sum() + clean[1::2].sum()) / 6,
    }
    assert expected.keys() <= OBJECTIVES.keys()
    for name, value in expected.items():
        torch.testing.assert_close(OBJECTIVES[name](model, X, Y, darker, lam=lam), value)


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_an_objective_leaves_its_batch_alone_and_reaches_every_weight(model, name):
    x = X.clone()
    model.zero_grad()
    OBJECTIVES[name](model, x, Y, darker, lam=1.0).backward()
    assert torch.equal(x, X)
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.parameters())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"objective": "magic"}, "unknown objective 'magic'.*blend, half, mixed, pgd, standard"),
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
