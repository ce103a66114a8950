"""The page of a sweep: models trained for one epsilon each, side by side, each under the attacks of its own report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from redoubt.report import page as p
from redoubt.report.plots import BLUE, ORANGE, percent_axis, svg


def sweep_page(path: Path, rows: Sequence[dict], *, norm: str, dataset: str) -> Path:
    """Write the page.

    Args:
        rows: of each model `trained` (epsilon), `clean` and `robust` (accuracies), `n`, `suite` and `attacks`
            (label, epsilon, accuracy).
    """
    header = ["trained for", "clean accuracy", "accuracy under attack at that epsilon", "pictures"]
    table = p.table(header, [[f"{norm} {row['trained']:.4g}", p.percent(row["clean"]), p.percent(row["robust"]),
                              p.count(row["n"])] for row in rows])
    every = p.table(["trained for", "attack", "epsilon", "accuracy"], [
        [f"{norm} {row['trained']:.4g}", attack["label"], p.number(attack["epsilon"], 4), p.percent(attack["accuracy"])]
        for row in rows for attack in row["attacks"]], left=2)

    def draw(fig, narrow: bool) -> None:
        axes = fig.add_subplot()
        x = [row["trained"] for row in rows]
        axes.plot(x, [row["clean"] for row in rows], color=BLUE, marker="o", label="clean")
        axes.plot(x, [row["robust"] for row in rows], color=ORANGE, marker="s", linestyle="--", label="under attack")
        axes.set_xlabel(f"{norm} epsilon that the model was trained for")
        axes.set_ylim(0, 1)
        percent_axis(axes.yaxis)
        axes.legend()

    plot = p.figure(svg(draw, "Clean accuracy and accuracy under attack over the training epsilon", name="sweep",
                        wide=(8, 3.6), narrow=(4, 3.2)),
                    "Each model is attacked at the epsilon that it was trained for, so both curves belong to it.")
    suites = ", ".join(sorted({str(row["suite"]) for row in rows}))
    document = p.page(
        title=f"Sweep over {norm} epsilon", kicker=dataset, lead="What each training epsilon costs and buys.",
        body=[p.section("Side by side", plot, table), p.section("Every attack", every)],
        foot=f"Attacks of the suite {suites}; worst case over all of them.")
    return p.write(path, document)
