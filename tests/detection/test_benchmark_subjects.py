"""The detection benchmark on pictures of one's own."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from benchmarks import detection, unseen
from benchmarks.common import Report, prepared
from benchmarks.detection import judged, require
from benchmarks.rehearsed import measured, rehearsed
from redoubt.attacks import fgsm, on_lattice
from redoubt.detection import rehearsal
from redoubt.threat import ThreatModel


def test_any_dataset_can_be_attacked(digits, tmp_path, monkeypatch):
    images, labels = digits.arrays("train")
    file = tmp_path / "my pictures.npz"
    np.savez(file, x_train=images[:600], y_train=labels[:600])
    monkeypatch.setattr(unseen, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(unseen, "USUAL_EPOCHS", (1, 1))
    data = prepared(f"npz:{file}")
    undefended, robust = (unseen.subject(f"npz:{file}", name, 0, data) for name in ("undefended", "robust"))
    assert undefended.slug == "my-pictures.npz-undefended" and undefended.epsilons == (0.1, 0.2, 0.3)
    assert [threat.epsilon for threat in robust.covered] == [0.2] and not undefended.covered
    x_adv, rows = unseen.adversarial(undefended, "transfer", 0.2, 32, 0)
    assert len(rows) == len(x_adv) > 0
    assert len(list((tmp_path / "results").rglob("*.safetensors"))) == 4   # two champions, the stranger, the attack
    assert unseen.subject(f"npz:{file}", "undefended", 0, data).key == undefended.key


def test_a_dataset_that_is_none_is_a_users_mistake(capsys):
    with pytest.raises(SystemExit) as stopped:
        prepared("nonsense")
    assert stopped.value.code == 2 and "npz:PATH" in capsys.readouterr().err


def test_a_universal_perturbation_is_the_same_whenever_it_is_made(digits, digits_model, tmp_path, monkeypatch):
    pytest.importorskip("art")
    of = unseen.Subject(name="digits", dataset="digits", data=digits, model=digits_model, key="", covered=(),
                        epsilons=(0.3,))
    made = []
    for name in ("one", "other"):
        monkeypatch.setattr(unseen, "RESULTS", tmp_path / name)
        made.append(unseen.adversarial(of, "universal", 0.3, 64, 0)[0])
    assert (made[0] == made[1]).all() and len(made[0]) > 32


def test_the_interval_of_an_input_is_judged_where_there_is_one(digits, digits_model, digits_detector):
    of = unseen.Subject(name="digits", dataset="digits", data=digits, model=digits_model, key="", covered=(),
                        epsilons=(0.25,))
    x, y = digits.tensors("test", 200)
    x_adv = x.clone()
    x_adv[:100] = on_lattice(fgsm(digits_model, x[:100], y[:100], ThreatModel("Linf", 0.25)), 16)
    clean = digits_detector.assess(x).score
    cell = judged(of, digits_detector, clean, x_adv, torch.arange(200), 0.25,
                  SimpleNamespace(n=200, campaigns=5, seed=0), norm="Linf")
    verdicts = digits_detector.assess(x_adv)
    inside = (verdicts.low <= 0.25) & (verdicts.high >= 0.25)
    assert 0.3 < cell["flagged"] < 0.7
    assert cell["inside_90_percent"] == pytest.approx((inside.sum() / verdicts.is_adversarial.sum()).item())
    assert cell["inside_90_percent"] > inside.float().mean() + 0.2


def test_kinds_that_were_rehearsed_are_measured_on_test_pictures(digits, digits_model, digits_detector):
    of = unseen.Subject(name="digits", dataset="digits", data=digits, model=digits_model, key="", covered=(),
                        epsilons=(0.25,))
    made = rehearsed(of, digits_detector, 40, 500)
    assert len(made.kind) == 53 and (made.norm == 0).sum() == 40
    cell = measured(digits_detector, made)
    assert list(cell["flagged"]) == list(cell["inside"]) == list(rehearsal.KINDS[: rehearsal.TELLING])
    total = sum(cell["flagged"].values())
    assert 8 * 4 * 32 > total > 200 and 0 < cell["campaigns"] <= 32
    held = sum(cell["flagged"][kind] * share for kind, share in cell["inside"].items() if share is not None)
    assert cell["coverage"] == pytest.approx(held / total) and 0.7 < cell["coverage"] < 1
    told = replace(made, log_epsilon=made.log_epsilon + 1.5)   # as if all were read far too small
    missed = measured(digits_detector, told)
    assert missed["coverage"] < 0.3 and missed["held"] < cell["held"] and missed["flagged"] == cell["flagged"]


@pytest.mark.parametrize(("coverage", "covered", "short"), [
    (0.87, (), False), (0.93, (), False), (0.869, (), True), (0.931, (), True), (None, (), True), (0.95, (1,), False)])
def test_the_interval_of_rehearsed_kinds_is_asked_to_be_neither_narrow_nor_wide(coverage, covered, short, monkeypatch):
    cell = {"flagged": {"fgsm": 3}, "inside": {"fgsm": coverage}, "coverage": coverage, "campaigns": 0, "held": None}
    monkeypatch.setattr(detection, "kept", lambda *_: cell)
    report = Report(SimpleNamespace(seed=0, quick=False), "a test")
    of = SimpleNamespace(name="digits", slug="digits", covered=covered)
    detection.seen(report, of, None, "", SimpleNamespace(seed=0))
    assert len(report.shortfalls) == short and all("not 0.87 to 0.93" in one for one in report.shortfalls)
    assert report.figures["seen"] == [{"champion": "digits", **cell}]


GOOD = {"accuracy": 0.4, "auroc": 0.995, "at_1_percent": 0.96, "estimate": 1.0, "matched": 1.0,
        "inside_90_percent": 0.88}


@pytest.mark.parametrize(("changed", "strict", "short"), [
    ({}, True, ""), ({"auroc": 0.98}, True, "AUROC 0.980"), ({"at_1_percent": 0.94}, True, "0.940 detected"),
    ({"estimate": 1.2}, False, "estimate over true 1.200"), ({"matched": 0.98}, True, "0.980 matched"),
    ({"inside_90_percent": 0.86}, True, "interval of an input holds 0.860"),
    ({"matched": 0.0, "inside_90_percent": 0.5}, False, ""), ({"accuracy": 0.6, "matched": 0.0}, True, "")])
def test_each_figure_that_falls_short_is_named(changed, strict, short):
    of, report = SimpleNamespace(name="digits", covered=()), Report(SimpleNamespace(seed=0, quick=False), "a test")
    require(report, of, "apgd", 0.2, GOOD | changed, strict=strict)
    assert len(report.shortfalls) == bool(short) and short in "".join(report.shortfalls)
