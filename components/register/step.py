"""Put model, report and detector into one bundle, write its page, and register it as the challenger."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from redoubt.bundle import Bundle, open_bundle, seal
from redoubt.registry import Registry, Version
from redoubt.report import robustness_report

PAGE = "report.html"


def run(
    model: Path, evaluation: Path, detector: Path, out: Path, *,
    model_name: str, tracking_uri: str, cause: str = "manual", parent: int = 0, run_id: str = "",
) -> Version:
    """Assemble the bundle in `out` and register it.

    Args:
        cause: `manual`, or the campaign that this run answers.
        parent: the version that was champion when the run was asked for; 0 for none.
        run_id: an MLflow run to resume instead of starting one.
    """
    bundle = assemble(model, evaluation, detector, out)
    registry = Registry(tracking_uri, model_name)
    report = json.loads((evaluation / "report.json").read_text())
    metrics = {"clean_accuracy": report["clean_accuracy"], "train_seconds": bundle.manifest["training"]["seconds"]}
    for row in report["robust"]:
        metrics[f"accuracy_{row['label']}_{row['norm']}_{row['epsilon']:.4g}".replace(" ", "_")] = row["accuracy"]
    tags = {
        "objective": bundle.manifest["objective"], "cause": cause, "dataset": bundle.manifest["data"]["dataset"],
        "data_checksum": bundle.manifest["data"]["checksum"], "clean_accuracy": f"{report['clean_accuracy']:.4f}",
        "robust_accuracy": json.dumps({f"{r['label']} {r['norm']} {r['epsilon']:.4g}": round(r["accuracy"], 4)
                                       for r in report["robust"]}),
    }
    if parent:
        tags["parent_version"] = str(parent)
    return registry.register(bundle, metrics=metrics, parameters=bundle.manifest["parameters"], tags=tags,
                             run_id=run_id)


def assemble(model: Path, evaluation: Path, detector: Path, out: Path) -> Bundle:
    """One verified bundle out of the three folders that the steps before left."""
    bundle = open_bundle(model)
    shutil.copytree(model, out, dirs_exist_ok=True)
    shutil.copytree(detector, out, dirs_exist_ok=True)
    shutil.copy(evaluation / "report.json", out)
    report = json.loads((evaluation / "report.json").read_text())
    quality = json.loads((detector / "detection.json").read_text())
    strength = [(row["attack"], row["epsilon"], row["estimate"]) for row in quality["attacks"] if row["estimate"]]
    shown = json.loads((evaluation / "examples.json").read_text())
    robustness_report(out / PAGE, title=f"{bundle.manifest['data']['dataset']}, {bundle.architecture.name}",
                      report=report, examples=shown, strength=strength, card=card(bundle))
    return seal(out)


def card(bundle: Bundle) -> dict[str, str]:
    """The model card's facts for the page."""
    manifest = bundle.manifest
    return {
        "Dataset": manifest["data"]["dataset"],
        "Data checksum": manifest["data"]["checksum"][:16],
        "Architecture": bundle.architecture.name,
        "Objective": manifest["objective"],
        "Trained for": ", ".join(map(str, bundle.threats)) or "no threat model (undefended)",
        "Epochs": f"{manifest['training']['epochs']}, best {manifest['training']['best_epoch']}",
        "Training time": f"{manifest['training']['seconds']} s on {manifest['training']['device']}",
        "Seed": str(manifest["parameters"]["seed"]),
        "Pictures": ", ".join(f"{name} {split['n']}" for name, split in manifest["data"]["splits"].items()),
    }
