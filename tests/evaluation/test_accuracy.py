"""Withstanding PGD: never more images than stand at its last iterate, and the same ones wherever they can be told."""

import pytest
import torch

from redoubt.attacks import pgd
from redoubt.evaluation.accuracy import correct, withstands_pgd
from redoubt.threat import ThreatModel


@pytest.mark.parametrize("threat", [ThreatModel("Linf", 0.1), ThreatModel("L2", 0.8)], ids=str)
@pytest.mark.parametrize("which", ["digits_model", "robust_digits_model"])
def test_withstanding_is_stricter_than_the_last_iterate(which, threat, request, digits):
    model, (x, y) = request.getfixturevalue(which), digits.tensors("test")
    stood = withstands_pgd(model, x, y, threat, generator=torch.Generator().manual_seed(3))
    generator = torch.Generator().manual_seed(3)
    last = correct(model, x, y, attack=lambda m, x, y: pgd(m, x, y, threat, generator=generator))
    assert not (stood & ~last).any(), "an image that stands at every iterate stands at the last"
    assert (last & ~stood).float().mean() < 0.1
    assert 0.05 < stood.float().mean() < correct(model, x, y).float().mean()


def test_a_tiny_ball_leaves_the_clean_accuracy(digits_model, digits):
    x, y = digits.tensors("test")
    stood = withstands_pgd(digits_model, x, y, ThreatModel("Linf", 1e-6))
    assert torch.equal(stood, correct(digits_model, x, y))


def test_when_every_image_falls(digits_model, digits):
    x, y = digits.tensors("test", 150)
    assert not withstands_pgd(digits_model, x, y, ThreatModel("Linf", 0.6)).any()
