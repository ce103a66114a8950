"""Put model, report and detector into one bundle, write its page, and register it as the challenger."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

from components.register.page import card, datasets, page_title, save_figures, strength_points
from redoubt.bundle import Bundle, open_bundle, seal
from redoubt.registry import Registry, Version
from redoubt.report import robustness_report
from redoubt.report.facts import metric_values
from redoubt.tracking import figures

PAGE = "report.html"


def run(
    model: Path, evaluation: Path, detector: Path, out: Path, *,
    model_name: str, tracking_uri: str, cause: str = "manual", parent: int = 0, run_id: str = "",
) -> Version:
    """Assemble the bundle in `out` and register it.

    Args:
        cause: `manual`, or the campaign that this run answers.
        parent: the version that was champion when the run was asked for; 0 for none.
        run_id: an MLflow run to resume where training left none.
    """
    bundle = assemble(model, evaluation, detector, out)
    registry = Registry(tracking_uri, model_name)
    report = json.loads((evaluation / "report.json").read_text())
    metrics = metric_values(report) | {"train_seconds": bundle.manifest["training"]["seconds"]}
    tags = {
        "objective": bundle.manifest["objective"], "cause": cause, "dataset": bundle.manifest["data"]["dataset"],
        "suite": str(report.get("suite", "quick")),
        "data_checksum": bundle.manifest["data"]["checksum"], "clean_accuracy": f"{report['clean_accuracy']:.4f}",
        "robust_accuracy": json.dumps({f"{r['label']} {r['norm']} {r['epsilon']:.4g}": round(r["accuracy"], 4)
                                       for r in report["robust"]}),
    }
    training = bundle.manifest["training"]
    tags |= {"epochs": training["epochs"], "warm_start": str(training["warm_start"]).lower()}
    if training["start"]:
        tags["start_version"] = training["start"]["version"] or training["start"]["weights_sha256"]
    if training["start_given_up"]:
        tags["start_given_up"] = training["start_given_up"][:500]
    if parent:
        tags["parent_version"] = str(parent)
    version = registry.register(bundle, metrics=metrics, parameters=bundle.manifest["parameters"], tags=tags,
                                run_ids=(training.get("run_id", ""), run_id))
    with tempfile.TemporaryDirectory() as scratch:
        registry.record(version, folder=save_figures(Path(scratch), report), at="figures",
                        datasets=datasets(bundle, report))
    if version.run_id != training.get("run_id"):   # training's figures did not get there while it went on
        registry.log_rows(version.run_id, [figures(row) for row in training["history"]])
    return version


def assemble(model: Path, evaluation: Path, detector: Path, out: Path) -> Bundle:
    """One verified bundle out of the three folders that the steps before left."""
    bundle = open_bundle(model)
    shutil.copytree(model, out, dirs_exist_ok=True)
    shutil.copytree(detector, out, dirs_exist_ok=True)
    shutil.copy(evaluation / "report.json", out)
    report = json.loads((evaluation / "report.json").read_text())
    shown = json.loads((evaluation / "examples.json").read_text())
    robustness_report(out / PAGE, title=page_title(bundle), report=report, examples=shown, card=card(bundle),
                      strength=strength_points(detector))
    return seal(out)
