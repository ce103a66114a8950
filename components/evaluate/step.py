"""Measure a bundle on the test split, clean and attacked."""

from __future__ import annotations

import json
from pathlib import Path

from redoubt.bundle import open_bundle
from redoubt.compute import device, settle_threads
from redoubt.data import Prepared
from redoubt.evaluation.robustness import evaluate, examples
from redoubt.threat import ThreatModel

REPORT, EXAMPLES = "report.json", "examples.json"


def run(data: Path, model: Path, out: Path, *, norm: str = "Linf", epsilon: float = 0.1, limit: int = 0,
        curve_n: int = 1000, seed: int = 0) -> dict:
    """Write `report.json` and `examples.json` to `out` and return the report.

    Args:
        norm, epsilon: what the example pictures are attacked with, and where an undefended model is measured.
        limit: use only so many test pictures; 0 uses them all.
        curve_n: pictures behind each point of the curve over epsilon.
    """
    prepared, bundle = Prepared.open(data), open_bundle(model)
    settle_threads(bundle.architecture.size)
    network = bundle.model(device())
    x, y = prepared.tensors("test", limit or None)
    threat = ThreatModel(norm, epsilon)
    report = evaluate(network, x, y, classes=prepared.classes, threats=bundle.threats or (threat,),
                      levels=prepared.levels, curve_n=curve_n, seed=seed)
    report["dataset"] = prepared.metadata["dataset"]
    shown = examples(network, x, y, threat, classes=prepared.classes, seed=seed)
    out.mkdir(parents=True, exist_ok=True)
    (out / REPORT).write_text(json.dumps(report, indent=1))
    (out / EXAMPLES).write_text(json.dumps(shown, default=lambda pixels: pixels.round(4).tolist()))
    return report
