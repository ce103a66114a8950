"""Clean traffic at a served model, over HTTP: the whole test split five times over, and one flagged picture a thousand
times. Neither may raise an alarm or ask for a retraining run.

Fashion-MNIST with the undefended champion of the pipeline; `--quick` does the digits.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch

from benchmarks.common import Report, arguments, table
from components.prepare_data.step import run as prepare_data
from pipelines import local
from pipelines.drill.server import Server
from pipelines.parameters import RunParameters
from redoubt.data import Prepared

ROUNDS, REPEATS, BATCH = 5, 1000, 100


def main() -> int:
    args = arguments(__doc__)
    dataset = "digits" if args.quick else "fashion-mnist"
    report = Report(args, f"Clean traffic, {dataset}")
    with tempfile.TemporaryDirectory(prefix="redoubt-bench-") as folder:
        home = Path(folder)
        uri = f"sqlite:///{home / 'mlflow.db'}"
        parameters = RunParameters(dataset=dataset, objective="standard", seed=args.seed, model_name="clean",
                                   tracking_uri=uri, data_dir=str(args.data_dir or ""))
        result = local.follow(local.start(parameters, home / "run"), home / "run")
        if result.status != "promoted":
            raise SystemExit(f"the run was {result.status}: {result.reason}")
        prepare_data(home / "data", dataset=dataset, data_dir=str(args.data_dir or ""))
        x, _ = Prepared.open(home / "data").tensors("test")
        with Server(home, "clean", uri) as server:
            rows = [rounds(server.client, x), one_picture(server.client, x)]
            failed = server.client.failed
    header = ("traffic", "requests", "inputs", "distinct", "flagged", "alarms", "retrains")
    report.say(f"\n{table(header, rows)}\n")
    report.figures |= {"rows": rows, "failed": failed}
    for row in rows:
        report.require(row[-2] == 0 and row[-1] == 0, f"{row[0]}: {row[-2]} alarms, {row[-1]} retraining runs")
    report.require(failed == 0, f"{failed} requests failed")
    return report.close()


def rounds(client, x: torch.Tensor) -> list:
    """The test split over and over."""
    for _ in range(ROUNDS):
        for part in x.split(BATCH):
            client.infer(part)
    return line("test split five times over", client, ROUNDS * -(-len(x) // BATCH))


def one_picture(client, x: torch.Tensor) -> list:
    """One picture that is flagged though clean, each time as a request of its own."""
    flagged = torch.cat([client.infer(part).flagged for part in x.split(BATCH)])
    chosen = x[flagged][:1] if flagged.any() else x[:1]
    for _ in range(REPEATS):
        client.infer(chosen)
    return line(f"one {'flagged' if flagged.any() else '(no picture was flagged: unflagged)'} picture, "
                f"{REPEATS} times", client, REPEATS)


def line(name: str, client, requests: int) -> list:
    status = client.status()
    monitor = status["monitor"]
    return [name, requests, monitor["inputs"], monitor["distinct"], monitor["flagged"], len(status["campaigns"]),
            len(status["retrains"])]


if __name__ == "__main__":
    sys.exit(main())
