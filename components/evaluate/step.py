"""Measure a bundle on the test split: a suite of attacks, sanity checks, corruptions, visibility, cost."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from redoubt.bundle import Bundle, open_bundle
from redoubt.compute import device, processor, settle_threads
from redoubt.data import Prepared
from redoubt.errors import InvalidInput
from redoubt.evaluation.corruptions import corruption_accuracy
from redoubt.evaluation.examples import examples
from redoubt.evaluation.imperceptibility import imperceptibility
from redoubt.evaluation.overlap import unseen
from redoubt.evaluation.robustness import evaluate
from redoubt.evaluation.sanity import Claim
from redoubt.evaluation.store import forget
from redoubt.evaluation.suites import check_suite
from redoubt.evaluation.surrogate import fit_surrogate, standard_epoch_seconds
from redoubt.names import REPORT
from redoubt.threat import ThreatModel

EXAMPLES = "examples.json"
CHECKPOINTS = "REDOUBT_CHECKPOINTS"   # names a folder that outlives the step's process
CORRUPTED, VISIBLE = 500, 100         # pictures behind each corruption, and behind the figures of visibility
KEPT_SECONDS = 7 * 24 * 3600.0   # for which what an evaluation has finished waits for its next attempt
SURROGATE = {"quick": (3000, 3), "standard": (5000, 4), "full": (20000, 5)}   # pictures and epochs


def run(data: Path, model: Path, out: Path, *, norm: str = "Linf", epsilon: float = 0.1, limit: int = 0,
        curve_n: int = 1000, suite: str = "quick", seed: int = 0, state: Path | None = None,
        progress: Callable[[dict], None] = lambda row: None) -> dict:
    """Write `report.json` and `examples.json` to `out` and return the report.

    Args:
        norm, epsilon: what the example pictures are attacked with, and where an undefended model is measured.
        limit: use only so many test pictures; 0 uses them all.
        curve_n: pictures behind each point of the curve over epsilon.
        suite: `quick`, `standard` or `full`.
        state: a folder that a killed evaluation goes on from; whoever names one empties it (`store.forget`) once the
            report is where it is to stay. By default one beside the run's checkpoints, if it has any, where what nobody
            has touched for a week is removed: the report still has to be uploaded when this function returns.
        progress: called with each finished row.

    Raises:
        InvalidInput: for an unknown suite, a model for other pictures or classes, and test pictures that the model was
            trained on.
    """
    check_suite(suite)
    prepared, bundle = Prepared.open(data), open_bundle(model)
    check_fits(bundle, prepared)
    settle_threads(bundle.architecture.size)
    where = device()
    network = bundle.model(where)
    x, y, twins = pictures(prepared, limit)
    threat = next((t for t in bundle.threats if t.norm == norm), ThreatModel(norm, epsilon))
    own = None if state else state_folder()
    forget(own, idle=KEPT_SECONDS)
    few, epochs = SURROGATE[suite]
    x_train, y_train = (part.to(where) for part in prepared.tensors("train", few))
    report = evaluate(
        network, x, y, classes=prepared.classes, threats=bundle.threats or (threat,), levels=prepared.levels,
        suite=suite, curve_n=curve_n, seed=seed, state=state or own, progress=progress,
        surrogate=fit_surrogate(bundle.architecture, x_train, y_train, epochs=epochs, seed=seed + 1),
        claim=claim(bundle),
    )
    report |= {
        "dataset": prepared.metadata["dataset"], "data_checksum": prepared.checksum, "split": "test",
        "twins_left_out": twins, "classes": list(prepared.classes), "shape": list(prepared.metadata["shape"]),
        "defended": bool(bundle.threats), "hardware": hardware(where),
        "model": {"architecture": bundle.architecture.name, "weights_sha256": bundle.manifest["files"]
                  ["model.safetensors"], "parameters": sum(part.numel() for part in network.parameters())},
        "corruptions": corruption_accuracy(network, x[:CORRUPTED], y[:CORRUPTED], seed=seed),
        "imperceptibility": imperceptibility(network, x[:VISIBLE], y[:VISIBLE], threat, seed=seed),
        "training": training_cost(bundle, network, x_train, y_train),
    }
    shown = examples(network, x, y, threat, classes=prepared.classes, seed=seed)
    out.mkdir(parents=True, exist_ok=True)
    (out / REPORT).write_text(json.dumps(report, indent=1, allow_nan=False))
    (out / EXAMPLES).write_text(json.dumps(shown, default=lambda pixels: pixels.round(4).tolist()))
    return report


def check_fits(bundle: Bundle, prepared: Prepared) -> None:
    """Raise InvalidInput when the model takes other pictures, or names other classes, than the data has."""
    dataset = prepared.metadata["dataset"]
    takes, has = ("x".join(map(str, shape)) for shape in (bundle.architecture.input_shape, prepared.metadata["shape"]))
    if takes != has:
        raise InvalidInput(f"the model takes pictures of {takes}, those of {dataset} are {has}: evaluate it on data of "
                           "its own shape")
    if list(bundle.classes) != list(prepared.classes):
        raise InvalidInput(f"the model's classes are {', '.join(map(str, bundle.classes))}, those of {dataset} "
                           f"{', '.join(map(str, prepared.classes))}")


def pictures(prepared: Prepared, limit: int) -> tuple[torch.Tensor, torch.Tensor, int]:
    """The first `limit` test pictures (0: all) and labels, and how many were left out as twins of training pictures."""
    images, labels = (np.asarray(part[: limit or None]) for part in prepared.arrays("test"))
    fresh = unseen(images, prepared.arrays("train")[0])
    x = torch.from_numpy(images[fresh]).float() / prepared.levels
    return x, torch.from_numpy(labels[fresh]), int((~fresh).sum())


def state_folder() -> Path | None:
    """Where a killed evaluation of this run would have left what it had finished."""
    folder = os.environ.get(CHECKPOINTS)
    return Path(folder) / "evaluation" if folder else None


def hardware(where: torch.device) -> str:
    """What the figures of cost were measured on."""
    name = torch.cuda.get_device_name(where) if where.type == "cuda" else processor()
    return f"{name}, {torch.get_num_threads()} threads"


def claim(bundle: Bundle) -> Claim | None:
    """What training reported of the weights that it chose."""
    record = bundle.manifest.get("training") or {}
    n = (bundle.manifest.get("data", {}).get("splits", {}).get("validation") or {}).get("n")
    rows = [row for row in record.get("history") or () if row.get("epoch") == record.get("best_epoch")]
    if not rows or not n or "robust_accuracy" not in rows[-1]:
        return None
    return Claim(attacked=float(rows[-1]["robust_accuracy"]), clean=float(rows[-1]["clean_accuracy"]), n=int(n))


def training_cost(bundle: Bundle, network: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> dict:
    """What training took by the manifest, beside what a standard model of the same network would take here."""
    record = bundle.manifest.get("training") or {}
    seconds, epochs, batch = (record.get(key) for key in ("seconds", "epochs", "batch_size"))
    n = (bundle.manifest.get("data", {}).get("splits", {}).get("train") or {}).get("n")
    ran = (record.get("history") or [{}])[-1].get("epoch") or epochs   # a row for each epoch that was looked at
    if not (seconds and ran and n):
        return {"seconds": seconds, "epochs": epochs, "standard_epoch_seconds": None, "times_standard": None}
    standard = standard_epoch_seconds(network, x, y, n, batch_size=batch or 128)
    return {"seconds": float(seconds), "epochs": ran, "pictures": n, "device": record.get("device"),
            "standard_epoch_seconds": standard, "times_standard": float(seconds) / (ran * standard)}
