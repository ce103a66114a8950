"""An evaluation's report as flat facts: metrics for trackers, tags of versions, the checks as a table of Markdown."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping

from redoubt.threat import ThreatModel

SUITES = ("quick", "standard", "full")   # the weakest first


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


def figures_to_quote(report: Mapping, threat: ThreatModel | None) -> dict[str, str]:
    """What a version is searched by, as tags: `robust_accuracy` is the share that withstood every attack.

    Args:
        threat: what the version was asked to cover; without one, or where it was not measured, the worst counts.
    """
    rows = report.get("worst_case") or report["robust"]
    asked = [row for row in rows if threat and (row["norm"], row["epsilon"]) == (threat.norm, threat.epsilon)]
    all_of_them = {f"{row['label']} {row['norm']} {row['epsilon']:.4g}": round(row["accuracy"], 4)
                   for row in report["robust"]}
    tags = {"suite": str(report.get("suite", "quick")), "evaluated_images": str(report["n"]),
            "robust_accuracies": json.dumps(all_of_them)}
    worst = min((row["accuracy"] for row in asked or rows), default=None)
    return tags if worst is None else tags | {"robust_accuracy": f"{worst:.4f}"}


def outweighs(new: Mapping[str, str], old: Mapping[str, str]) -> bool:
    """Whether the figures of an evaluation take the place of those that a version's tags have: those of a stronger
    suite do, and within a suite those of as many pictures or more. An earlier release did not count them: it took all.
    """
    def weight(tags: Mapping[str, str]) -> tuple[int, float]:
        suite = tags.get("suite", "quick")
        return SUITES.index(suite) if suite in SUITES else -1, float(tags.get("evaluated_images", math.inf))

    return "robust_accuracies" not in old or weight(new) >= weight(old)


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
