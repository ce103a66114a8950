"""The attacks beside independent references: the Adversarial Robustness Toolbox, and finite differences."""

import copy
import logging

import numpy as np
import pytest
import torch
from art.attacks.evasion import FastGradientMethod, MomentumIterativeMethod, ProjectedGradientDescentPyTorch
from art.estimators.classification import PyTorchClassifier
from torch import nn

from redoubt.attacks import fgsm, momentum_pgd, pgd
from redoubt.attacks.gradient import input_gradient
from redoubt.threat import ThreatModel

logging.getLogger("art").setLevel(logging.ERROR)
CASES = [("Linf", 0.1), ("L2", 0.15)]


@pytest.fixture(scope="module")
def batch(digits):
    """Forty test images pulled in from the rim of [0, 1]. There no attack of these sizes is clipped, and in L2
    clipping before projecting (as ART does) or after (as we do) is the same."""
    x, y = digits.tensors("test", limit=40)
    return 0.2 + 0.6 * x, y


@pytest.fixture(scope="module")
def reference(digits_model):
    return PyTorchClassifier(
        copy.deepcopy(digits_model), nn.CrossEntropyLoss(reduction="sum"), (1, 8, 8), 10, clip_values=(0.0, 1.0),
        device_type="cpu",
    )


def _art(attack, x, y):
    return torch.from_numpy(np.asarray(attack.generate(x.numpy(), y.numpy())))


def _norm(threat):
    return np.inf if threat.norm == "Linf" else 2


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("targeted", [False, True])
def test_fgsm_agrees_with_art(digits_model, reference, batch, case, targeted):
    x, y = batch
    y = (y + 1) % 10 if targeted else y
    threat = ThreatModel(*case)
    theirs = _art(FastGradientMethod(reference, norm=_norm(threat), eps=threat.epsilon, targeted=targeted), x, y)
    torch.testing.assert_close(fgsm(digits_model, x, y, threat, targeted=targeted), theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("targeted", [False, True])
def test_pgd_agrees_with_art(digits_model, reference, batch, case, targeted):
    x, y = batch
    y = (y + 1) % 10 if targeted else y
    threat = ThreatModel(*case)
    theirs = _art(ProjectedGradientDescentPyTorch(
        reference, norm=_norm(threat), eps=threat.epsilon, eps_step=threat.epsilon / 4, max_iter=10,
        targeted=targeted, num_random_init=0, verbose=False,
    ), x, y)
    ours = pgd(digits_model, x, y, threat, steps=10, alpha=threat.epsilon / 4, random_start=False, targeted=targeted)
    torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=0)


def test_pgd_agrees_with_art_where_images_touch_the_rim(digits_model, reference, digits):
    x, y = digits.tensors("test", limit=40)
    theirs = _art(ProjectedGradientDescentPyTorch(
        reference, norm=np.inf, eps=0.2, eps_step=0.05, max_iter=10, num_random_init=0, verbose=False), x, y)
    ours = pgd(digits_model, x, y, ThreatModel("Linf", 0.2), steps=10, alpha=0.05, random_start=False)
    torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=0)


@pytest.mark.parametrize("decay", [0.5, 1.0])
def test_momentum_agrees_with_art(digits_model, reference, batch, decay):
    x, y = batch
    theirs = _art(MomentumIterativeMethod(
        reference, norm=np.inf, eps=0.1, eps_step=0.01, decay=decay, max_iter=10, verbose=False), x, y)
    ours = momentum_pgd(digits_model, x, y, ThreatModel("Linf", 0.1), steps=10, decay=decay)
    torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=0)


def test_the_gradient_agrees_with_finite_differences():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(64, 5)).double()
    x, y = torch.rand(2, 1, 6, 6, dtype=torch.float64), torch.tensor([1, 4])
    gradient, h = input_gradient(model, x, y), 1e-6
    for place in [(0, 0, 0, 0), (0, 0, 3, 2), (1, 0, 5, 5)]:
        up, down = x.clone(), x.clone()
        up[place] += h
        down[place] -= h
        high, low = (nn.functional.cross_entropy(model(z), y, reduction="sum").item() for z in (up, down))
        assert gradient[place].item() == pytest.approx((high - low) / (2 * h), rel=1e-5)


def test_an_attack_leaves_no_trace_on_the_model(digits_model, batch):
    model = copy.deepcopy(digits_model)
    model.zero_grad(set_to_none=True)
    pgd(model, *batch, ThreatModel("Linf", 0.1), steps=3)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, digits_model.state_dict()[name]) for name, value in model.state_dict().items())
