"""An evaluation's report as flat facts: metrics for trackers, and the checks as a table of Markdown."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping


def metric_values(report: Mapping) -> dict[str, float]:
    """Every figure worth a metric, by a name that MLflow and Kubeflow Pipelines take; finite numbers only."""
    found: dict[str, object] = {"clean_accuracy": report.get("clean_accuracy"), "evaluated_images": report.get("n")}
    for row in report.get("robust") or ():
        found[f"accuracy {row['label']} {row['norm']} {row['epsilon']:.4g}"] = row["accuracy"]
    for row in report.get("worst_case") or ():
        ball = f"{row['norm']} {row['epsilon']:.4g}"
        found[f"worst_case_accuracy {ball}"] = row["accuracy"]
        found[f"worst_class_accuracy {ball}"] = (row.get("worst_class") or {}).get("accuracy")
    for part, key, name in (("calibration", "ece", "expected_calibration_error"),
                            ("calibration", "brier", "brier_score"),
                            ("corruptions", "mean", "corruption_accuracy"),
                            ("training", "times_standard", "training_cost_times_standard")):
        found[name] = (report.get(part) or {}).get(key)
    found["ssim_of_attack"] = ((report.get("imperceptibility") or {}).get("ssim") or {}).get("mean")
    for verdict in ("pass", "fail"):
        found[f"checks_{verdict}"] = sum(check["verdict"] == verdict for check in report.get("checks") or ())
    found["evaluation_seconds"] = report.get("seconds")
    return {metric_name(name): float(value) for name, value in found.items()
            if isinstance(value, (int, float)) and math.isfinite(value)}


def metric_name(name: str) -> str:
    """`name` in letters that every tracker takes: spaces become underscores, others are dropped."""
    return re.sub(r"[^A-Za-z0-9_./-]", "", re.sub(r"[ :]+", "_", name))


def checks_markdown(report: Mapping) -> str:
    """The sanity checks as a table."""
    lines = ["| check | verdict | found |", "|---|---|---|"]
    for check in report.get("checks") or ():
        cells = (check["title"], check["verdict"].upper() if check["verdict"] == "fail" else check["verdict"],
                 check["detail"])
        lines.append("| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"
