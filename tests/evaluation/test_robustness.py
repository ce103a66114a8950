"""The robustness report: its figures beside figures counted by hand, its seed, its manners, its refusals."""

import copy
import json

import pytest
import torch
from torch import nn

from redoubt.attacks import fgsm, pgd
from redoubt.errors import InvalidInput
from redoubt.evaluation.accuracy import accuracy, correct, eval_mode
from redoubt.evaluation.examples import examples
from redoubt.evaluation.robustness import evaluate
from redoubt.evaluation.suites import attack_label
from redoubt.threat import ThreatModel

LINF, L2 = ThreatModel("Linf", 0.1), ThreatModel("L2", 0.5)


class Brightness(nn.Module):
    """Predicts 1 above a mean of one half, else 0; never 2. Every attack on it can be worked out on paper."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(10.0))

    def forward(self, x):
        mean = x.mean((1, 2, 3)) - 0.5
        return torch.stack([-self.scale * mean, self.scale * mean, torch.full_like(mean, -1e3)], 1)


def grey(*values):
    return torch.tensor(values).view(-1, 1, 1, 1).expand(-1, 1, 4, 4).contiguous()


@pytest.fixture(scope="module")
def report(robust_digits_model, digits):
    x, y = digits.tensors("test")
    return evaluate(robust_digits_model, x, y, classes=digits.classes, threats=(LINF, L2), levels=16,
                    attacks=("fgsm", "pgd", "momentum"), curve_n=100, seed=4)


def test_a_model_that_can_be_worked_out_on_paper():
    x, y = grey(0.1, 0.42, 0.45, 0.55, 0.9), torch.tensor([0, 0, 1, 1, 2])
    report = evaluate(Brightness(), x, y, classes=["dark", "light", "never"], threats=(ThreatModel("Linf", 0.06),),
                      levels=255, epsilons=[0.02, 0.1])
    assert report["clean_accuracy"] == 0.6
    assert report["confusion"] == [[2, 0, 0], [1, 1, 0], [0, 1, 0]]
    assert [row["accuracy"] for row in report["per_class"]] == [1.0, 0.5, 0.0]
    assert report["worst_class"]["class"] == "never"
    by_epsilon = {row["epsilon"]: row["accuracy"] for row in report["attacks"] if row["attack"] == "pgd"}
    assert by_epsilon == {0.0: 0.6, 0.02: 0.6, 0.06: 0.4, 0.1: 0.2}


def test_figures_agree_with_attacks_run_one_by_one(report, robust_digits_model, digits):
    x, y = digits.tensors("test")
    assert report["n"] == len(x)
    assert report["clean_accuracy"] == accuracy(robust_digits_model, x, y)
    assert sum(map(sum, report["confusion"])) == len(x)
    rows = {(row["attack"], row["norm"], row["epsilon"]): row for row in report["attacks"]}
    by_hand = accuracy(robust_digits_model, x, y, attack=lambda m, x, y: fgsm(m, x, y, L2))
    assert rows["fgsm", "L2", 0.5]["accuracy"] == by_hand
    for threat in (LINF, L2):
        generator = torch.Generator().manual_seed(4)
        by_hand = accuracy(robust_digits_model, x, y,
                           attack=lambda m, x, y, t=threat, g=generator: pgd(m, x, y, t, generator=g))
        assert rows["pgd", threat.norm, threat.epsilon]["accuracy"] == by_hand


def test_every_row_names_its_attack_and_states_n_and_bounds(report):
    assert len(report["attacks"]) == 3 * 2 * 4
    for row in report["attacks"]:
        assert row["label"] == {"fgsm": "FGSM", "pgd": "PGD-20", "momentum": "Momentum PGD-10"}[row["attack"]]
        assert 0 <= row["low"] <= row["accuracy"] <= row["high"] <= 1
        at_full = row["epsilon"] in (0.0, 0.1 if row["norm"] == "Linf" else 0.5)
        assert row["n"] == (report["n"] if at_full else 100)
    assert [row["epsilon"] for row in report["attacks"][:4]] == [0.0, 0.25, 0.5, 0.75]


def test_robust_is_the_strongest_attack_of_each_threat(report):
    assert [(row["norm"], row["epsilon"]) for row in report["robust"]] == [("L2", 0.5), ("Linf", 0.1)]
    for row in report["robust"]:
        rivals = [r for r in report["attacks"] if (r["norm"], r["epsilon"]) == (row["norm"], row["epsilon"])]
        assert row["accuracy"] == min(r["accuracy"] for r in rivals)
        assert row["attack"] == "pgd"
        assert row["n"] == report["n"]


def test_the_report_is_json(report):
    assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_an_undefended_model_gets_the_usual_epsilons(digits_model, digits):
    x, y = digits.tensors("test", 50)
    report = evaluate(digits_model, x, y, classes=digits.classes, threats=(), levels=16, attacks=("fgsm",))
    assert [(row["norm"], row["epsilon"]) for row in report["attacks"]] == [
        ("Linf", 0.0), ("Linf", 0.05), ("Linf", 0.1), ("Linf", 0.2)]
    assert report["robust"] == []


def test_a_seed_fixes_the_report_and_progress_sees_each_row(digits_model, digits):
    x, y = digits.tensors("test", 120)
    rows = []

    def run(seed, progress=None):
        torch.rand(5)
        report = evaluate(digits_model, x, y, classes=digits.classes, threats=(LINF,), levels=16, curve_n=40, seed=seed,
                          attacks=("pgd",), progress=progress)
        return {key: value for key, value in report.items() if key not in ("seconds", "cost")}

    first = run(7, rows.append)
    assert first == run(7)
    assert rows == first["attacks"]
    assert first["attacks"] != run(8)["attacks"]


def test_a_model_in_training_mode_is_judged_in_eval_mode_and_given_back_as_it_came(digits_model, digits):
    x, y = digits.tensors("test", 100)
    layers = [nn.Dropout(0.9), nn.BatchNorm2d(1, momentum=1.0)]
    model = nn.Sequential(*layers, copy.deepcopy(digits_model))
    kwargs = {"classes": digits.classes, "threats": (), "levels": 16, "attacks": ("fgsm",), "epsilons": [0.05]}
    wanted = evaluate(model.eval(), x, y, **kwargs)
    model.train()
    layers[1].eval()   # frozen on purpose by whoever trains it
    statistics = layers[1].running_mean.clone()
    found = evaluate(model, x, y, **kwargs)
    assert found["attacks"] == wanted["attacks"]
    assert found["confusion"] == wanted["confusion"]
    assert (model.training, layers[0].training, layers[1].training) == (True, True, False)
    assert torch.equal(layers[1].running_mean, statistics)


def test_the_mode_comes_back_after_an_error(digits_model):
    model = copy.deepcopy(digits_model).train()
    with pytest.raises(RuntimeError), eval_mode(model):
        raise RuntimeError
    assert model.training


def test_a_class_without_images_has_no_accuracy():
    report = evaluate(Brightness(), grey(0.2, 0.8), torch.tensor([0, 1]), classes="abc", threats=(), levels=255)
    assert report["per_class"][2] == {"class": "c", "n": 0, "accuracy": None, "low": None, "high": None}
    assert report["worst_class"]["class"] in ("a", "b")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attacks": ("autopilot",)}, "unknown attack 'autopilot'.*fgsm, momentum, pgd"),
        ({"attacks": ()}, "at least one"),
        ({"attacks": "pgd"}, "list of names"),
        ({"epsilons": [-0.1]}, "above 0"),
        ({"epsilons": [8]}, "above 1"),
        ({"epsilons": [float("nan")]}, "finite"),
        ({"x": grey()[:0], "y": torch.tensor([], dtype=torch.long)}, "N >= 1"),
        ({"y": torch.tensor([0])}, r"labels \[N\]"),
        ({"y": torch.tensor([0, 3])}, "0 to 2"),
        ({"y": torch.tensor([-1, 0])}, "0 to 2"),
        ({"curve_n": 0}, "at least 1"),
        ({"classes": "abcd"}, "3 outputs, but there are 4 classes"),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_what_cannot_be_evaluated_is_refused(changes, message):
    usual = {"x": grey(0.2, 0.8), "y": torch.tensor([0, 1]), "classes": "abc", "threats": (), "levels": 255}
    with pytest.raises(InvalidInput, match=message):
        evaluate(Brightness(), **(usual | changes))


def test_an_unknown_label_is_refused():
    with pytest.raises(InvalidInput, match="valid ones"):
        attack_label("circle")


def test_examples_are_the_same_images_before_and_after(digits_model, digits):
    x, y = digits.tensors("test")
    shown = examples(digits_model, x, y, LINF, classes=digits.classes, n=12)
    assert len({e["label"] for e in shown[:10]}) == 10
    assert len(shown) == 12
    for e in shown:
        delta = e["adversarial"] - e["clean"]
        assert abs(delta).max() <= 0.1 + 1e-6
        assert e["perturbation"] == pytest.approx(0.5 + e["amplified"] * delta, abs=1e-5)
        assert any((e["clean"] == image.numpy()).all() for image in x[y == int(e["label"])])
        logits = digits_model(torch.from_numpy(e["adversarial"])[None])[0]
        assert e["predicted_adversarial"] == digits.classes[logits.argmax()]
        assert e["confidence_adversarial"] == pytest.approx(logits.softmax(0).max().item(), abs=1e-4)


def test_correct_counts_in_the_order_of_the_images(digits_model, digits):
    x, y = digits.tensors("test")
    right = correct(digits_model, x, y)
    assert right.shape == y.shape
    assert torch.equal(right, digits_model(x).argmax(1) == y)
    assert right.float().mean().item() == pytest.approx(accuracy(digits_model, x, y))
