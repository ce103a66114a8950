"""What every benchmark shares: its arguments, the line that says where a figure comes from, and the table.

A benchmark is run as `python -m benchmarks.NAME`. It prints its figures with hardware, n and seed; `--quick` is a small
version for a busy machine, `--check` turns a figure that falls short into exit code 1, `--json FILE` keeps them all.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from redoubt.compute import processor
from redoubt.data import Prepared, load_source, prepare
from redoubt.errors import InvalidInput


def arguments(description: str, **extra: dict) -> argparse.Namespace:
    """Parse the common options; `extra` maps further option names to `add_argument` keywords. For the main thread."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small version, under a minute on two cores")
    parser.add_argument("--check", action="store_true", help="exit with 1 and name every figure that falls short")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to FILE")
    parser.add_argument("--seed", type=int, default=0, help="fixes every random choice (default 0)")
    parser.add_argument("--threads", type=int, help="threads that torch may use (default: all cores)")
    parser.add_argument("--data-dir", type=Path, help="where the dataset's files lie")
    for name, keywords in extra.items():
        parser.add_argument("--" + name.replace("_", "-"), **keywords)
    given = parser.parse_args()
    # SIGTERM unwinds as Ctrl-C does: a benchmark that has a server running takes it along.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if given.threads:
        torch.set_num_threads(given.threads)
    return given


def hardware() -> str:
    """Processor, cores, threads in use, GPU if there is one, and torch's version, in one line."""
    parts = [processor(), f"{torch.get_num_threads()} threads", f"torch {torch.__version__}"]
    if torch.cuda.is_available():
        parts.insert(0, torch.cuda.get_device_name())
    return ", ".join(parts)


def table(header: Sequence[str], rows: Sequence[Sequence]) -> str:
    """Right-aligned columns; floats with four significant digits."""
    cells = [list(header)] + [[f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in cells)


def prepared(dataset: str, data_dir: Path | None = None) -> Prepared:
    """The dataset, prepared with seed 0 in a temporary folder that the system clears; exits with 2 if there is none."""
    try:
        return prepare(load_source(dataset, data_dir), Path(tempfile.mkdtemp(prefix="redoubt-bench-")) / "data", seed=0)
    except InvalidInput as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


class Report:
    """Collects figures and shortfalls, prints as it goes, and ends the program with the right exit code."""

    def __init__(self, given: argparse.Namespace, title: str):
        self.given, self.start = given, time.perf_counter()
        self.figures: dict = {"benchmark": title, "hardware": hardware(), "seed": given.seed, "quick": given.quick}
        self.shortfalls: list[str] = []
        print(f"{title}\n{self.figures['hardware']}; seed {given.seed}{'; quick' if given.quick else ''}", flush=True)

    def say(self, text: str = "") -> None:
        print(text, flush=True)

    def require(self, holds: bool, otherwise: str) -> None:
        """Note `otherwise` as a shortfall unless it `holds`."""
        if not holds:
            self.shortfalls.append(otherwise)

    def close(self) -> int:
        """Print the shortfalls, write the JSON file, and return the exit code."""
        self.figures |= {"shortfalls": self.shortfalls, "seconds": round(time.perf_counter() - self.start, 1)}
        for line in self.shortfalls:
            self.say(f"short: {line}")
        self.say(f"{'all figures reached' if not self.shortfalls else 'falls short'}, {self.figures['seconds']} s")
        if self.given.json:
            self.given.json.write_text(json.dumps(self.figures, indent=1))
        return int(bool(self.given.check and self.shortfalls))
