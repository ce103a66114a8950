"""The checks on models: shams are flagged by the check that is for them, honest models by none."""

import copy

import pytest
import torch
from torch import nn

from redoubt.attacks.gradient import logits_and_gradient, margin
from redoubt.evaluation import probes
from redoubt.evaluation.robustness import evaluate
from redoubt.evaluation.sanity import FAIL
from redoubt.evaluation.store import forget
from redoubt.threat import ThreatModel

LINF = ThreatModel("Linf", 0.1)


class Front(nn.Module):
    def __init__(self, change, model):
        super().__init__()
        self.change, self.model = change, model

    def forward(self, x):
        return self.model(self.change(x))


def failed(model, digits, threats=(LINF,), **options):
    x, y = digits.tensors("test")
    report = evaluate(model, x, y, classes=digits.classes, threats=threats, levels=16, **options)
    return {check["check"] for check in report["checks"] if check["verdict"] == FAIL}


def test_honest_models_are_not_flagged(digits_model, robust_digits_model, digits):
    assert failed(digits_model, digits) == set()
    assert failed(robust_digits_model, digits, (LINF, ThreatModel("L2", 0.5)), surrogate=digits_model) == set()


def test_a_quantising_front_is_flagged(digits_model, digits):
    model = Front(lambda x: (x * 6).round() / 6, digits_model).eval()
    assert failed(model, digits) >= {"falls_with_epsilon", "white_box_strongest", "loss_not_flat"}


def test_a_randomised_model_is_flagged(digits_model, digits):
    assert "deterministic" in failed(Front(lambda x: x + 0.2 * torch.randn_like(x), digits_model).eval(), digits)


def test_a_model_that_stays_in_training_mode_is_flagged(robust_digits_model, digits):
    class Stuck(Front):
        def train(self, mode=True):
            return super().train(True)

    model = Stuck(lambda x: x, copy.deepcopy(robust_digits_model))
    model.train()
    assert failed(model, digits) == {"eval_mode"}


class BatchStatistics(nn.Module):
    """Batch norm that uses the batch whatever the mode, with no flag that says so."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        mean, std = x.mean((0, 2, 3), keepdim=True), x.std((0, 2, 3), keepdim=True)
        return self.model(((x - mean) / std * 0.3 + 0.3).clamp(0, 1))


def test_images_that_see_each_other_are_noticed_without_any_flag(digits_model, digits):
    x, y = digits.tensors("test", 40)
    check = probes.modes(probes.Sample(model=BatchStatistics(digits_model).eval(), x=x, y=y, seed=0), 0)
    assert (check.verdict, check.numbers["training_after_eval"]) == (FAIL, 0)
    assert check.numbers["batch_change"] > 0.01


def test_dropout_handed_over_in_training_mode_is_told(digits_model, digits):
    model = nn.Sequential(nn.Dropout(0.5), copy.deepcopy(digits_model).eval())
    assert failed(model.train(), digits) == {"eval_mode"}
    assert probes.behaves_otherwise_in_training(nn.Sequential(copy.deepcopy(digits_model).eval())) == 0


def test_a_model_that_torch_cannot_differentiate_has_no_gradient(digits_model, digits):
    class Opaque(nn.Module):
        def forward(self, x):
            with torch.no_grad():
                return digits_model(x)

    x, y = digits.tensors("test", 4)
    assert not logits_and_gradient(Opaque(), x, y)[1].any()
    assert "loss_not_flat" in failed(Opaque(), digits)


def test_the_margin_says_what_is_misclassified(digits_model, digits):
    x, y = digits.tensors("test", 50)
    with torch.no_grad():
        logits = digits_model(x)
    assert torch.equal(margin(logits, y) > 0, logits.argmax(1) != y)


@pytest.mark.parametrize("threat, epsilon", [(LINF, 0.5), (ThreatModel("Linf", 0.4), 0.8),
                                             (ThreatModel("L2", 1.0), 4.0)], ids=str)
def test_the_large_ball_makes_every_picture_grey(threat, epsilon):
    assert probes.large_ball(threat, (1, 8, 8)).epsilon == pytest.approx(epsilon)


class Killed(Exception):
    pass


def test_a_killed_evaluation_goes_on_with_what_it_had(digits_model, digits, tmp_path, monkeypatch):
    from redoubt.evaluation import robustness

    x, y = digits.tensors("test", 80)
    usual = {"classes": digits.classes, "threats": (LINF,), "levels": 16, "curve_n": 40, "sanity_n": 0}
    whole = evaluate(digits_model, x, y, **usual)
    ran, withstands = [], robustness.withstands
    monkeypatch.setattr(robustness, "withstands", lambda name, *a: (ran.append(name), withstands(name, *a))[1])

    def kill(row):
        if len(ran) == 4:
            raise Killed

    with pytest.raises(Killed):
        evaluate(digits_model, x, y, state=tmp_path / "state", progress=kill, **usual)
    again = evaluate(digits_model, x, y, state=tmp_path / "state", **usual)
    assert len(ran) == 6, "three epsilons, two attacks, none of them twice"
    assert [again[key] for key in ("attacks", "robust", "worst_case")] == [whole[key] for key in (
        "attacks", "robust", "worst_case")]
    (tmp_path / "state" / "notes.json").write_text("{}")
    forget(tmp_path / "state")
    assert [file.name for file in (tmp_path / "state").iterdir()] == ["notes.json"], "only what is its own"
