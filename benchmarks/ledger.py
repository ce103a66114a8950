"""Exactly one retrain a campaign: simulated campaigns, three replicas each, killed at every step boundary.

The replicas are the real thing: watch, leadership, ledger, retrainer and launcher as a server puts them together, and a
run claims its campaign as the pipeline's first step does. API server and Kubeflow Pipelines are the stand-ins of the
tests, which keep resourceVersions and the REST contract. A boundary is a call to either. At its boundary a replica is

    killed before    the call is not made
    killed after     the call is carried out, nobody hears of it
    put to sleep     it wakes, its clock still where it was, when another replica has done everything

and in every other campaign the replica that takes over is struck, too. What is counted is runs that trained.
"""

from __future__ import annotations

import random
import sys
import tempfile
import threading
from collections import Counter
from pathlib import Path

import torch

from benchmarks.common import Report, arguments, table
from redoubt.cluster.claims import claim
from redoubt.cluster.http import Connection
from redoubt.cluster.kubernetes import Kubernetes
from redoubt.cluster.runs import Pipelines
from redoubt.detection import Verdicts
from serving.cluster.counts import Exchange
from serving.cluster.launcher import KfpLauncher, Pinned
from serving.cluster.leadership import Leadership
from serving.cluster.ledger import ConfigMapLedger
from serving.cluster.watch import SharedWatch
from serving.launcher import Result
from serving.problems import Problems
from serving.retrainer import Retrainer
from serving.settings import Settings

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "serving")]
from serving_support import model  # noqa: E402
from standins.api_server import ApiServer  # noqa: E402
from standins.kfp_server import KfpServer  # noqa: E402

STRIKES = ("killed before", "killed after", "put to sleep")


class Killed(BaseException):
    """The process is gone: nothing catches this."""


class World:
    """One campaign's servers, and what its runs did."""

    def __init__(self, seed: int):
        self.random = random.Random(seed)
        self.api, self.kfp = ApiServer(), KfpServer()
        self.kfp.on_run = lambda run: self.waiting.append(run)
        self.waiting: list[dict] = []
        self.trained: list[str] = []
        self.verdicts: dict[str, Result] = {}
        pipeline = self.kfp._keep(self.kfp.pipelines, "pipeline_id", {"name": "p", "display_name": "p"})["pipeline_id"]
        version = self.kfp._keep(self.kfp.versions, "pipeline_version_id",
                                 {"pipeline_id": pipeline, "name": "v", "display_name": "v"})["pipeline_version_id"]
        self.pinned = Pinned(pipeline=pipeline, version=version, experiment="retraining")
        self.kubernetes = self.connect(self.api)

    def connect(self, server, **strike):
        connection = Connection("http://server", what="server", transport=server.transport(**strike),
                                sleep=lambda _: None)
        return Kubernetes(connection, "redoubt") if server is self.api else Pipelines(connection)

    def advance(self, *, all_of_them: bool = False) -> None:
        """Pods start when they start: each waiting run begins, claims and trains, or goes on waiting."""
        for run in list(self.waiting):
            if all_of_them or self.random.random() < 0.5:
                self.waiting.remove(run)
                name = run["runtime_config"]["parameters"]["claim"]
                if claim(self.kubernetes, name, run["run_id"]) != run["run_id"]:
                    self.kfp.play(run["run_id"], "FAILED", step="begin", error="claimed by another run")
                    continue
                self.trained.append(run["run_id"])
                cause = run["runtime_config"]["parameters"]["cause"]
                self.verdicts[cause] = Result(status="promoted", version="2", reason="better")
                self.kfp.play(run["run_id"], "SUCCEEDED")

    # -- what a launcher asks the registry for -------------------------------------------------------------------

    def parameters(self, request: dict) -> dict:
        return {"epsilon": request["epsilon"], "cause": request["campaign"]}

    def judged(self, request: dict) -> Result | None:
        self.advance()   # time passes
        return self.verdicts.get(request["campaign"])


class Replica:
    """A server's parts, with a clock that stands still unless it is moved, struck at one of its calls."""

    def __init__(self, world: World, name: str, home: Path, at: int | None = None, strike: str = ""):
        self.world, self.now, self.calls, self.at, self.strike = world, 0.0, 0, at, strike
        self.acting = False
        self.asleep, self.awake = threading.Event(), threading.Event()
        hooks = {"before": self._before, "after": self._after}
        kubernetes, problems, clock = world.connect(world.api, **hooks), Problems(), lambda: self.now
        settings = Settings(model_name="digits", home=home / name, backoff_seconds=0, cool_down_seconds=0)
        self.leadership = Leadership(kubernetes, "leader", name, problems, clock=clock)
        self.ledger = ConfigMapLedger(kubernetes, "ledger", self.leadership, clock=clock)
        self.watch = SharedWatch(settings, self.ledger, problems, lambda: None, leadership=self.leadership,
                                 exchange=Exchange(kubernetes, "counts", name), clock=clock)
        launcher = KfpLauncher(world.connect(world.kfp, **hooks), kubernetes, world, world.pinned, problems, poll=0.0,
                               clock=clock)
        self.retrainer = Retrainer(settings, self.ledger, launcher, problems, lambda request: None,
                                   leads=lambda: self.leadership.leads)
        self.loaded = model("1")
        self.watch.on_model(self.loaded)

    def _before(self, call) -> None:
        if not self.acting:   # only looks on at whoever leads
            return
        self.calls += 1
        self.world.advance()
        if self.calls == self.at and self.strike != "killed after":
            if self.strike == "killed before":
                raise Killed
            self.asleep.set()
            self.awake.wait()

    def _after(self, call) -> None:
        if self.acting and self.calls == self.at and self.strike == "killed after":
            raise Killed

    def live(self) -> None:
        """Serve under attack, as long as this replica leads and something is owed."""
        self.acting = True
        try:
            for _ in range(12):
                if not self.leadership.campaign():
                    return
                self._attacked()
                self.watch.tick()
                self._retrain()
                if self.world.verdicts and not any(row.finished_at is None for row in self.ledger.requests()):
                    return
        except Killed:
            self.leadership.resign()

    def _retrain(self) -> None:
        from serving.records import LedgerUnavailable

        try:
            self.retrainer.work_off()
        except LedgerUnavailable:   # as its thread does
            return

    def _attacked(self) -> None:
        n, x = 70, torch.rand(70, 1, 8, 8)
        none = torch.zeros(n)
        flags = torch.ones(n, dtype=torch.bool)
        self.watch.observe(self.loaded, x, Verdicts(score=none, probability=none, is_adversarial=flags, strength=none,
                                                    low=none, high=none, evidence=torch.zeros(n, 4)))


def campaign(seed: int, at: int, strike: str, also: tuple[int, str] | None, home: Path) -> tuple[World, list]:
    """One campaign to its end; `also` strikes the second replica. Returns the world and the ledger's requests."""
    world = World(seed)
    first = Replica(world, "a", home, at, strike)
    second = Replica(world, "b", home, *(also or (None, "")))
    third = Replica(world, "c", home)
    sleepers = []
    for replica in (first, second, third):
        if replica is not first:
            replica.leadership.campaign()   # sees the Lease, and then that it does not change any more
            replica.now += 20.0
        thread = threading.Thread(target=replica.live, daemon=True)
        thread.start()
        while thread.is_alive() and not replica.asleep.is_set():
            thread.join(0.001)
        if thread.is_alive():
            sleepers.append((replica, thread))
    for replica, thread in sleepers:   # late wakers, one after the other
        replica.awake.set()
        thread.join(30)
    world.advance(all_of_them=True)
    third.now += 20.0
    third.leadership.campaign()
    third.now += 20.0
    third.live()
    third.ledger.forget()
    return world, third.ledger.requests()


def main() -> int:
    given = arguments(__doc__, campaigns={"type": int, "help": "how many (default 1000, quick 60)"})
    torch.set_num_threads(1)
    torch.manual_seed(given.seed)
    report = Report(given, "one retrain a campaign, three replicas")
    count = given.campaigns or (60 if given.quick else 1000)
    with tempfile.TemporaryDirectory(prefix="redoubt-bench-") as folder:
        boundaries = _undisturbed(given.seed, Path(folder))
        rng = random.Random(given.seed)
        rows = {strike: Counter() for strike in STRIKES}
        for number in range(count):
            at, strike = number % boundaries + 1, STRIKES[number // boundaries % len(STRIKES)]
            also = (rng.randint(1, boundaries), rng.choice(STRIKES)) if number % 2 else None
            world, requests = campaign(given.seed + number, at, strike, also, Path(folder) / str(number))
            one = len(world.trained) == 1 and [row.state for row in requests] == ["promoted"]
            rows[strike] += Counter(campaigns=1, exactly_one=one, trained=len(world.trained),
                                    started=len(world.kfp.runs), runs_refused=len(world.kfp.runs) - len(world.trained))
            report.require(one, f"campaign {number}, {strike} at call {at}, also {also}: {len(world.trained)} trained, "
                                f"requests {[row.state for row in requests]}")
    report.figures |= {"boundaries": boundaries, "rows": {key: dict(value) for key, value in rows.items()}}
    columns = ("campaigns", "exactly_one", "trained", "started", "runs_refused")
    report.say(f"{count} campaigns, {boundaries} step boundaries")
    report.say(table(("strike", *columns), [(name, *(row[key] for key in columns)) for name, row in rows.items()]))
    return report.close()


def _undisturbed(seed: int, home: Path) -> int:
    """How many calls a replica makes from its election to the verdict, nobody striking it."""
    world = World(seed)
    replica = Replica(world, "a", home)
    replica.live()
    return replica.calls


if __name__ == "__main__":
    sys.exit(main())
