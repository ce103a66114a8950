"""Put a sweep's reports side by side: what each training epsilon costs on clean pictures and buys under attack."""

from __future__ import annotations

import json
from pathlib import Path

from redoubt.errors import ArtifactError
from redoubt.names import REPORT
from redoubt.report.page import percent
from redoubt.report.sweep import sweep_page


def run(evaluations: list[Path], page: Path, table: Path, *, norm: str = "Linf") -> list[dict]:
    """Write the page and a Markdown table; returns a row for each model, by its training epsilon.

    Args:
        evaluations: folders that `evaluate` wrote.
        norm: the norm that was swept.

    Raises:
        ArtifactError: when one of them holds no report.
    """
    try:
        reports = [json.loads((folder / REPORT).read_text()) for folder in evaluations]
        rows = sorted((row_of(report, norm) for report in reports), key=lambda row: row["trained"])
    except (OSError, ValueError, KeyError) as error:
        raise ArtifactError(f"an evaluation of the sweep cannot be read: {error}") from None
    lines = ["| trained for | clean accuracy | accuracy under attack at that epsilon |", "|---|---|---|"]
    lines += [f"| {norm} {row['trained']:.4g} | {percent(row['clean'])} | {percent(row['robust'])} |" for row in rows]
    table.write_text("\n".join(lines) + "\n")
    sweep_page(page, rows, norm=norm, dataset=reports[0].get("dataset", ""))
    return rows


def row_of(report: dict, norm: str) -> dict:
    """One report's figures: training epsilon, clean accuracy, and accuracy under the suite's worst case."""
    trained = max((epsilon for one, epsilon in report["threats"] if one == norm), default=0.0)
    worst = [row["accuracy"] for row in report["worst_case"] if row["norm"] == norm and row["epsilon"] == trained]
    attacks = [{"label": row["label"], "epsilon": row["epsilon"], "accuracy": row["accuracy"]}
               for row in report["attacks"] if row["norm"] == norm]
    return {"trained": trained, "clean": report["clean_accuracy"], "robust": min(worst, default=float("nan")),
            "attacks": attacks, "n": report["n"], "suite": report["suite"]}


