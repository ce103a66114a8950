"""How the detector does against the attacks of torchattacks and foolbox, whose code it was not fitted with.

Undefended champions of Fashion-MNIST (epsilon 0.1) and of 32x32 colour patches (8/255); the first n test pictures
under each attack, rounded to 8 bits. Columns as in `benchmarks.detection`. No figure is required: the table says what a
user of these libraries would see. They need an environment of their own, `make peers`; `--peers-python` names its
interpreter. Pictures made are kept below results/detection/libraries.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.cells import ROOT, code_key
from benchmarks.common import Report, arguments, table
from benchmarks.detection import ATTACK_HEADER, attack_row, fitted, judged
from benchmarks.libraries.attacks import ALL, LINF, NEAREST
from benchmarks.training.peers import PYTHON
from benchmarks.unseen import COVERED, RESULTS, Subject, architecture, digest, subjects

GREY = ("TI-FGSM", "PI-FGSM", "PI-FGSM++")   # take three channels only
QUICK = ("FGSM", "PGD", "PGD on noisy copies")


def versions(python: Path) -> str:
    """Those of the libraries that the interpreter has; empty if it is none, or lacks one of them."""
    ask = ("from importlib.metadata import version\n"
           "print(*(f'{name} {version(name)}' for name in ('torchattacks', 'foolbox')), sep=', ')")
    try:
        return subprocess.run([str(python), "-c", ask], capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def made(of: Subject, epsilon: float, names: list[str], args) -> Path:
    """The folder that holds each attack's pictures, but for attacks that failed."""
    x, y = of.data.tensors("test", args.n)
    key = digest(of.key, epsilon, args.n, args.seed, code_key("benchmarks/libraries/attacks.py"), args.versions)
    folder = RESULTS / "libraries" / f"{of.name.replace(' ', '-')}-{key}"
    if all((folder / f"{name}.pt").is_file() for name in names):
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({"architecture": asdict(architecture(of.data)), "weights": of.model.state_dict(), "x": x, "y": y,
                "attacks": names, "levels": of.data.levels, "epsilon": epsilon, "seed": args.seed}, folder / "case.pt")
    subprocess.run([str(args.peers_python), "-m", "benchmarks.libraries.attacks", str(folder)], cwd=ROOT,
                   check=True)
    return folder


def pictures(folder: Path, name: str, x: Tensor, levels: int) -> tuple[Tensor, Tensor] | None:
    """What an attack changed, and which rows these are: what it left as it was is no attack. None where it failed."""
    if not (folder / f"{name}.pt").is_file():
        return None
    x_adv = torch.load(folder / f"{name}.pt", weights_only=True).float() / levels
    rows = ((x_adv - x).flatten(1).abs().amax(1) > 0).nonzero()[:, 0]
    return x_adv[rows], rows


def measure(report: Report, of: Subject, args) -> None:
    """The table of one champion."""
    epsilon = COVERED[of.dataset]
    names = [name for name in ALL if of.data.metadata["shape"][0] == 3 or name not in GREY]
    names = [name for name in names if not args.quick or name in QUICK]
    folder = made(of, epsilon, names, args)
    detector, x = fitted(of, args.seed, quick=args.quick), of.data.tensors("test", args.n)[0]
    clean = detector.assess(of.data.tensors("test")[0]).score
    rows = []
    for name in names:
        found = pictures(folder, name, x, of.data.levels)
        report.require(found is not None, f"{of.name}: {name} failed; what it said stands above")
        if found:
            bound = epsilon if name in LINF else None
            norm = "Linf" if name in LINF | NEAREST else "L2"
            cell = judged(of, detector, clean, *found, bound, args, norm=norm)
            rows.append(attack_row(of, name, bound, cell))
            report.figures.setdefault("attacks", []).append(
                {"champion": of.name, "attack": name, "epsilon": bound, **cell})
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
    args.versions = versions(args.peers_python)
    if not args.versions:
        print(f"no interpreter with torchattacks and foolbox at {args.peers_python}: run `make peers`, or name one "
              "with --peers-python", file=sys.stderr)
        return 2
    report = Report(args, f"Attacks of {args.versions}, compact-cnn, n = {args.n} an attack")
    for of in subjects(args.datasets, ["undefended"], args.seed, args.data_dir, quick=args.quick):
        measure(report, of, args)
    return report.close()


if __name__ == "__main__":
    sys.exit(main())
