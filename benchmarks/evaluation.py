"""Whether an evaluation can be trusted.

1. AutoAttack through us and pyautoattack alone: the same model, images and seed; the images that stand, and the time.
2. Planted frauds are flagged by the sanity checks, honest models are not.
4. SIGKILL in the middle of the suite `standard`: the figure after going on is the figure without.

(Figure 3, the gate over simulated promotions, has a benchmark of its own.) Everything on the digits, test split.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from benchmarks import frauds
from benchmarks.common import Report, arguments, prepared, table
from redoubt.bundle import write_bundle
from redoubt.evaluation.autoattack import autoattack, parts
from redoubt.evaluation.robustness import evaluate
from redoubt.evaluation.sanity import FAIL
from redoubt.evaluation.surrogate import fit_surrogate

SLOWER = 1.05   # what going through us may cost
STEP = "import sys; from pathlib import Path; from components.evaluate.step import run; " \
       "run(*map(Path, sys.argv[1:4]), suite='standard', limit=int(sys.argv[4]), state=Path(sys.argv[5]))"


def main() -> int:
    given = arguments(__doc__, only={"choices": ("autoattack", "frauds", "kill"), "help": "one figure alone"})
    torch.set_num_threads(given.threads or 1)   # 8x8 pictures: more threads would only wait for each other
    report = Report(given, "evaluation")
    data = prepared("digits")
    for name, figure in (("autoattack", same_as_alone), ("frauds", planted_frauds), ("kill", killed)):
        if given.only in (None, name):
            figure(report, data)
    return report.close()


def same_as_alone(report: Report, data) -> None:
    """Figure 1. Rounds take turns, so that what else the machine does falls on both; the quickest of each counts."""
    n, rounds = (60, 1) if report.given.quick else (299, 3)
    x, y = data.tensors("test", n)
    model, _ = frauds.trained(data, "pgd", (frauds.SMALL,), seed=report.given.seed, learning_rate=5e-3)
    times: dict[str, list[float]] = {"through us": [], "alone": []}
    stood = {}
    with tempfile.TemporaryDirectory() as folder:
        for i in range(rounds):
            for who, attack in (("through us", _ours), ("alone", _alone)):
                start = time.process_time()
                stood[who] = attack(model, x, y, report.given.seed, Path(folder) / f"state-{i}.json")
                times[who].append(time.process_time() - start)
    same = int((stood["through us"] == stood["alone"]).sum())
    ratio = min(times["through us"]) / min(times["alone"])
    rows = [(who, f"{int(stood[who].sum())} of {n}", min(seconds)) for who, seconds in times.items()]
    report.say(f"\n1. AutoAttack, {frauds.SMALL}, PGD-trained compact CNN, n = {n}, best of {rounds}, processor time")
    report.say(table(("", "stand", "seconds"), rows))
    report.say(f"verdicts that agree: {same} of {n}; time through us / alone: {ratio:.3f}")
    report.figures["autoattack"] = {"n": n, "agree": same, "seconds": times, "ratio": ratio,
                                    "accuracy": float(stood["alone"].float().mean())}
    report.require(same == n, f"AutoAttack through us and alone disagree on {n - same} images")
    report.require(ratio <= SLOWER, f"AutoAttack through us takes {ratio:.3f} times as long, more than {SLOWER}")


def _ours(model, x, y, seed: int, state: Path) -> torch.Tensor:
    return autoattack(model, x, y, frauds.SMALL, seed=seed, state=state).stood


def _alone(model, x, y, seed: int, state: Path) -> torch.Tensor:
    from pyautoattack import AutoAttack

    attack = AutoAttack(model, norm="Linf", eps=frauds.SMALL.epsilon, seed=seed, version="standard")
    return attack.run_standard_evaluation(x, y)[1] == y


def planted_frauds(report: Report, data) -> None:
    """Figure 2."""
    x, y = data.tensors("test")
    seeds = range(report.given.seed, report.given.seed + (1 if report.given.quick else 3))
    rows, caught, cleared = [], 0, 0
    counted = {True: 0, False: 0}
    for seed in seeds:
        models = frauds.planted(data, seed)
        surrogate = fit_surrogate(models[0].model.model.architecture, *data.tensors("train"), epochs=6, seed=seed + 1)
        for one in models:
            found = evaluate(one.model, x, y, classes=data.classes, threats=(one.threat,), levels=data.levels,
                             surrogate=surrogate, claim=one.claim, seed=seed)
            flags = [check["check"] for check in found["checks"] if check["verdict"] == FAIL]
            counted[one.honest] += 1
            caught += bool(flags) and not one.honest
            cleared += not flags and one.honest
            fgsm, pgd = (next(row["accuracy"] for row in found["attacks"] if row["attack"] == attack and
                              row["epsilon"] == one.threat.epsilon) for attack in ("fgsm", "pgd"))
            claim = f"{one.claim.attacked:.3f}" if one.claim else "-"
            rows.append((one.name, seed, str(one.threat), claim, found["clean_accuracy"], fgsm, pgd,
                         ", ".join(flags) or "-"))
            report.require(bool(flags) != one.honest, f"{one.name} (seed {seed}) is " + (
                f"flagged by {', '.join(flags)}" if flags else "not flagged"))
    report.say(f"\n2. planted frauds and honest models, n = {len(x)} (curve) and 128 (checks), suite quick")
    report.say(table(("model", "seed", "ball", "claims", "clean", "FGSM", "PGD-20", "failed checks"), rows))
    report.say(f"frauds flagged: {caught} of {counted[False]}; honest models not flagged: {cleared} of {counted[True]}")
    report.figures["frauds"] = {"flagged": caught, "frauds": counted[False], "cleared": cleared,
                                "honest": counted[True], "rows": rows}


def killed(report: Report, data) -> None:
    """Figure 4: the step in a process of its own, killed in one part of AutoAttack after the other."""
    n = 60 if report.given.quick else 299
    model, _ = frauds.trained(data, "pgd", (frauds.SMALL,), seed=report.given.seed, learning_rate=5e-3)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        write_bundle(folder / "model", model, classes=data.classes, threats=(frauds.SMALL,), objective="pgd",
                     parameters={"seed": 0}, data={"splits": data.metadata["splits"]}, training={})
        _step(folder, data, "whole", n).wait()
        rows = []
        for part in range(1, len(parts(len(data.classes)))):
            process = _step(folder, data, "resumed", n)
            at = _kill_in(process, folder / "resumed-state", part)
            rows.append((parts(len(data.classes))[part], at, process.returncode))
        rows.append(("to the end", 0.0, _step(folder, data, "resumed", n).wait()))
        whole, resumed = (json.loads((folder / name / "report.json").read_text()) for name in ("whole", "resumed"))
    same = all(whole[key] == resumed[key] for key in ("attacks", "robust", "worst_case", "clean_accuracy", "checks"))
    figures = [one["worst_case"][0] for one in (whole, resumed)]
    report.say(f"\n4. SIGKILL in the middle of `standard`, n = {n}")
    report.say(table(("killed in", "after s", "exit code"), rows))
    report.say("; ".join(f"{name}: {row['accuracy']:.4f} withstand {', '.join(row['attacks'])}" for name, row in
                         zip(("uninterrupted", "resumed"), figures, strict=True)))
    report.figures["kill"] = {"n": n, "same": same, "accuracy": [row["accuracy"] for row in figures], "kills": rows}
    report.require(same, "the resumed evaluation differs from the uninterrupted one")
    report.require([row[2] for row in rows] == [-signal.SIGKILL] * (len(rows) - 1) + [0], "a kill came too late")


def _step(folder: Path, data, name: str, n: int) -> subprocess.Popen:
    arguments_ = (data.folder, folder / "model", folder / name, n, folder / f"{name}-state")
    return subprocess.Popen([sys.executable, "-c", STEP, *map(str, arguments_)],
                            env=os.environ | {"OMP_NUM_THREADS": "1"})


def _kill_in(process: subprocess.Popen, state: Path, part: int) -> float:
    """Kill the process as soon as its state says that it has reached the part; the seconds until then."""
    start = time.perf_counter()
    while process.poll() is None:
        reached = [json.loads(file.read_text())["part"] for file in state.glob("*/autoattack-state*.json")]
        if reached and max(reached) >= part:
            time.sleep(0.2)
            process.kill()
            process.wait()
        time.sleep(0.02)
    return round(time.perf_counter() - start, 1)


if __name__ == "__main__":
    sys.exit(main())
