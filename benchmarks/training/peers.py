"""Against peers: the same network, batch, k, epsilon and machine, four ways to train, in one process that takes turns.

The peers need an environment of their own, `make peers`; `--peers-python` names its interpreter.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.cells import ROOT
from benchmarks.common import Report, prepared, table
from redoubt.errors import InvalidInput

PYTHON = ROOT / ".venv-peers/bin/python"
EPSILON = 0.1
# network: batch, batches a round that are timed, pictures of the short training, test pictures, least ratio to the
# fastest peer, to ART
NETWORKS = {
    "compact-cnn": (128, 20, 51200, 2000, 1.2, None),
    "preactresnet-18": (32, 4, 768, 128, 1.8, 2.5),
}
HEADER = ("network", "batch", "k", "by", "images/s", "redoubt is x faster", "n", "clean", "PGD-20")
QUICK = {"compact-cnn": (128, 5, 2560, 500), "preactresnet-18": (32, 1, 32, 32)}


def peers(report: Report) -> None:
    """Print images a second of each, and the accuracy of what each trained."""
    args = report.given
    python = args.peers_python or PYTHON
    if not Path(python).exists():
        raise InvalidInput(f"no interpreter at {python}: run `make peers`, or name one with --peers-python")
    rows = []
    for name, (batch, few, pictures, tests, over_fastest, over_art) in NETWORKS.items():
        if args.quick:
            batch, few, pictures, tests = QUICK[name]
        steps = 5
        with tempfile.TemporaryDirectory() as folder:
            file = _pictures(Path(folder) / "pictures.npz", name, pictures, tests, args)
            found = _run(python, file, name, batch, few, steps, 1 if args.quick else 2, args)
        rate = {key: batch / min(times) for key, times in found["seconds"].items()}
        fastest = max(value for key, value in rate.items() if key != "redoubt")
        fresh = [(name, batch, steps, key, value, rate["redoubt"] / value, found["accuracy"][key]["n"],
                  found["accuracy"][key]["clean"], found["accuracy"][key]["pgd20"]) for key, value in rate.items()]
        report.say(table(HEADER, fresh))   # as it comes: the residual network takes long
        rows += fresh
        report.require(rate["redoubt"] >= over_fastest * fastest,
                       f"{name}: {rate['redoubt'] / fastest:.2f} x the fastest peer, {over_fastest} is asked for")
        report.require(not over_art or rate["redoubt"] >= over_art * rate["ART"],
                       f"{name}: {rate['redoubt'] / rate['ART']:.2f} x ART, {over_art} is asked for")
        if not args.quick:
            _same_robustness(report, name, found["accuracy"])
    report.figures["peers"] = [dict(zip(HEADER, row, strict=True)) for row in rows]


def _same_robustness(report: Report, name: str, accuracy: dict[str, dict]) -> None:
    ours, n = accuracy["redoubt"]["pgd20"], accuracy["redoubt"]["n"]
    theirs = statistics.mean(found["pgd20"] for key, found in accuracy.items() if key != "redoubt")
    noise = 2 * (2 * theirs * (1 - theirs) / n) ** 0.5
    report.require(ours >= theirs - noise, f"{name}: PGD-20 accuracy {ours:.3f}, the peers' mean is {theirs:.3f}")


def _pictures(file: Path, name: str, n: int, tests: int, args) -> Path:
    """Fashion-MNIST; for the residual network 32x32 in three channels."""
    data, arrays = prepared("fashion-mnist", args.data_dir), {}
    for split, count, end in (("train", n, ""), ("test", tests, "_test")):
        x, y = data.tensors(split)
        drawn = torch.randperm(len(x), generator=torch.Generator().manual_seed(args.seed))
        drawn = drawn.repeat(-(-count // len(x)))[:count]
        x = x[drawn]
        if name != "compact-cnn":
            x = F.pad(x, (2, 2, 2, 2)).expand(-1, 3, -1, -1)
        arrays |= {f"x{end}": x.numpy(), f"y{end}": y[drawn].numpy()}
    np.savez(file, **arrays)
    return file


def _run(python: Path | str, file: Path, name: str, batch: int, few: int, steps: int, rounds: int, args) -> dict:
    rate = 2e-3 if name == "compact-cnn" else 1e-3
    command = [str(python), "-m", "benchmarks.training.loops", str(file)]
    for option, value in (("network", name), ("epsilon", EPSILON), ("steps", steps), ("batch", batch),
                          ("seed", args.seed), ("learning-rate", rate), ("rounds", rounds), ("timed-batches", few)):
        command += [f"--{option}", str(value)]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, text=True, capture_output=True)
    if done.returncode:
        raise InvalidInput(f"the peers' run failed: {done.stderr.strip()[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])
