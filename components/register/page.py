"""What a version's page and its run in the registry show: model card, figures, strengths, data that went in."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from redoubt.bundle import Bundle
from redoubt.report import report_figures

QUALITY = "detection.json"   # the detector's own report, in its step's output and in the bundle


def page_title(bundle: Bundle) -> str:
    """What a version is called on its page."""
    return f"{bundle.manifest['data']['dataset']}, {bundle.architecture.name}"


def card(bundle: Bundle) -> dict[str, str]:
    """The model card's facts for the page."""
    manifest = bundle.manifest
    return {
        "Dataset": manifest["data"]["dataset"],
        "Data checksum": manifest["data"]["checksum"][:16],
        "Architecture": bundle.architecture.name,
        "Objective": manifest["objective"],
        "Trained for": ", ".join(map(str, bundle.threats)) or "no threat model (undefended)",
        "Started from": started_from(manifest["training"]),
        "Epochs": f"{manifest['training']['epochs']}, best {manifest['training']['best_epoch']}",
        "Training time": f"{manifest['training']['seconds']} s on {manifest['training']['device']}",
        "Seed": str(manifest["parameters"]["seed"]),
        "Pictures": ", ".join(f"{name} {split['n']}" for name, split in manifest["data"]["splits"].items()),
    }


def started_from(training: dict) -> str:
    """Which weights a version began with, in words."""
    start, given_up = training.get("start"), training.get("start_given_up")
    if not start:
        return "random weights" + (f" ({given_up})" if given_up else "")
    return start.get("version", "").replace("/", " version ") or f"weights {start['weights_sha256'][:16]}"


def strength_points(folder: Path) -> list[tuple[str, float, float]]:
    """(attack, true epsilon, estimated epsilon) of the detector's own test; empty where it left none."""
    if not (folder / QUALITY).is_file():
        return []
    quality = json.loads((folder / QUALITY).read_text())
    return [(row["attack"], row["epsilon"], row["estimate"]) for row in quality["attacks"] if row["estimate"]]


def save_figures(folder: Path, report: Mapping) -> Path:
    """The page's plots as PNG files, for the registry's web page."""
    return report_figures(folder, report)


def datasets(bundle: Bundle, report: Mapping) -> list[tuple[str, str, str, str]]:
    """The data that went in, as (name, digest, source, context): what was trained on and what was evaluated on."""
    data = bundle.manifest["data"]
    splits, source = data["splits"], f"{data['dataset']} {json.dumps(data.get('request') or {}, sort_keys=True)}"
    used = (("train", "training"), (report.get("split", "test"), "evaluation"))
    return [(f"{data['dataset']}-{split}", splits[split]["sha256"], source, context)
            for split, context in used if split in splits]
