"""The loop, campaign after campaign, as nobody arranged it: random epsilon and share of the traffic, attacks in turn.

One registry, one server's home, Fashion-MNIST. Before each campaign the undefended version is champion; then requests
of one picture each, of which a random share (10 to 100 %) is attacked white-box (PGD-20, FGSM or momentum PGD, epsilon
0.05 to 0.2), arrive until the server has retrained and swapped by itself. After that the attacker learns the new
weights and goes on, which must start nothing further, and the first 3,000 test pictures under a fresh PGD-20 with the
true epsilon compare the new champion with an oracle: the default training from random weights, told the true epsilon.
The registry is then rolled back for the next one.

Two controls. Noise alone (four kinds, three sizes, no attack) must start no run. And the first campaigns' retrains are
repeated, from the same weights, with half and with twice the true epsilon, so that matching is seen to matter.

Cool-down is off and the budget does not bind. `--quick` is one campaign on few of the digits, which holds it only to
an answer. Finished campaigns are kept below results/loop, keyed by case, seed and the project's code; a call that was
cut off goes on with the next one.
"""

from __future__ import annotations

import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.cells import RESULTS, cell, code_key
from benchmarks.common import Report, arguments, table
from benchmarks.noise import changes
from components.prepare_data.step import run as prepare_data
from components.train.step import run as train
from pipelines import local
from pipelines.drill.measure import accuracies, correctness
from pipelines.drill.options import DrillOptions
from pipelines.drill.server import Server
from pipelines.traffic import adversarial
from redoubt.compute import settle_threads
from redoubt.data import Prepared
from redoubt.registry import Registry
from redoubt.threat import ThreatModel

MODEL = "loop"
ATTACKS, SHARE = ("pgd", "fgsm", "momentum"), (0.1, 1.0)
EPSILON = {"fashion-mnist": (0.05, 0.2), "digits": (0.2, 0.3)}
LIMIT = {"fashion-mnist": 0, "digits": 700}   # training pictures; 0 is all
PATIENCE = 4000          # requests without a retraining request, after which a campaign went unanswered
TRICKLE = 10             # requests a second while a run has the processors
SWAP_SECONDS = 1800
AFTER = 600              # requests after the swap
MEASURED = 3000          # test pictures behind each accuracy
CONTROLS = 2             # campaigns repeated with other epsilons
NOISE, NOISE_SIZES = ("gaussian", "sign", "uniform", "shot"), (0.05, 0.1, 0.2)
HEADER = ("campaign", "attack", "share", "alarm after", "asked after", "seconds to swap", "true", "estimate", "matched",
          "ratio", "runs", "clean", "PGD-20", "oracle", "of oracle")


@dataclass(frozen=True, kw_only=True)
class Case:
    """One campaign: what the attacker does, unknown to the served system."""

    number: int
    attack: str
    epsilon: float
    share: float


def cases(dataset: str, count: int, seed: int) -> list[Case]:
    """Attacks take turns, epsilon is even in its logarithm, the share even."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.rand(count, 2, generator=generator).tolist()
    low, high = EPSILON[dataset]
    return [Case(number=i, attack=ATTACKS[i % len(ATTACKS)], epsilon=round(low * (high / low) ** a, 4),
                 share=round(SHARE[0] + (SHARE[1] - SHARE[0]) * b, 2)) for i, (a, b) in enumerate(drawn)]


class Loop:
    """The served system, and the people who attack it."""

    def __init__(self, folder: Path, dataset: str, data_dir: str, seed: int):
        self.folder, self.dataset, self.data_dir, self.seed = folder, dataset, data_dir, seed
        self.uri = f"sqlite:///{folder / 'mlflow.db'}"
        self.registry = Registry(self.uri, MODEL)

    def options(self, case: Case | None = None) -> DrillOptions:
        attack = {"attack": case.attack, "epsilon": case.epsilon} if case else {}
        return DrillOptions(dataset=self.dataset, data_dir=self.data_dir, seed=self.seed, limit=LIMIT[self.dataset],
                            **attack)

    def prepare(self) -> None:
        """The undefended version 1, unless an earlier call left it, as champion."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if not (self.folder / "data").is_dir():
            prepare_data(self.folder / "data", dataset=self.dataset, data_dir=self.data_dir, split_seed=self.seed,
                         limit=LIMIT[self.dataset])
        self.data = Prepared.open(self.folder / "data")
        settle_threads(self.data.metadata["shape"][1])
        self.test = self.data.tensors("test")
        if not (self.folder / "mlflow.db").is_file() or self.registry.champion() is None:
            parameters = self.options().run_parameters("standard", model_name=MODEL, tracking_uri=self.uri)
            first = self.folder / "first-run"
            done = local.follow(local.start(parameters, first), first)
            if done.status != "promoted":
                raise SystemExit(f"the first run was {done.status}: {done.reason} (log: {first / 'run.log'})")
        self.go_back()
        self.forget()
        self.undefended = self.registry.fetch(self.registry.version(1), self.folder / "undefended")

    def go_back(self) -> None:
        """Make version 1 champion again."""
        while self.registry.champion().number != 1:
            self.registry.rollback(why="the next campaign")

    def forget(self) -> None:
        """Drop what a call that was cut off had under way: the server would go on with it in the next campaign."""
        for file in self.folder.glob("ledger.db*"):
            file.unlink()
        shutil.rmtree(self.folder / "retrains", ignore_errors=True)

    def serve(self) -> Server:
        return Server(self.folder, MODEL, self.uri, cool_down_seconds=0, daily_budget=10_000)

    # -- campaigns ----------------------------------------------------------------------------------------------

    def traffic(self, model, case: Case, seed: int) -> Iterator[Tensor]:
        """Single pictures [1, C, H, W] without end, each attacked with the case's share as probability."""
        generator, (x, y) = torch.Generator().manual_seed(seed), self.test
        while True:
            for rows in torch.randperm(len(x), generator=generator).split(128):
                sent, attacked = x[rows].clone(), torch.rand(len(rows), generator=generator) < case.share
                if attacked.any():
                    at = rows[attacked]
                    sent[attacked] = adversarial(model, x[at], y[at], ThreatModel("Linf", case.epsilon), case.attack,
                                                 levels=self.data.levels, seed=seed + int(rows[0]))
                yield from sent.split(1)

    def campaign(self, server: Server, case: Case) -> dict:
        """What happened to one campaign."""
        self.await_version(server, "1")
        asked_before = {run["id"] for run in server.client.status()["retrains"]}
        before = server.client.status()["monitor"]["distinct"]
        found: dict = {"request": None}
        model = self.undefended.model()
        pictures = self.traffic(model, case, 1000 * self.seed + case.number)
        for sent in range(1, PATIENCE + 1):
            server.client.infer(next(pictures))
            if sent % 10:
                continue
            runs = [run for run in server.client.status()["retrains"] if run["id"] not in asked_before]
            if runs:
                found["request"] = sent
                break
        status = server.client.status()
        seen = next((row for row in status["campaigns"] if row["model_version"] == "1"), None)
        opened = seen if seen and (seen["state"] == "open" or found["request"]) else None
        if opened:
            found |= {"alarm": opened["inputs_at_alarm"] - before, "reason": opened["reason"],
                      "strength": opened["strength"], "matched": opened["matched"]}
        if not found["request"]:
            return found | {"runs": 0}
        version = self.await_swap(server, pictures, asked_before)
        swap = max(server.client.status()["swaps"], key=lambda row: row["at"])
        found["seconds"] = round(swap["at"] - opened["opened_at"], 1)
        bundle = self.registry.fetch(version, self.folder / "defended" / str(version.number))
        defended, further = bundle.model(), self.traffic(bundle.model(), case, 1000 * self.seed + 500 + case.number)
        server.client.send_each(torch.cat([next(further) for _ in range(AFTER)]))
        time.sleep(2)
        found["runs"] = sum(run["id"] not in asked_before for run in server.client.status()["retrains"])
        return found | {"after": self.accuracy(defended, case)}

    def accuracy(self, model, case: Case) -> dict[str, float]:
        """Clean, under FGSM and under a fresh PGD-20 with the case's epsilon."""
        return accuracies(correctness(model, tuple(part[:MEASURED] for part in self.test), self.options(case)))

    def await_swap(self, server: Server, pictures: Iterator[Tensor], earlier: set[str]):
        """The attacker goes on quietly until another version serves; returns it."""
        deadline = time.monotonic() + SWAP_SECONDS
        while time.monotonic() < deadline:
            server.client.infer(next(pictures))
            time.sleep(1 / TRICKLE)
            status = server.client.status()
            run = next(run for run in status["retrains"] if run["id"] not in earlier)
            if run["state"] in ("refused", "failed"):
                raise SystemExit(f"the retraining run was {run['state']}: {run['reason']}")
            if status["champion"]["version"] != "1":
                return self.registry.version(int(status["champion"]["version"]))
        raise SystemExit(f"no new champion after {SWAP_SECONDS} s")

    def await_version(self, server: Server, number: str) -> None:
        deadline = time.monotonic() + 60
        while server.client.status()["champion"]["version"] != number:
            if time.monotonic() > deadline:
                raise SystemExit(f"version {number} does not serve after 60 s")
            time.sleep(0.2)

    def noise(self, server: Server, pictures: int) -> dict:
        """Harmless noise alone: how it ends."""
        self.await_version(server, "1")
        generator = torch.Generator().manual_seed(self.seed)
        before = server.client.status()
        known = {row["id"] for row in before["campaigns"]}
        rows = torch.randperm(len(self.test[0]), generator=generator)[:pictures]
        changed, sent = changes(self.test[0][rows], self.data.levels, generator), 0
        for kind in NOISE:
            for size in NOISE_SIZES:
                server.client.send_each(changed[f"{kind} {size}"])
                sent += pictures
        status = server.client.status()
        ended = {row["outcome"] or "open" for row in status["campaigns"] if row["id"] not in known}
        return {"requests": sent, "flagged": status["monitor"]["flagged"], "outcomes": sorted(ended),
                "runs": len(status["retrains"]) - len(before["retrains"])}

    # -- comparisons --------------------------------------------------------------------------------------------

    def oracle(self, case: Case) -> dict:
        """Told the true epsilon, trained in the pipeline's default way from random weights."""
        return self.trained(case, epsilon=case.epsilon)

    def retrained(self, case: Case, factor: float) -> dict:
        """The same retraining run as the system's, with `factor` times the true epsilon."""
        return self.trained(case, epsilon=factor * case.epsilon, start=str(self.undefended.folder))

    def trained(self, case: Case, **asked) -> dict[str, float]:
        with tempfile.TemporaryDirectory() as folder:
            bundle = train(self.folder / "data", Path(folder) / "model", seed=self.seed, **asked)
            return self.accuracy(bundle.model(), case)


def row(case: Case, found: dict, best: dict | None) -> list:
    """One line of the table."""
    strength, after = found.get("strength") or {}, found.get("after")
    matched = found.get("matched")
    cells = [case.number, case.attack, case.share, found.get("alarm"), found["request"], found.get("seconds"),
             case.epsilon, strength.get("estimate"), matched, matched and matched / case.epsilon, found["runs"],
             after and after["clean"], after and after["pgd20"], best and best["pgd20"],
             after and best and after["pgd20"] / best["pgd20"]]
    return ["-" if value is None else value for value in cells]


def judge(report: Report, rows: list[list], *, strict: bool) -> None:
    """Hold the campaigns to the project's figures; if not `strict`, only to having been answered."""
    shares = [line[-1] for line in rows if line[-1] != "-"]
    matches = [line[9] for line in rows if line[9] != "-"]
    report.figures["summary"] = summary = {
        "campaigns": len(rows), "alarms": sum(line[3] != "-" for line in rows),
        "answered": len(shares), "matched_1_to_1.25": sum(1 <= ratio <= 1.25 for ratio in matches),
        "needless_runs": sum(max(0, line[10] - 1) for line in rows),
        "of_oracle_mean": statistics.mean(shares) if shares else 0.0, "of_oracle_least": min(shares, default=0.0),
    }
    report.say(f"\n{summary['alarms']} alarms, {summary['answered']} answered, {summary['matched_1_to_1.25']} matched "
               f"in 1 to 1.25 x true, {summary['needless_runs']} further runs; recovered "
               f"{summary['of_oracle_mean']:.3f} of the oracle on average, {summary['of_oracle_least']:.3f} at least")
    report.require(len(shares) == len(rows), f"{len(shares)} of {len(rows)} campaigns were answered")
    if not strict:   # the digits' lattice is too coarse for a claim
        return
    report.require(summary["matched_1_to_1.25"] == len(rows),
                   f"{summary['matched_1_to_1.25']} of {len(rows)} matched in 1 to 1.25 x true")
    report.require(not summary["needless_runs"], f"{summary['needless_runs']} further runs")
    report.require(summary["of_oracle_mean"] >= 0.97, f"recovered {summary['of_oracle_mean']:.3f} on average, not 0.97")
    report.require(summary["of_oracle_least"] >= 0.95, f"recovered {summary['of_oracle_least']:.3f} once, not 0.95")


def main() -> int:
    args = arguments(__doc__, campaigns={"type": int, "default": 10, "help": "how many in a row (default 10)"})
    dataset, data_dir = "digits" if args.quick else "fashion-mnist", str(args.data_dir or "")
    count, controls, noisy = (1, 0, 25) if args.quick else (args.campaigns, CONTROLS, 250)
    code = code_key("redoubt", "components", "pipelines", "serving", "benchmarks/loop.py")
    key = {"code": code, "dataset": dataset, "seed": args.seed}
    report = Report(args, f"{count} campaigns in a row, {dataset}, compact-cnn")
    loop = Loop(RESULTS / "loop" / f"home-{dataset}-{code[:12]}-{args.seed}", dataset, data_dir, args.seed)
    loop.prepare()
    rows, other = [], []
    for case in cases(dataset, count, args.seed):
        def campaign(case=case) -> dict:
            with loop.serve() as server:
                found = loop.campaign(server, case)
            loop.go_back()
            return found

        found = cell("loop", key | {"case": asdict(case)}, campaign)
        best = cell("loop", key | {"oracle": asdict(case)}, lambda case=case: loop.oracle(case)) \
            if found.get("after") else None
        rows.append(row(case, found, best))
        report.say(table(HEADER, rows[-1:]) if len(rows) == 1 else table(HEADER, rows).splitlines()[-1])
        if case.number < controls and best:
            for factor in (0.5, 2.0):
                made = cell("loop", key | {"control": asdict(case), "factor": factor},
                            lambda case=case, factor=factor: loop.retrained(case, factor))
                other.append([case.number, case.epsilon, factor, made["clean"], made["pgd20"],
                              made["pgd20"] / best["pgd20"]])
    judge(report, rows, strict=not args.quick)

    def noise() -> dict:
        with loop.serve() as server:
            return loop.noise(server, noisy)

    quiet = cell("loop", key | {"noise": True}, noise)
    report.say(f"\nnoise alone: {quiet['requests']} requests, {quiet['flagged']} flagged, {quiet['runs']} runs, "
               f"ended as {', '.join(quiet['outcomes']) or 'nothing'}")
    report.require(quiet["runs"] == 0, f"noise started {quiet['runs']} runs")
    if other:
        report.say("\nretrained with another epsilon than the attack's, the same attack afterwards:")
        report.say(table(("campaign", "true", "times", "clean", "PGD-20", "of oracle"), other))
    report.figures |= {"campaigns": {"columns": HEADER, "rows": rows}, "noise": quiet, "other_epsilons": other}
    return report.close()


if __name__ == "__main__":
    sys.exit(main())
