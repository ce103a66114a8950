"""The robustness page: its figures, its classes, its examples, its escaping."""

import pytest

from redoubt.report import robustness_report

STRENGTH = [("FGSM", 0.1, 0.11), ("FGSM", 0.1, 0.09), ("PGD-20", 0.2, 0.24), ("PGD-20", 0.2, float("nan"))]


def test_the_page_holds_every_figure(tmp_path, evaluation, shown, read_page):
    card = {"architecture": {"name": "compact-cnn"}, "threats": [["Linf", 0.1]], "objective": "pgd"}
    page = read_page(robustness_report(
        tmp_path / "r.html", title="digits, version 3", report=evaluation, examples=shown, strength=STRENGTH, card=card
    ))
    for words in (
        "digits, version 3", "96.0 % of clean test images",
        "Under PGD-20 with perturbations up to L∞ 0.100 it is 66.0 %", "(63.0–69.0 %)",
        "Estimates scatter round the line", "amplified as stated", "dog (60 %)", "Confusion matrix", "emu",
        "architecture.name", "compact-cnn", "Linf 0.1", "300 images, seed 0",
    ):
        assert words in page.text, words
    assert page.images == 6
    assert page.text.count("PGD-20") >= 4


@pytest.mark.parametrize("missing", ["attacks", "confusion", "per_class", "robust", "worst_class", "seconds", "n"])
def test_a_report_with_a_part_missing_is_still_written(tmp_path, evaluation, read_page, missing):
    part = {key: value for key, value in evaluation.items() if key != missing}
    assert "Redoubt robustness report" in read_page(robustness_report(tmp_path / "r.html", title="t", report=part)).text


def test_many_classes_give_a_list_of_confusions(tmp_path, evaluation, read_page):
    n = 30
    names = [f"class {i}" for i in range(n)]
    matrix = [[50 if i == j else 0 for j in range(n)] for i in range(n)]
    matrix[4][7] = 9
    part = {"per_class": [evaluation["per_class"][0] | {"class": name} for name in names], "confusion": matrix}
    page = read_page(robustness_report(tmp_path / "r.html", title="t", report=evaluation | part))
    assert "Confusion matrix" not in page.text
    assert "class 4 class 7 9" in page.text


def test_two_norms_get_a_plot_each(tmp_path, evaluation, read_page):
    rows = [row | {"norm": norm} for norm in ("Linf", "L2") for row in evaluation["attacks"]]
    text = robustness_report(tmp_path / "r.html", title="t", report=evaluation | {"attacks": rows}).read_text()
    assert text.count("<svg") == 4   # each for a wide and a narrow screen
    assert "Accuracy against epsilon in L2" in text


def test_a_class_without_images_is_a_dash(tmp_path, evaluation, read_page):
    empty = {"class": "yak", "n": 0, "accuracy": None, "low": None, "high": None}
    report = evaluation | {"per_class": [*evaluation["per_class"][:2], empty]}
    assert "yak 0 – –" in read_page(robustness_report(tmp_path / "r.html", title="t", report=report)).text


def test_names_are_escaped(tmp_path, evaluation, shown, read_page):
    evil = '<img src=x onerror="z">&lt;'
    report = evaluation | {"per_class": [row | {"class": evil} for row in evaluation["per_class"]],
                           "worst_class": evaluation["worst_class"] | {"class": evil},
                           "attacks": [row | {"label": evil} for row in evaluation["attacks"]]}
    path = robustness_report(
        tmp_path / "r.html", title=evil, report=report, strength=[(evil, 0.1, 0.1)], card={evil: {evil: [evil]}},
        examples=[e | {"label": evil, "predicted": evil, "predicted_adversarial": evil, "attack": evil} for e in shown],
    )
    assert evil in read_page(path).text
    assert "<img src=x" not in path.read_text()


def test_a_whole_report_says_how_far_it_can_be_trusted(tmp_path, full_evaluation, read_page):
    card = {"Objective": "pgd"}
    page = read_page(robustness_report(tmp_path / "r.html", title="t", report=full_evaluation, card=card))
    for words in (
        "all checks passed", "About converged pass 128 images", "not applicable", "FGSM, PGD-20 together",
        "Expected calibration error 3.1 %", "JPEG 80 %", "Structural similarity", "sanity checks",
        "5.0 times as much", "2 twins of training images left out", "a figure to publish needs AutoAttack", "55,000",
        "1×8×8 pictures", "Limits",
    ):
        assert words in page.text, words


def test_a_failed_check_stands_in_the_head(tmp_path, full_evaluation, read_page):
    checks = [check | {"verdict": "fail"} for check in full_evaluation["checks"][:2]]
    page = read_page(robustness_report(tmp_path / "r.html", title="t", report=full_evaluation | {"checks": checks}))
    assert "2 checks failed" in page.text
    assert "do not rely on these figures" in page.text


def test_an_undefended_model_is_called_so(tmp_path, full_evaluation, read_page):
    report = full_evaluation | {"defended": False}
    page = read_page(robustness_report(tmp_path / "r.html", title="t", report=report))
    assert "must not be relied on under attack" in page.text
    assert "measured; not trained for" in page.text
