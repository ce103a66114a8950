"""Submit overhead: from the start of `redoubt submit` until the server has created the run, and where the time goes.

The server is the tests' stand-in, which keeps the REST contract of Kubeflow Pipelines and answers at once over a real
socket: what is measured is the command's own time. `first` uploads the version, `again` finds it.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

from benchmarks.common import Report, arguments, table

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))
from standins.kfp_server import KfpServer  # noqa: E402

IMAGE = f"registry/redoubt/steps@sha256:{'a' * 64}"
LIMIT = 3.0


def submit(url: str, server: KfpServer, seed: int) -> float:
    """Seconds from the command's start to the run's creation."""
    created = threading.Event()
    server.on_run = lambda run: created.set()
    began = time.perf_counter()
    child = subprocess.Popen(
        [sys.executable, "-m", "pipelines.cli", "submit", "--endpoint", url, "--image", IMAGE, "--dataset", "digits",
         "--seed", str(seed), "--no-wait"], cwd=ROOT, stdout=subprocess.DEVNULL)
    while not created.wait(0.005):
        if child.poll() not in (None, 0):
            raise SystemExit("the command failed")
    took = time.perf_counter() - began
    child.wait()
    return took


def main() -> int:
    given = arguments(__doc__)
    report = Report(given, "submit overhead")
    repeats = 3 if given.quick else 15
    rows = []
    for kind in ("first", "again"):
        server = KfpServer()
        with server.listening() as url:
            if kind == "again":
                submit(url, server, 10_000)
            taken = []
            for number in range(repeats):
                if kind == "first":
                    server.versions.clear()
                taken.append(submit(url, server, number))
        taken.sort()
        rows.append((kind, repeats, taken[0], taken[len(taken) // 2], taken[-1]))
        report.figures[kind] = taken
        median = taken[len(taken) // 2]
        report.require(median < LIMIT, f"{kind}: the median is {median:.2f} s, not under {LIMIT:g} s")
    report.say(table(("submit", "n", "least s", "median s", "most s"), rows))
    return report.close()


if __name__ == "__main__":
    sys.exit(main())
