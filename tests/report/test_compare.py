"""Two versions side by side: the figures, what is called a difference, and what must not be compared."""

import copy

import pytest

from redoubt.report import comparison, report_figures
from redoubt.report.compare import lines, mismatch


@pytest.fixture
def pair(full_evaluation):
    second = copy.deepcopy(full_evaluation)
    for row in second["attacks"]:
        if row["attack"] == "pgd" and row["epsilon"]:
            row |= {key: row[key] + 0.2 for key in ("accuracy", "low", "high")}
    second["clean_accuracy"] += 0.01
    second["checks"][0]["verdict"] = "fail"
    return full_evaluation, second


def test_a_difference_counts_when_the_intervals_are_apart(pair):
    found = {line.name: line for line in lines(*pair)}
    assert (found["PGD-20, L∞ 0.100"].difference, found["PGD-20, L∞ 0.100"].tone) == ("+20.0", "good")
    assert {line.name: line for line in lines(*pair[::-1])}["PGD-20, L∞ 0.100"].tone == "bad"
    assert (found["Clean accuracy"].difference, found["Clean accuracy"].tone) == ("+1.0", "")
    assert found["FGSM, L∞ 0.100"].difference == "+0.0"
    assert found["Checks that failed"].second == "falls with epsilon"
    assert found["Worst class, L∞ 0.100"].first.endswith("(dog)")


def test_what_one_report_lacks_gives_no_line(pair, evaluation):
    names = {line.name for line in lines(pair[0], evaluation)}
    assert "Expected calibration error" not in names
    assert "PGD-20, L∞ 0.100" in names


def test_other_data_are_no_comparison(pair):
    assert mismatch(*pair) == ""
    why = mismatch(pair[0], pair[1] | {"data_checksum": "ffff", "suite": "standard"})
    assert "data (" in why
    assert "suite (quick and standard)" in why


def test_the_page_names_both_and_warns(tmp_path, pair, read_page):
    cards = ({"Objective": "pgd"}, {"Objective": "<b>trades"})
    page = read_page(comparison(tmp_path / "c.html", ("version 1", "version 2"), pair, cards))
    for words in ("version 1 and version 2", "same images", "+20.0", "<b>trades", "Accuracy under PGD-20", "fail"):
        assert words in page.text, words
    other = (pair[0], pair[1] | {"n": 7})
    assert "not alike" in read_page(comparison(tmp_path / "d.html", ("1", "2"), other, cards)).text


def test_the_plots_are_files_too(tmp_path, full_evaluation, evaluation):
    assert {file.name for file in report_figures(tmp_path / "a", full_evaluation).iterdir()} == {
        "accuracy-Linf.png", "reliability.png", "corruptions.png"}
    assert [file.name for file in report_figures(tmp_path / "b", evaluation).iterdir()] == ["accuracy-Linf.png"]
