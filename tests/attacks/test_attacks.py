"""What every attack must hold to, whatever the model: its bounds, its purpose, its seed."""

import pytest
import torch
import torch.nn.functional as F

from redoubt.attacks import ATTACKS, fgsm, get_attack, holds_whole_levels, momentum_pgd, on_lattice, pgd, transfer
from redoubt.attacks.gradient import ascent
from redoubt.errors import InvalidInput
from redoubt.evaluation.accuracy import accuracy
from redoubt.threat import ThreatModel

THREATS = [ThreatModel("Linf", 8 / 255), ThreatModel("Linf", 0.3), ThreatModel("L2", 0.5), ThreatModel("L2", 3.0)]


@pytest.fixture(scope="module")
def batch(digits):
    return digits.tensors("test", limit=60)


def _generator(seed=0):
    return torch.Generator().manual_seed(seed)


def _loss(model, x, y):
    with torch.no_grad():
        return F.cross_entropy(model(x), y, reduction="none")


@pytest.mark.parametrize("threat", THREATS, ids=str)
@pytest.mark.parametrize("name", sorted(ATTACKS))
@pytest.mark.parametrize("targeted", [False, True])
def test_every_attack_stays_in_its_ball_and_among_pixels(digits_model, batch, name, threat, targeted):
    x, y = batch
    x_adv = get_attack(name)(digits_model, x, y, threat, targeted=targeted, generator=_generator())
    assert x_adv.shape == x.shape
    assert x_adv.dtype == x.dtype
    assert not x_adv.requires_grad
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1
    assert (threat.size(x_adv - x) <= threat.epsilon * (1 + 1e-5) + 1e-6).all()


@pytest.mark.parametrize("name", sorted(ATTACKS))
@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_every_attack_raises_the_loss_and_targeted_lowers_the_target_s(digits_model, batch, name, norm):
    x, y = batch
    threat = ThreatModel(norm, 0.15 if norm == "Linf" else 0.8)
    attack, target = get_attack(name), (y + 1) % 10
    x_adv = attack(digits_model, x, y, threat, generator=_generator())
    x_to = attack(digits_model, x, target, threat, targeted=True, generator=_generator())
    assert (_loss(digits_model, x_adv, y) > _loss(digits_model, x, y)).float().mean() > 0.95
    assert (_loss(digits_model, x_to, target) < _loss(digits_model, x, target)).float().mean() > 0.95


def test_iterating_is_stronger_than_one_step(digits_model, digits):
    x, y = digits.tensors("test")
    threat = ThreatModel("Linf", 0.15)
    one, many, momentum = (
        accuracy(digits_model, x, y, attack=lambda m, x, y, a=a: a(m, x, y, threat, generator=_generator()))
        for a in (fgsm, pgd, momentum_pgd)
    )
    assert many < one
    assert momentum < one


@pytest.mark.parametrize("targeted", [False, True])
def test_more_restarts_are_never_weaker(digits_model, batch, targeted):
    x, y = batch
    threat, sign = ThreatModel("Linf", 0.1), -1 if targeted else 1
    losses = [
        sign * _loss(digits_model, pgd(digits_model, x, y, threat, steps=3, restarts=n, targeted=targeted,
                                       generator=_generator()), y)
        for n in (1, 2, 5)
    ]
    assert (losses[1] >= losses[0] - 1e-6).all()
    assert (losses[2] >= losses[1] - 1e-6).all()
    assert (losses[2] > losses[0] + 1e-6).any()


def test_an_attack_depends_on_its_seed_alone(digits_model, batch):
    threat = ThreatModel("Linf", 0.1)
    first, again, other = (pgd(digits_model, *batch, threat, steps=2, generator=_generator(s)) for s in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_an_image_is_attacked_the_same_alone_and_in_company(digits_model, batch):
    x, y = batch
    threat = ThreatModel("L2", 0.5)
    together = pgd(digits_model, x, y, threat, steps=3, random_start=False)
    alone = pgd(digits_model, x[:1], y[:1], threat, steps=3, random_start=False)
    torch.testing.assert_close(alone, together[:1], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "settings", [{"steps": 0}, {"restarts": 0}, {"alpha": 0}, {"alpha": -0.1}, {"alpha": float("nan")}], ids=str
)
def test_impossible_settings_are_refused(digits_model, batch, settings):
    with pytest.raises(InvalidInput, match="steps >= 1"):
        pgd(digits_model, *batch, ThreatModel("Linf", 0.1), **settings)


def test_an_unknown_attack_names_the_valid_ones():
    with pytest.raises(InvalidInput, match=r"'deepfool'.*fgsm, momentum, pgd"):
        get_attack("deepfool")


def test_transfer_hurts_more_than_noise_and_less_than_knowing_the_model(digits_model, robust_digits_model, digits):
    x, y = digits.tensors("test")
    threat = ThreatModel("Linf", 0.25)
    noise = (x + threat.epsilon * threat.sample(x, _generator()).sign()).clamp(0, 1)
    carried = transfer(robust_digits_model, x, y, threat)
    known = momentum_pgd(digits_model, x, y, threat)
    shares = [accuracy(digits_model, z, y) for z in (noise, carried, known)]
    assert shares[0] > shares[1] > shares[2]
    torch.testing.assert_close(transfer(digits_model, x, y, threat, attack=fgsm), fgsm(digits_model, x, y, threat))


@pytest.mark.parametrize("levels", [16, 255])
def test_the_lattice_holds_whole_levels_near_the_given_pixels(levels):
    x = torch.rand(5, 1, 8, 8, generator=_generator())
    rounded = on_lattice(x, levels)
    torch.testing.assert_close(rounded * levels, (rounded * levels).round(), atol=1e-4, rtol=0)
    assert (rounded - x).abs().max() <= 0.5 / levels + 1e-6
    assert torch.equal(on_lattice(rounded, levels), rounded)
    assert rounded.min() >= 0
    assert rounded.max() <= 1
    assert holds_whole_levels(rounded, levels).all() and not holds_whole_levels(x, levels).any()
    sent = torch.cat([(rounded * 1e4).round() / 1e4, rounded + 0.1 / levels])   # four decimals; a tenth of a level off
    assert holds_whole_levels(sent, levels).tolist() == [True] * 5 + [False] * 5
    assert holds_whole_levels(x[:0], levels).shape == (0,)


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_a_step_goes_up_and_comes_back_into_the_ball_and_the_pixels(norm, scaled):
    x, gradient = torch.rand(8, 3, 5, 5, generator=_generator()), torch.randn(8, 3, 5, 5, generator=_generator(1))
    at = torch.rand(8, 3, 5, 5, generator=_generator(2))
    x[0], gradient[1] = x[0].round(), 0.0   # at the edge of the range; no way up
    threat, scale = ThreatModel(norm, 0.2), torch.linspace(0.1, 2, 8) if scaled else None
    before = gradient.clone()
    moved = ascent(x, threat, 0.07, scale)(at, gradient)
    torch.testing.assert_close(
        moved, (x + threat.project(at + 0.07 * threat.steepest(gradient) - x, scale)).clamp(0, 1))
    assert torch.equal(gradient, before) and moved.min() >= 0 and moved.max() <= 1
