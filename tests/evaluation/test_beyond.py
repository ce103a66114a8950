"""Calibration, corruptions, visibility, overlap and the surrogate: against closed forms and by what must hold."""

import sys

import numpy as np
import pytest
import torch
from torch import nn

from redoubt.errors import InvalidInput
from redoubt.evaluation.accuracy import accuracy
from redoubt.evaluation.calibration import calibration
from redoubt.evaluation.corruptions import SEVERITIES, corrupt, corruption_accuracy
from redoubt.evaluation.imperceptibility import imperceptibility
from redoubt.evaluation.overlap import unseen
from redoubt.evaluation.suites import other_norms, withstands_transfer
from redoubt.evaluation.surrogate import fit_surrogate, standard_epoch_seconds
from redoubt.threat import ThreatModel


def logits_of(probability, n):
    """Two classes, the first with the given probability."""
    return torch.tensor([[probability, 1 - probability]], dtype=torch.float64).log().expand(n, 2)


def test_calibration_by_hand():
    # 80 % sure and right 9 of 10 times; 60 % sure and right 5 of 10 times
    logits = torch.cat([logits_of(0.8, 10), logits_of(0.6, 10)])
    y = torch.tensor([0] * 9 + [1] + [0] * 5 + [1] * 5)
    found = calibration(logits, y)
    assert found["ece"] == pytest.approx(0.5 * 0.1 + 0.5 * 0.1)
    assert found["brier"] == pytest.approx((9 * 2 * 0.2**2 + 2 * 0.8**2 + 5 * 2 * 0.4**2 + 5 * 2 * 0.6**2) / 20)
    assert found["mean_confidence"] == pytest.approx(0.7)
    assert sum(row["n"] for row in found["bins"]) == 20
    assert [row["accuracy"] for row in found["bins"] if row["n"]] == pytest.approx([0.5, 0.9])


def test_a_model_that_is_always_sure_and_right_is_calibrated():
    found = calibration(torch.eye(3).double() * 1e4, torch.arange(3))
    assert (found["ece"], found["brier"]) == (0, 0)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (1, 28, 28)])
@pytest.mark.parametrize("kind", SEVERITIES)
def test_corruptions_stay_pictures_and_grow(kind, shape):
    x = torch.rand(4, *shape, generator=torch.Generator().manual_seed(0)) * 0.6 + 0.1
    sizes = [float((corrupt(kind, x, amount) - x).square().mean()) for amount in SEVERITIES[kind]]
    assert sizes == sorted(sizes)
    assert sizes[0] > 0
    worst = corrupt(kind, x, SEVERITIES[kind][-1])
    assert worst.shape == x.shape
    assert 0 <= worst.min() <= worst.max() <= 1


def test_without_torchvision_the_noise_is_left(digits_model, digits, monkeypatch):
    x, y = digits.tensors("test", 20)
    noise = [row for row in corruption_accuracy(digits_model, x, y)["rows"] if row["corruption"] == "noise"]
    monkeypatch.setitem(sys.modules, "torchvision", None)
    monkeypatch.setattr("redoubt.evaluation.corruptions.find_spec", lambda name: None)
    assert corruption_accuracy(digits_model, x, y)["rows"] == noise


def test_corruption_accuracy_counts_what_is_right(digits_model, digits):
    x, y = digits.tensors("test", 60)
    found = corruption_accuracy(digits_model, x, y)
    row = next(row for row in found["rows"] if (row["corruption"], row["severity"]) == ("contrast", 4))
    assert row["accuracy"] == accuracy(digits_model, corrupt("contrast", x, row["amount"]), y)
    assert found["mean"] == pytest.approx(np.mean([row["accuracy"] for row in found["rows"]]))
    assert found == corruption_accuracy(digits_model, x, y), "the same seed, the same noise"


def test_odd_channels_leave_out_what_needs_colour():
    x = torch.rand(6, 2, 8, 8)
    model = nn.Sequential(nn.Flatten(), nn.Linear(128, 3))
    kinds = {row["corruption"] for row in corruption_accuracy(model, x, torch.zeros(6, dtype=torch.long))["rows"]}
    assert kinds == {"noise", "blur"}


@pytest.mark.parametrize("threat", [ThreatModel("Linf", 0.1), ThreatModel("L2", 0.5)], ids=str)
def test_visibility_stays_inside_the_threat_model(digits_model, digits, threat):
    x, y = digits.tensors("test", 20)
    found = imperceptibility(digits_model, x, y, threat)
    assert found["l2" if threat.norm == "L2" else "linf"]["high"] <= threat.epsilon + 1e-5
    assert 0 < found["ssim"]["low"] <= found["ssim"]["mean"] < 1
    tiny = imperceptibility(digits_model, x, y, ThreatModel(threat.norm, 1e-6))
    assert tiny["ssim"]["mean"] == pytest.approx(1)


def test_twins_of_training_pictures_are_found():
    images = np.random.default_rng(0).integers(0, 255, (3000, 1, 8, 8), dtype=np.uint8)
    train, test = images[:1000], images[1000:]
    assert unseen(test, train).all()
    test = np.concatenate([test, train[:2]])
    assert unseen(test, train).tolist() == [True] * 2000 + [False] * 2
    with pytest.raises(InvalidInput, match="3 of the 2003 evaluation pictures were trained on"):
        unseen(np.concatenate([test, train[5:6]]), train)
    with pytest.raises(InvalidInput, match="1 of the 50"):
        unseen(np.concatenate([images[2000:2049], train[:1]]), train)


def test_a_surrogate_learns_and_its_attacks_transfer(digits_model, digits):
    torch.manual_seed(3)
    wanted = torch.rand(2)
    torch.manual_seed(3)
    surrogate = fit_surrogate(digits_model.architecture, *digits.tensors("train"), epochs=6)
    assert torch.equal(torch.rand(2), wanted), "the global generator is left alone"
    x, y = digits.tensors("test")
    assert accuracy(surrogate, x, y) > 0.7
    stood = withstands_transfer(digits_model, surrogate, x, y, ThreatModel("Linf", 0.2))
    assert stood.float().mean() < accuracy(digits_model, x, y) - 0.1


def test_timing_a_standard_epoch_leaves_the_model_alone(digits_model, digits):
    before = {name: tensor.clone() for name, tensor in digits_model.state_dict().items()}
    seconds = standard_epoch_seconds(digits_model, *digits.tensors("train", 64), 640)
    assert 0 < seconds < 60
    assert all(torch.equal(before[name], tensor) for name, tensor in digits_model.state_dict().items())
    assert not digits_model.training


def test_the_other_norm_is_about_as_hard():
    assert other_norms((ThreatModel("Linf", 8 / 255),), (3, 32, 32))[0].epsilon == pytest.approx(0.435, abs=1e-3)
    assert other_norms((ThreatModel("L2", 0.5),), (3, 32, 32))[0].epsilon == pytest.approx(0.0361, abs=1e-4)
    assert other_norms((ThreatModel("L2", 0.5), ThreatModel("Linf", 0.1)), (1, 8, 8)) == ()
