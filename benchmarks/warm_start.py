"""What a warm start saves: a retrain at the matched epsilon that fine-tunes an undefended champion, or begins anew.

Fashion-MNIST, compact CNN, Linf 0.1, the pipeline's own train step with its defaults for both. Required: the warm start
reaches 97 % of the robust accuracy that the run from scratch ends with, in at most a third of that run's time, and
loses at most a point of its clean accuracy. Seconds are the training's own, looks at the validation split included;
accuracy under PGD-20 is that of the validation split. Shown beside them: the same fine-tuning of random weights, so
that what the schedule gives is not taken for what the champion gives. Finished runs are kept in results/warm_start.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch

from benchmarks.cells import TRAINING_CODE, cell, cell_file, code_key
from benchmarks.common import Report, arguments, prepared, table
from components.train import step
from redoubt.bundle import open_bundle, write_bundle
from redoubt.data import Prepared
from redoubt.models import build
from redoubt.training import config, validate

EPSILON = 0.1
SHARE, TIME, CLEAN = 0.97, 1 / 3, 0.01
CODE = (*TRAINING_CODE, "components/train", "benchmarks/warm_start.py")
validate.STEPS = 20   # the looks that choose the weights are the curve, too


def runs(data: Prepared, key: dict) -> dict[str, list[dict]]:
    """Histories of the champion, of the run from scratch, of the warm start, and of the same from random weights.

    Each is a cell of its own; the champion's bundle is kept beside them.
    """
    seed, kept = key["seed"], cell_file("warm_start", key | {"run": "champion"}, ".bundle")
    with tempfile.TemporaryDirectory() as folder:
        def go(name: str, out: Path, **asked) -> list[dict]:
            def train() -> dict:
                bundle = step.run(data.folder, out, epsilon=EPSILON, seed=seed, **asked)
                return {"history": bundle.manifest["training"]["history"]}

            return cell("warm_start", key | {"run": name}, train)["history"]

        before = go("champion", kept, objective="standard")
        champion = open_bundle(kept)
        torch.manual_seed(seed)
        unknowing = write_bundle(Path(folder) / "random", build(champion.architecture), classes=champion.classes,
                                 threats=(), objective="standard")
        return {"champion": before,
                "warm start": go("warm", Path(folder) / "warm", start=str(kept)),
                "from scratch": go("scratch", Path(folder) / "scratch"),
                "same, random weights": go("control", Path(folder) / "control", start=str(unknowing.folder))}


def reached(history: list[dict], accuracy: float) -> float | None:
    """Seconds until the first row of at least that robust accuracy; None when there is none."""
    return next((row["seconds"] for row in history if row["robust_accuracy"] >= accuracy), None)


def judge(report: Report, found: dict[str, list[dict]]) -> dict:
    """Print both curves, and hold the warm start to what is required of it."""
    report.say(table(("run", "epoch", "seconds", "clean", "PGD-20"), [
        (name, row["epoch"], row["seconds"], row["clean_accuracy"], row.get("robust_accuracy", float("nan")))
        for name, history in found.items() for row in history]))
    cold, warm = found["from scratch"], found["warm start"]
    best = max(cold, key=lambda row: row["robust_accuracy"])
    asked, whole = SHARE * best["robust_accuracy"], cold[-1]["seconds"]
    took, alone = reached(warm, asked), reached(cold, asked)
    clean = max(warm, key=lambda row: row["robust_accuracy"])["clean_accuracy"]
    figures = {"asked": asked, "from_scratch_seconds": whole, "from_scratch_reaches_it_after": alone,
               "warm_start_reaches_it_after": took, "ratio": took and took / whole, "clean_warm": clean,
               "clean_from_scratch": best["clean_accuracy"], "warm_start_ends_with": warm[-1]["robust_accuracy"]}
    report.say(f"{SHARE:.0%} of the robust accuracy from scratch is {asked:.3f}: from scratch after {alone:.1f} s of "
               f"{whole:.1f} s, warm after " + (f"{took:.1f} s, {took / whole:.2f} of the time" if took else "no time"))
    report.require(took is not None, f"the warm start ends with {warm[-1]['robust_accuracy']:.3f}, not {asked:.3f}")
    report.require(took is None or took <= TIME * whole,
                   f"the warm start takes {(took or 0) / whole:.2f} of the time from scratch, {TIME:.2f} is allowed")
    report.require(clean >= best["clean_accuracy"] - CLEAN,
                   f"the warm start has {clean:.3f} of clean accuracy, from scratch {best['clean_accuracy']:.3f}")
    return figures


def main() -> int:
    args = arguments(__doc__, seeds={"type": int, "default": 1, "help": "so many runs, from --seed on (default 1)"})
    report = Report(args, "Warm start")
    if args.quick:
        config.MOST_EPOCHS = 8
    data = prepared("digits" if args.quick else "fashion-mnist", args.data_dir)
    for seed in range(args.seed, args.seed + args.seeds):
        key = {"code": code_key(*CODE), "data": data.checksum, "seed": seed, "quick": args.quick,
               "hardware": report.figures["hardware"]}
        found = runs(data, key)
        report.say(f"\nseed {seed}, {data.metadata['dataset']}, n = {data.metadata['splits']['validation']['n']}")
        report.figures[f"seed {seed}"] = judge(report, found) | {"histories": found}
    return report.close()


if __name__ == "__main__":
    sys.exit(main())
