"""The front as a picture, and which recipes lie on it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from redoubt.report import plots

COLOURS = (plots.BLUE, plots.ORANGE, plots.GREEN, plots.PURPLE)


def on_front(rows: Sequence[dict]) -> list[dict]:
    """The rows that no other beats in both training time and AutoAttack accuracy, quickest first."""
    front: list[dict] = []
    for row in sorted(rows, key=lambda row: (row["seconds"], -row["autoattack"])):
        if not front or row["autoattack"] > front[-1]["autoattack"]:
            front.append(row)
    return front


def draw_front(rows: Sequence[dict], target: dict, file: Path) -> None:
    """AutoAttack accuracy over training seconds: 95 % intervals, the front as steps, the target as a corner.

    Rows below 20 % (an undefended network) are left out: they would flatten the others.
    """
    rows = [row for row in rows if row["autoattack"] >= 0.2]
    objectives = list(dict.fromkeys(row["objective"] for row in rows))
    styles = {name: (COLOURS[i % 4], "osD^vPX*"[i % 8]) for i, name in enumerate(objectives)}

    def draw(figure, narrow: bool) -> None:
        from matplotlib.ticker import FixedLocator, MultipleLocator, NullLocator

        axes, within, level = figure.subplots(), target["seconds"], target["autoattack"]
        seconds = [row["seconds"] for row in rows] + [within]
        for row in rows:
            colour, marker = styles[row["objective"]]
            gap = [[row["autoattack"] - row["low"]], [row["high"] - row["autoattack"]]]
            axes.errorbar(row["seconds"], row["autoattack"], yerr=gap, fmt=marker, color=colour, capsize=2,
                          elinewidth=0.8)
            axes.annotate(row["recipe"], (row["seconds"], row["autoattack"]), xytext=(5, 4),
                          textcoords="offset points", fontsize=7.5)
        for name, (colour, marker) in styles.items():
            axes.plot([], [], marker, color=colour, label=name)
        front = on_front(rows)
        axes.step([row["seconds"] for row in front], [row["autoattack"] for row in front], where="post",
                  color=plots.MUTED, linewidth=1)
        axes.plot([min(seconds) / 2, within, within], [level, level, 1], "--", color=plots.MUTED, linewidth=1,
                  label="asked for")
        bottom = min([row["low"] for row in rows] + [level])
        top = max([row["high"] for row in rows] + [level])
        axes.set(xlabel="training, seconds", ylabel="AutoAttack accuracy, Linf 0.1", xscale="log",
                 xlim=(0.8 * min(seconds), 1.3 * max(seconds)),
                 ylim=(bottom - 0.02, top + 0.02), title="Robustness per second, Fashion-MNIST")
        axes.xaxis.set_major_locator(FixedLocator([10, 30, 60, 120, 300, 600, 1800, 3600]))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter("{x:g}")
        plots.percent_axis(axes.yaxis)
        axes.yaxis.set_major_locator(MultipleLocator(0.05))   # whole percents: labels show no more
        axes.legend(loc="lower right")

    plots.save(draw, file, size=(7.2, 4.4))
