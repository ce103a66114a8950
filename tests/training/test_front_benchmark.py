"""The benchmark of robustness per second: what lies on the front, what reaches the target, what a cell is keyed by."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from benchmarks.front.__main__ import TARGET, judge, line, reaches
from benchmarks.front.cells import training_key
from benchmarks.front.plot import draw_front, on_front
from benchmarks.front.recipes import QUICK, RECIPES


def row(name, seconds, autoattack, clean=0.86):
    return {"recipe": name, "objective": name[0], "additions": "-", "network": "compact-cnn", "epochs": 1,
            "seconds": seconds, "cpu_seconds": 2 * seconds, "autoattack": autoattack, "clean": clean, "pgd20": 0.7,
            "low": autoattack - 0.03, "high": autoattack + 0.03, "n": 1000, "n_clean": 10_000}


def test_the_front_holds_what_nothing_beats_in_time_and_accuracy():
    rows = [row("slow", 500, 0.7), row("worse", 300, 0.5), row("quick", 100, 0.6), row("tie", 500, 0.69)]
    assert [found["recipe"] for found in on_front(rows)] == ["quick", "slow"]


@pytest.mark.parametrize(("found", "holds"), [
    (row("a", 600, 0.70, 0.85), True), (row("a", 601, 0.7), False), (row("a", 60, 0.699), False),
    (row("a", 60, 0.7, 0.849), False)])
def test_the_target_is_all_three_at_once(found, holds):
    assert reaches(found) is holds


def test_falling_short_names_the_nearest_recipe_within_the_time():
    said, missed = [], []
    report = SimpleNamespace(say=said.append, require=lambda holds, text: missed.append(text))
    judge(report, [row("late", TARGET["seconds"] + 1, 0.75), row("near", 500, 0.69), row("low", 100, 0.6)])
    assert len(missed) == 1 and "near" in missed[0]
    judge(report, [row("there", 500, 0.71), row("later", 590, 0.73)])
    assert "reached first by there" in said[-1] and len(missed) == 1


def test_a_row_without_autoattack_can_be_printed():
    bare = {key: value for key, value in row("a", 1, 0.5).items() if key not in ("autoattack", "low", "high")}
    assert line(bare)[-2:] == ("-", "-") and len(line(bare)) == len(line(row("a", 1, 0.5)))


def test_recipes_are_valid_and_their_cells_differ():
    data = SimpleNamespace(checksum="c")
    for recipes in (RECIPES, QUICK):
        assert len({recipe.name for recipe in recipes}) == len(recipes)
        assert all(recipe.config(0).epochs == recipe.epochs for recipe in recipes)
        keys = [training_key(recipe, data, seed) for recipe in recipes for seed in (0, 1)]
        assert all(a != b for i, a in enumerate(keys) for b in keys[:i])


def test_the_plot_leaves_undefended_networks_out(tmp_path):
    draw_front([row("undefended", 20, 0.0), row("pgd", 100, 0.6)], TARGET, tmp_path / "front.svg")
    assert "<svg" in (tmp_path / "front.svg").read_text()


@pytest.mark.parametrize("rows", [[row("undefended", 20, 0.0)], [row("pgd", 4000, 0.6)]], ids=["nothing", "late"])
def test_the_plot_shows_what_was_asked_for_where_nothing_comes_near(tmp_path, rows):
    draw_front(rows, TARGET, tmp_path / "front.svg")
    assert "asked for" in (tmp_path / "front.svg").read_text()
