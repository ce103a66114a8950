"""Architectures: any allowed shape runs, normalisation is inside, and impossible ones are refused."""

import json

import pytest
import torch

from redoubt.errors import InvalidInput
from redoubt.models import BODIES, Architecture, build


def architecture(**changes):
    values = {"name": "compact-cnn", "num_classes": 10, "channels": 1, "size": 28, "mean": (0.3,), "std": (0.2,)}
    return Architecture(**(values | changes))


@pytest.mark.parametrize("name", sorted(BODIES))
@pytest.mark.parametrize(("channels", "size", "classes"), [(1, 8, 2), (1, 28, 10), (3, 32, 100), (3, 9, 3), (1, 45, 5)])
def test_every_shape_gives_finite_logits_and_gradients(name, channels, size, classes):
    shape = architecture(name=name, channels=channels, size=size, num_classes=classes,
                         mean=(0.5,) * channels, std=(0.2,) * channels)
    x = torch.rand(2, *shape.input_shape, requires_grad=True)
    logits = build(shape).eval()(x)
    assert logits.shape == (2, classes)
    (gradient,) = torch.autograd.grad(logits.square().sum(), x)
    assert gradient.isfinite().all()
    assert gradient.abs().sum() > 0


def test_normalisation_is_inside_and_travels_with_the_weights():
    model = build(architecture(mean=(0.3,), std=(0.2,))).eval()
    x = torch.rand(4, 1, 28, 28)
    torch.testing.assert_close(model(x), model.body((x - 0.3) / 0.2))
    other = build(architecture(mean=(0.0,), std=(1.0,))).eval()
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(other(x), model(x))


def test_preactresnet_has_the_published_size():
    model = build(architecture(name="preactresnet-18", channels=3, size=32, mean=(0.5,) * 3, std=(0.2,) * 3))
    assert sum(p.numel() for p in model.parameters()) == 11_172_170   # as in the fast_adversarial repository


def test_the_seed_decides_the_first_weights():
    def weights(seed):
        torch.manual_seed(seed)
        return torch.cat([p.flatten() for p in build(architecture()).parameters()])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def test_an_architecture_survives_json():
    first = architecture()
    assert Architecture(**json.loads(json.dumps(first.to_json()))) == first


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "vgg"}, "valid ones are compact-cnn, preactresnet-18"),
        ({"num_classes": 1}, "at least 2 classes"),
        ({"channels": 0, "mean": (), "std": ()}, "1 channel"),
        ({"size": 7}, "8x8"),
        ({"mean": (0.1, 0.2)}, "1 values each"),
        ({"channels": 3}, "3 values each"),
        ({"std": (0.0,)}, "above 0"),
        ({"std": (float("nan"),)}, "finite"),
        ({"mean": (float("inf"),)}, "finite"),
    ],
    ids=str,
)
def test_impossible_architectures_are_refused(changes, message):
    with pytest.raises(InvalidInput, match=message):
        architecture(**changes)
