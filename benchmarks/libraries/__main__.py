"""How the detector does against the attacks of torchattacks and foolbox, none of which was used to build it.

Undefended champions of Fashion-MNIST (epsilon 0.1) and of 32x32 colour patches (8/255); the first n test pictures
under each attack, rounded to 8 bits. Columns as in `benchmarks.detection`. No figure is required: the table says what a
user of these libraries would see. They need an environment of their own, `make peers`; `--peers-python` names its
interpreter. Pictures made are kept below results/detection/libraries.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.cells import ROOT, code_key
from benchmarks.common import Report, arguments, table
from benchmarks.detection import ATTACK_HEADER, attack_row, fitted, judged
from benchmarks.libraries.attacks import ALL, LINF, NEAREST
from benchmarks.training.peers import PYTHON
from benchmarks.unseen import COVERED, RESULTS, Subject, digest, subjects

GREY = ("TI-FGSM", "PI-FGSM", "PI-FGSM++")   # take three channels only
QUICK = ("FGSM", "PGD", "PGD on noisy copies")


def made(of: Subject, epsilon: float, names: list[str], n: int, seed: int, python: Path) -> Path:
    """The folder that holds each attack's pictures."""
    x, y = of.data.tensors("test", n)
    key = digest(of.key, epsilon, n, seed, code_key("benchmarks/libraries/attacks.py"))
    folder = RESULTS / "libraries" / f"{of.name.replace(' ', '-')}-{key}"
    folder.mkdir(parents=True, exist_ok=True)
    card = of.data.metadata
    architecture = {"name": "compact-cnn", "num_classes": len(of.data.classes), "channels": card["shape"][0],
                    "size": card["shape"][1], "mean": card["mean"], "std": card["std"]}
    torch.save({"architecture": architecture, "weights": of.model.state_dict(), "x": x, "y": y, "attacks": names,
                "levels": of.data.levels, "epsilon": epsilon, "seed": seed}, folder / "case.pt")
    subprocess.run([str(python), "-m", "benchmarks.libraries.attacks", str(folder)], cwd=ROOT, check=True)
    return folder


def pictures(folder: Path, name: str, x: Tensor, levels: int) -> tuple[Tensor, Tensor]:
    """What an attack changed, and which rows these are; what it left as it was is no attack."""
    x_adv = torch.load(folder / f"{name}.pt", weights_only=True).float() / levels
    rows = ((x_adv - x).flatten(1).abs().amax(1) > 0).nonzero()[:, 0]
    return x_adv[rows], rows


def measure(report: Report, of: Subject, args, python: Path) -> None:
    """The table of one champion."""
    epsilon = COVERED[of.dataset]
    names = [name for name in ALL if of.data.metadata["shape"][0] == 3 or name not in GREY]
    names = [name for name in names if not args.quick or name in QUICK]
    folder = made(of, epsilon, names, args.n, args.seed, python)
    detector, x = fitted(of, args.seed, quick=args.quick), of.data.tensors("test", args.n)[0]
    clean = detector.assess(of.data.tensors("test")[0]).score
    rows = []
    for name in names:
        bound = epsilon if name in LINF else None
        cell = judged(of, detector, clean, *pictures(folder, name, x, of.data.levels), bound, args,
                      norm="Linf" if name in LINF | NEAREST else "L2")
        rows.append(attack_row(of, name, bound, cell))
        report.figures.setdefault("attacks", []).append({"champion": of.name, "attack": name, "epsilon": bound, **cell})
    report.say(f"\n{table(ATTACK_HEADER, rows)}")


def main() -> int:
    args = arguments(
        __doc__,
        n={"type": int, "default": 200, "help": "test pictures attacked (default 200)"},
        campaigns={"type": int, "default": 200, "help": "campaigns drawn for each attack (default 200)"},
        datasets={"nargs": "+", "default": list(COVERED), "choices": list(COVERED)},
        peers_python={"type": Path, "metavar": "PATH", "default": PYTHON,
                      "help": "interpreter with the libraries (default .venv-peers)"},
    )
    if args.quick:
        args.n, args.campaigns, args.datasets = 64, 20, ["fashion-mnist"]
    if not args.peers_python.exists():
        print(f"no interpreter at {args.peers_python}: run `make peers`, or name one with --peers-python",
              file=sys.stderr)
        return 2
    report = Report(args, f"Attacks of torchattacks and foolbox, compact-cnn, n = {args.n} an attack")
    for of in subjects(args.datasets, ["undefended"], args.seed, args.data_dir):
        measure(report, of, args, args.peers_python)
    return report.close()


if __name__ == "__main__":
    sys.exit(main())
