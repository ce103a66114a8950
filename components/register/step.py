"""Put model, report and detector into one bundle, write its page, and register it as the challenger."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path

from components.register.page import card, datasets, page_title, save_figures, strength_points
from redoubt.bundle import MANIFEST, Bundle, open_bundle, seal
from redoubt.names import REPORT
from redoubt.promotion.page import describe
from redoubt.registry import Registry, Version
from redoubt.report import robustness_report
from redoubt.report.facts import figures_to_quote, metric_values
from redoubt.signing import SIGNING_KEY, sign
from redoubt.threat import ThreatModel
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
    report = json.loads((evaluation / REPORT).read_text())
    metrics = metric_values(report) | {"train_seconds": bundle.manifest["training"]["seconds"]}
    training = bundle.manifest["training"]
    version = registry.register(
        bundle, metrics=metrics, parameters=bundle.manifest["parameters"],
        tags=facts(bundle, report, cause, parent) | training_facts(training),
        run_ids=(training.get("run_id", ""), run_id),
    )
    registry.describe(version, describe(version))
    with tempfile.TemporaryDirectory() as scratch:
        registry.record(version, folder=save_figures(Path(scratch), report), at="figures",
                        datasets=datasets(bundle, report))
    if version.run_id != training.get("run_id"):   # training's figures did not get there while it went on
        registry.log_rows(version.run_id, [figures(row) for row in training["history"]])
    return version


def training_facts(training: dict) -> dict[str, str]:
    """How the version was trained, as tags: for how long, and what its weights began with."""
    tags = {"epochs": str(training["epochs"]), "warm_start": str(training["warm_start"]).lower()}
    if training["start"]:
        tags["start_version"] = str(training["start"]["version"] or training["start"]["weights_sha256"])
    if training["start_given_up"]:
        tags["start_given_up"] = training["start_given_up"][:500]
    return tags


def facts(bundle: Bundle, report: dict, cause: str, parent: int) -> dict[str, str]:
    """What versions are searched for, as tags. `epsilon` and `norm` are those that the run was asked for; accuracy
    under attack is that on the threat model asked for, every other one stands in `robust_accuracies`."""
    manifest, threat = bundle.manifest, asked_for(bundle)
    tags = {
        "objective": manifest["objective"], "cause": cause, "dataset": manifest["data"]["dataset"],
        "architecture": bundle.architecture.name, "data_checksum": manifest["data"]["checksum"],
        "epsilon": f"{threat.epsilon:.4g}" if threat else "0", "norm": threat.norm if threat else "none",
        "clean_accuracy": f"{report['clean_accuracy']:.4f}", **figures_to_quote(report, threat),
    }
    return tags | ({"parent_version": str(parent)} if parent else {})


def asked_for(bundle: Bundle) -> ThreatModel | None:
    """The threat model that the version's run was asked to cover; None for an undefended version."""
    norm = bundle.manifest["parameters"].get("norm")
    return next((threat for threat in bundle.threats if threat.norm == norm), None)


def assemble(model: Path, evaluation: Path, detector: Path, out: Path) -> Bundle:
    """One verified bundle out of the three folders that the steps before left."""
    bundle = open_bundle(model)
    shutil.copytree(model, out, dirs_exist_ok=True)
    shutil.copytree(detector, out, dirs_exist_ok=True)
    shutil.copy(evaluation / REPORT, out)
    report = json.loads((evaluation / REPORT).read_text())
    shown = json.loads((evaluation / "examples.json").read_text())
    robustness_report(out / PAGE, title=page_title(bundle), report=report, examples=shown, card=card(bundle),
                      strength=strength_points(detector))
    sealed = seal(out)
    if os.environ.get(SIGNING_KEY):
        sign(out, MANIFEST, os.environ[SIGNING_KEY])
    return sealed
