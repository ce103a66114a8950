"""The drill, stage by stage. After the attack has begun the drill only sends traffic and reads the server's status.

What the attacker knows (epsilon above all) never leaves this file and `measure`: the served system learns it, if at
all, from the pictures.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from components.prepare_data.step import run as prepare_data
from pipelines import local
from pipelines.drill.measure import accuracies, correctness, oracle, recovery
from pipelines.drill.options import DrillOptions
from pipelines.drill.server import Server
from pipelines.drill.timeline import watched
from pipelines.show import plain_line
from pipelines.traffic import accuracy_of, adversarial
from redoubt.compute import processor, settle_threads
from redoubt.data import Prepared
from redoubt.errors import RedoubtError, RegistryError
from redoubt.registry import Registry
from redoubt.threat import covered_epsilon

MODEL = "drill"
CLEAN_REQUESTS = 2000     # at most; fewer when the test split is smaller
ALARM_REQUESTS = 1000     # without an alarm by then the attack went unnoticed
TRICKLE_PER_SECOND = 10   # the attacker's traffic while the retraining run has the processors
SWAP_SECONDS = 1800


class StageFailed(RedoubtError):
    """A stage did not end as it should; the message says why."""


@dataclass
class Drill:
    """A drill under way.

    Attributes:
        folder: holds everything that the drill writes.
        say: called with (stage, text) as the drill goes on.
        page: called with the address of the live page once the server answers.
        hold: called with the same before the server is stopped; it may wait.
        result: grows from stage to stage; it is what the report shows, also after a failure.
    """

    options: DrillOptions
    folder: Path
    say: Callable[[str, str], None] = lambda stage, text: None
    result: dict = field(default_factory=dict)
    page: Callable[[str], None] = lambda url: None
    hold: Callable[[str], None] = lambda url: None

    def __post_init__(self) -> None:
        self.started = time.time()
        self.tracking_uri = f"sqlite:///{self.folder / 'mlflow.db'}"
        self.registry = Registry(self.tracking_uri, MODEL)
        options = self.options
        self.result |= {
            "dataset": options.dataset, "attack": options.attack, "norm": options.norm,
            "epsilon_true": options.epsilon, "seed": options.seed, "hardware": processor(),
            "started": time.strftime("%Y-%m-%d %H:%M:%S"), "outcome": "failed", "failure": None, "stages": [],
            "accuracy": {}, "timeline": [], "events": [], "strength": None,
        }

    def run(self) -> dict:
        """All stages in order; returns the result, whose `outcome` is `recovered` or `failed`."""
        try:
            with self.stage("train the undefended champion"):
                self.train_champion()
            with (
                Server(self.folder, MODEL, self.tracking_uri, cool_down_seconds=0) as self.server,
                watched(self.status, self.result["timeline"], self.started),
            ):
                self.page(self.server.url)
                try:
                    self.serve()
                except RedoubtError:
                    self.hold(self.server.url)
                    raise
                self.hold(self.server.url)
            with self.stage("measure on the whole test split"):
                self.measure()
            if self.options.oracle:
                with self.stage("train the oracle"):
                    self.train_oracle()
            with self.stage("compare"):
                self.compare()
            self.result["outcome"] = "recovered"
        except RedoubtError as error:
            self.result["failure"] = {"stage": self.result["stages"][-1]["name"] if self.result["stages"] else "start",
                                      "reason": str(error)}
        self.result["seconds"] = round(time.time() - self.started, 1)
        return self.result

    def serve(self) -> None:
        """The stages that need the server."""
        for name, stage in (("clean traffic", self.clean_traffic), ("attack until the alarm", self.attack),
                            ("retrain and swap", self.wait_for_swap), ("replay the old attack", self.replay),
                            ("the same attacker goes on", self.go_on)):
            with self.stage(name):
                stage()

    # -- stages -------------------------------------------------------------------------------------------------

    def train_champion(self) -> None:
        folder = self.folder / "first-run"
        parameters = self.options.run_parameters("standard", model_name=MODEL, tracking_uri=self.tracking_uri)
        process = local.start(parameters, folder)
        with suppress(RegistryError):   # MLflow and its tables take seconds, in which the run starts its first steps
            self.registry.champion()
        prepare_data(self.folder / "data", dataset=self.options.dataset, data_dir=self.options.data_dir,
                     limit=self.options.limit, split_seed=self.options.seed)   # the drill's own copy, divided alike
        done = local.follow(process, folder, lambda row: self.say("", plain_line(row)))
        if done.status != "promoted":
            raise StageFailed(f"the first run was {done.status}: {done.reason} (log: {folder / 'run.log'})")
        self.prepared = Prepared.open(self.folder / "data")
        settle_threads(self.prepared.metadata["shape"][1])
        self.test = self.prepared.tensors("test")
        self.undefended = self.registry.fetch(self.registry.version(done.version), self.folder / "undefended").model()
        self.note(f"version {done.version} is champion")

    def clean_traffic(self) -> None:
        x, y = self.shuffled(CLEAN_REQUESTS)
        answers = self.server.client.send_each(x)
        campaigns = self.status()["campaigns"]
        self.result["clean_false_alarms"] = len(campaigns)
        self.note(f"{len(x)} requests, accuracy {accuracy_of(answers, y):.3f}, "
                  f"{sum(bool(a and a.flagged.any()) for a in answers)} flagged")
        if campaigns:
            raise StageFailed("clean traffic raised an alarm")

    def attack(self) -> None:
        before = self.status()["monitor"]["distinct"]
        self.event("attack begins")
        self.attack_pictures = self.attacks(self.undefended)
        for sent in range(1, ALARM_REQUESTS + 1):
            self.server.client.infer(next(self.attack_pictures))
            if sent % 4 == 0 and (campaign := self.campaign()):
                self.result["requests_until_alarm"] = campaign["inputs_at_alarm"] - before
                self.event("alarm", campaign["opened_at"])
                self.note(f"after {self.result['requests_until_alarm']} attack requests")
                return
        raise StageFailed(f"no alarm after {ALARM_REQUESTS} attack requests")

    def wait_for_swap(self) -> None:
        """The attacker goes on quietly; everything else is the served system's doing."""
        first, deadline, said = self.status()["champion"]["version"], time.monotonic() + SWAP_SECONDS, ""
        burst = self.result.get("requests_until_alarm", 0) + 300   # enough evidence to judge, then a trickle
        while time.monotonic() < deadline:
            self.server.client.infer(next(self.attack_pictures))
            burst -= 1
            if burst < 0:
                time.sleep(1 / TRICKLE_PER_SECOND)
            if burst % 10:
                continue
            status = self.status()
            run = status["retrains"][0] if status["retrains"] else None
            text = f"run {run['state']}, {run.get('step') or ''}" if run else "the campaign is being judged"
            if text != said:
                self.say("retrain and swap", text)
                said = text
            if run and run["state"] in ("refused", "failed"):
                raise StageFailed(f"the retraining run was {run['state']}: {run['reason']}")
            if status["champion"]["version"] != first:
                return self.swapped(status)
            if run is None and burst < -400:
                reason = (self.campaign() or {}).get("reason")
                raise StageFailed(f"no retraining was asked for: {reason or 'the campaign closed without a decision'}")
        raise StageFailed(f"no new champion after {SWAP_SECONDS} s")

    def swapped(self, status: dict) -> None:
        campaign, swap = self.campaign(), max(status["swaps"], key=lambda row: row["at"])
        strength = campaign["strength"]
        self.result["strength"] = {**{key: strength[key] for key in ("estimate", "low", "high", "n")},
                                   "norm": strength["norm"], "matched": campaign["matched"]}
        self.result["seconds_alarm_to_swap"] = round(swap["at"] - campaign["opened_at"], 1)
        self.event("swap", swap["at"])
        version = self.registry.version(int(swap["version"]))
        self.defended = self.registry.fetch(version, self.folder / "defended").model()
        self.covered = covered_epsilon(version.threats, self.options.norm)
        self.note(f"version {version.number}, trained for {', '.join(map(str, version.threats))}, in service "
                  f"{self.result['seconds_alarm_to_swap']} s after the alarm")

    def replay(self) -> None:
        x, y = self.test
        self.replayed = adversarial(self.undefended, x, y, self.options.threat, self.options.attack,
                                    levels=self.prepared.levels, seed=self.options.seed)
        sent = self.replayed[:1000].split(100)
        answers = [self.server.client.infer(part) for part in sent]
        right = accuracy_of(answers, y)
        self.note(f"{min(len(x), 1000)} pictures of the old attack, {100 * right:.1f} % answered rightly")

    def go_on(self) -> None:
        """The attacker learns the new weights and sends fresh attacks: known strength, so nothing may follow."""
        pictures, sent = self.attacks(self.defended, seed=self.options.seed + 2), 0
        while sent < self.options.requests:
            batch = torch.cat([next(pictures) for _ in range(min(250, self.options.requests - sent))])
            self.server.client.send_each(batch)
            sent += len(batch)
            self.say("the same attacker goes on", f"{sent} of {self.options.requests} requests")
        time.sleep(2)   # whatever is to follow from the last request has followed by then
        status = self.status()
        self.result |= {"retrains": len(status["retrains"]), "total_requests": self.server.client.sent,
                        "failed_requests": self.server.client.failed}
        if len(status["retrains"]) != 1:
            asked = ", ".join(f"{run['norm']} {run['epsilon']:.4g} ({run['state']})" for run in status["retrains"])
            raise StageFailed(f"one retraining run was due, there were {len(status['retrains'])}: {asked}")
        later = [row for row in status["campaigns"] if row["model_version"] != status["campaigns"][-1]["model_version"]]
        found = {row["outcome"] for row in later}
        if not found <= {"covered", None}:
            raise StageFailed(f"after the swap the attack was judged {found}, though the champion covers it: "
                              f"{later[0]['reason']}")
        self.note(f"{sent} requests, no further run; cool-down is off, so nothing but the estimate held it back")

    def measure(self) -> None:
        self.right = {"before": correctness(self.undefended, self.test, self.options),
                      "after": correctness(self.defended, self.test, self.options)}
        self.result["accuracy"] = {name: accuracies(values) for name, values in self.right.items()}
        from redoubt.evaluation.accuracy import accuracy

        for name, model in (("before", self.undefended), ("after", self.defended)):
            self.result["accuracy"][name]["replayed"] = accuracy(model, self.replayed, self.test[1])
        shown = slice(0, 6)
        self.result["examples"] = {"clean": self.test[0][shown].numpy().tolist(),
                                   "adversarial": self.replayed[shown].numpy().tolist()}

    def train_oracle(self) -> None:
        self.right["oracle"] = oracle(self.folder / "data", self.folder / "oracle", self.options,
                                      lambda row: self.say("train the oracle", f"epoch {row['epoch']}"))
        self.result["accuracy"]["oracle"] = accuracies(self.right["oracle"])

    def compare(self) -> None:
        if self.result["failed_requests"]:
            raise StageFailed(f"{self.result['failed_requests']} requests failed: {self.server.client.last_error}")
        why = recovery(self.right["after"], self.right["before"], self.right.get("oracle"))
        if why:
            raise StageFailed(why)

    # -- tools --------------------------------------------------------------------------------------------------

    def shuffled(self, n: int) -> tuple[Tensor, Tensor]:
        order = torch.randperm(len(self.test[0]), generator=torch.Generator().manual_seed(self.options.seed))[:n]
        return self.test[0][order], self.test[1][order]

    def attacks(self, model, seed: int | None = None):
        """An endless stream of single attack pictures [1, C, H, W], the test split over and over in random order."""
        turn = self.options.seed if seed is None else seed
        while True:
            order = torch.randperm(len(self.test[0]), generator=torch.Generator().manual_seed(turn))
            for start in range(0, len(order), 128):
                rows = order[start : start + 128]
                x_adv = adversarial(model, self.test[0][rows], self.test[1][rows], self.options.threat,
                                    self.options.attack, levels=self.prepared.levels, seed=turn + start)
                yield from x_adv.split(1)
            turn += 1000

    def status(self) -> dict:
        return self.server.client.status()

    def campaign(self) -> dict | None:
        """The first campaign that the server saw."""
        return min(self.status()["campaigns"], key=lambda row: row["opened_at"], default=None)

    def note(self, text: str) -> None:
        self.result["stages"][-1]["detail"] = text

    def event(self, name: str, at: float | None = None) -> None:
        self.result["events"].append({"t": round((at or time.time()) - self.started, 2), "name": name})

    @contextmanager
    def stage(self, name: str):
        row = {"name": name, "seconds": 0.0, "status": "running", "detail": ""}
        self.result["stages"].append(row)
        self.say(name, "")
        start = time.time()
        try:
            yield
            row["status"] = "ok"
        except RedoubtError as error:
            row |= {"status": "failed", "detail": str(error)}
            raise
        finally:
            row["seconds"] = round(time.time() - start, 1)
