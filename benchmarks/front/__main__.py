"""Robustness per second: the front of objectives and training times on Fashion-MNIST, Linf 0.1.

Each row is one recipe: objective, plug-ins, network and epochs. It trains in a process of its own, whose whole wall
time counts: imports, reading the data, validation. Then clean accuracy on the whole test split, and PGD-20 (where an
image counts as fooled when any iterate fools the model) and AutoAttack (Croce & Hein 2020, through pyautoattack) on the
first 1,000 test images (`--images`), with a 95 % interval. Networks and settings were tried out on the gate split.

Asked for: one recipe with AutoAttack >= 70 % and clean >= 85 % in at most 600 s of training on two cores. `cpu s` is
the processor time behind `train s`: far below threads x seconds, other programs took their share, and the wall time
says little.

Finished trainings and attacks are kept in `results/`, by code, data and seed. A call starts nothing new after
`--minutes`; the next call goes on.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.cells import RESULTS
from benchmarks.common import Report, arguments, table
from benchmarks.front.cells import fit, measured, trained
from benchmarks.front.plot import draw_front, on_front
from benchmarks.front.recipes import QUICK, RECIPES, Recipe
from redoubt.data import Prepared, load_source, prepare
from redoubt.errors import RedoubtError

TARGET = {"autoattack": 0.70, "clean": 0.85, "seconds": 600.0}
IMAGES, QUICK_IMAGES = 1000, 16
HEADER = ("recipe", "objective", "plug-ins and settings", "network", "epochs", "train s", "cpu s", "clean", "PGD-20",
          "AutoAttack", "95 % interval")


def data(given: argparse.Namespace) -> Prepared:
    """Fashion-MNIST, prepared once for all calls; the quick version has few images."""
    folder = RESULTS / ("front-data-quick" if given.quick else "front-data")
    if not (folder / "metadata.json").exists():
        prepare(load_source("fashion-mnist", given.data_dir), folder, seed=0, limit=6000 if given.quick else None)
    return Prepared.open(folder)


def line(row: dict) -> tuple:
    attacked = ("-", "-")
    if "autoattack" in row:
        attacked = (f"{row['autoattack']:.1%}", f"{row['low']:.1%} to {row['high']:.1%}")
    return (row["recipe"], row["objective"], row["additions"], row["network"], row["epochs"], f"{row['seconds']:.0f}",
            f"{row['cpu_seconds']:.0f}", f"{row['clean']:.1%}", f"{row['pgd20']:.1%}", *attacked)


def compare(report: Report, recipes: Sequence[Recipe], prepared: Prepared) -> tuple[list[dict], list[str]]:
    """Rows of the recipes that could be measured within the time, and the names of the others.

    All trainings come before the first AutoAttack: of two calls that are cut off, the first then has the times.
    """
    given, rows, left = report.given, [], []
    n = given.images or (QUICK_IMAGES if given.quick else IMAGES)
    extra = ["--quick"] if given.quick else []

    def late() -> bool:
        return time.perf_counter() - report.start > 60 * given.minutes

    for attack in (False,) if given.no_attack else (False, True):
        rows, left = [], []
        for recipe in recipes:
            if late():
                left.append(recipe.name)
                continue
            took = trained(recipe, prepared, given.seed, extra)
            rows.append({"recipe": recipe.name, "objective": recipe.objective, "additions": recipe.additions(),
                         "network": recipe.network, "epochs": recipe.epochs, **took,
                         **measured(recipe, prepared, given.seed, n, attack=attack)})
            print("  ".join(map(str, line(rows[-1]))), file=sys.stderr, flush=True)
    return rows, left


def reaches(row: dict) -> bool:
    return (row["autoattack"] >= TARGET["autoattack"] and row["clean"] >= TARGET["clean"]
            and row["seconds"] <= TARGET["seconds"])


def judge(report: Report, rows: Sequence[dict]) -> None:
    """Name the front, and the recipe that reaches what was asked for or comes nearest."""
    report.say(f"\nfront: {', '.join(row['recipe'] for row in on_front(rows))}")
    able = [row for row in rows if reaches(row)]
    if able:
        best = min(able, key=lambda row: row["seconds"])
        report.say(f"reached first by {best['recipe']}, in {best['seconds']:.0f} s: AutoAttack "
                   f"{best['autoattack']:.1%} on {best['n']:,} test images, "
                   f"clean {best['clean']:.1%} on {best['n_clean']:,}")
        return
    within = [row for row in rows if row["seconds"] <= TARGET["seconds"] and row["clean"] >= TARGET["clean"]]
    best = max(within or rows, key=lambda row: row["autoattack"])
    report.require(False, f"AutoAttack {TARGET['autoattack']:.0%} with clean {TARGET['clean']:.0%} in "
                   f"{TARGET['seconds']:.0f} s is asked for; nearest is {best['recipe']}: {best['autoattack']:.1%}, "
                   f"{best['clean']:.1%}, {best['seconds']:.0f} s")


def main() -> int:
    given = arguments(
        __doc__, only={"nargs": "+", "metavar": "RECIPE", "help": "these recipes alone"},
        minutes={"type": float, "default": 45, "metavar": "M", "help": "start no new part after (default 45)"},
        plot={"type": Path, "metavar": "FILE", "help": "draw the front (.svg or .png)"},
        images={"type": int, "metavar": "N", "help": "attack the first N test images (default 1,000; quick: 16)"},
        no_attack={"action": "store_true", "help": "train and run PGD-20, leave AutoAttack for another call"},
        cell={"help": argparse.SUPPRESS},
    )
    recipes = QUICK if given.quick else RECIPES
    if given.images is not None and given.images < 1:
        print(f"--images must be at least 1, not {given.images}", file=sys.stderr)
        return 2
    if unknown := set(given.only or ()) - {recipe.name for recipe in recipes}:
        print(f"unknown recipe {', '.join(sorted(unknown))}: valid ones are "
              f"{', '.join(recipe.name for recipe in recipes)}", file=sys.stderr)
        return 2
    try:
        prepared = data(given)
        if given.cell:
            fit(next(recipe for recipe in recipes if recipe.name == given.cell), prepared, given.seed)
            return 0
        report = Report(given, "Robustness per second, Fashion-MNIST, Linf 0.1")
        rows, left = compare(report, [r for r in recipes if not given.only or r.name in given.only], prepared)
    except RedoubtError as error:
        print(error, file=sys.stderr)
        return 2
    report.say(table(HEADER, [line(row) for row in rows]))
    if rows:
        report.say(f"n = {rows[0]['n_clean']:,} test images clean, {rows[0]['n']:,} attacked")
    report.figures |= {"target": TARGET, "rows": rows}
    for name in left:
        report.require(False, f"{name} was not measured in this call: call again")
    done = [row for row in rows if "autoattack" in row]
    if not done:
        report.require(False, "AutoAttack was left for another call: nothing is judged")
    elif not given.quick:
        judge(report, done)
        report.require(done[0]["n"] >= IMAGES, f"only {done[0]['n']} images were attacked, {IMAGES:,} are asked for")
    if done and given.plot:
        draw_front(done, TARGET, given.plot)
    return report.close()


if __name__ == "__main__":
    sys.exit(main())
