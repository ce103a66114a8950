"""Architectures: any allowed shape runs, normalisation is inside, and impossible ones are refused."""

import json
import sys

import pytest
import torch

from redoubt.errors import InvalidInput
from redoubt.models import BODIES, Architecture, build
from redoubt.models.wide import WideResNet


def architecture(**changes):
    values = {"name": "compact-cnn", "num_classes": 10, "channels": 1, "size": 28, "mean": (0.3,), "std": (0.2,)}
    return Architecture(**(values | changes))


@pytest.mark.parametrize("name", sorted(set(BODIES) - {"wideresnet-28-10"}))
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


def test_wideresnet_has_the_published_size_and_shrunk_takes_every_shape():
    shape = {"channels": 3, "size": 32, "num_classes": 10}
    with torch.device("meta"):
        wide = WideResNet(**shape)
    assert sum(p.numel() for p in wide.parameters()) == 36_479_194   # as RobustBench counts it
    for channels, size, classes in [(1, 8, 2), (3, 9, 3), (1, 28, 10)]:
        small = WideResNet(channels=channels, size=size, num_classes=classes, depth=10, width=1).eval()
        assert small(torch.rand(2, channels, size, size)).shape == (2, classes)


@pytest.mark.parametrize(("name", "channels", "size"), [
    ("resnet18", 1, 28), ("mobilenet_v3_small", 3, 32), ("squeezenet1_0", 1, 8), ("densenet121", 1, 32)])
def test_torchvision_networks_are_adapted(name, channels, size):
    shape = architecture(name=f"torchvision:{name}", channels=channels, size=size, num_classes=5,
                         mean=(0.5,) * channels, std=(0.2,) * channels)
    model, x = build(shape), torch.rand(2, *shape.input_shape, requires_grad=True)
    assert all(module.training for module in model.modules())
    model.eval()
    (gradient,) = torch.autograd.grad(model(x).square().sum(), x)
    assert model(x).shape == (2, 5)
    assert gradient.isfinite().all() and gradient.abs().sum() > 0


def test_what_torchvision_does_not_have_is_refused():
    with pytest.raises(InvalidInput, match=r"no classification network 'resnet19': it has.*resnet18"):
        build(architecture(name="torchvision:resnet19"))
    with pytest.raises(InvalidInput, match=r"no classification network 'fcn_resnet50'"):
        build(architecture(name="torchvision:fcn_resnet50"))
    with pytest.raises(InvalidInput, match=r"unknown architecture 'torchvision:../x'"):
        architecture(name="torchvision:../x")


def test_without_torchvision_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(InvalidInput, match="needs torchvision: pip install torchvision"):
        build(architecture(name="torchvision:resnet18"))


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
