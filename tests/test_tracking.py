"""Figures reach a real MLflow while a run goes on; a server that is slow, gone or never there costs a warning."""

import socket
import threading
import time

import pytest

from redoubt.bundle import write_bundle
from redoubt.registry import Registry
from redoubt.threat import ThreatModel
from redoubt.tracking import LiveRun, Tracker, beat, figures

ROW = {"epoch": 1, "updates": 5, "loss": 0.5, "clean_accuracy": 0.9, "robust_accuracy": 0.6, "weights": "raw",
       "seconds": 2.0, "images_per_second": 100.0}


class Sink:
    """Remembers what it is told; fails, or takes its time, while it is told to."""

    def __init__(self, *, broken=False, slow=0.0):
        self.broken, self.slow, self.rows, self.batches, self.tries, self.ended = broken, slow, [], 0, 0, None

    def begin(self):
        self.tries += 1
        time.sleep(self.slow)
        if self.broken:
            raise OSError("nobody there")
        return "run"

    def send(self, rows):
        if self.broken:
            raise OSError("nobody there")
        self.batches += 1
        self.rows += rows

    def end(self, *, failed):
        self.ended = failed


def until(condition, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert condition()


def quick(sink, **changes):
    return Tracker(sink, **{"delay": 0.0, "every": 0.1, **changes})


def test_rows_are_sent_in_batches_and_in_order():
    sink = Sink()
    tracker = quick(sink)
    until(lambda: tracker.run_id)
    for step in range(200):
        tracker(beat(step, {"loss": 1.0, "learning_rate": 0.1, "other": 3}))
    assert tracker.close() == "run"
    assert [step for step, *_ in sink.rows] == list(range(200))
    assert sink.rows[0][2] == {"train/loss": 1.0, "train/learning_rate": 0.1}
    assert sink.batches < 20
    assert sink.ended is False


def test_a_run_that_fails_is_ended_as_failed():
    sink = Sink()
    tracker = quick(sink)
    until(lambda: tracker.run_id)
    tracker.close(failed=True)
    assert sink.ended is True


def test_a_short_run_does_not_bother_the_server():
    sink = Sink()
    tracker = Tracker(sink, delay=60.0)
    tracker(figures(ROW))
    assert tracker.close() == ""
    assert sink.tries == 0


def test_a_server_that_is_gone_is_warned_of_once_and_found_again():
    sink, warnings = Sink(broken=True), []
    tracker = quick(sink, again=0.1, warn=warnings.append)
    tracker(figures(ROW))
    until(lambda: sink.tries >= 3)
    assert len(warnings) == 1 and "training goes on: nobody there" in warnings[0]
    sink.broken = False
    until(lambda: sink.rows)
    tracker.close()
    assert [row[0] for row in sink.rows] == [5], "nothing is lost, nothing is sent twice"


def test_a_run_does_not_wait_for_a_server_that_failed_or_hangs():
    gone, hanging, warnings = Sink(broken=True), Sink(slow=60.0), []
    for sink, patience in ((gone, 60.0), (hanging, 0.2)):
        tracker = quick(sink, patience=patience, warn=warnings.append)
        until(lambda sink=sink: sink.tries)
        time.sleep(0.1)
        start = time.monotonic()
        tracker(figures(ROW))
        assert tracker.close() == ""
        assert time.monotonic() - start < 2.0
    assert len(warnings) == 2 and "too long" in warnings[1]


def test_names_of_figures():
    step, _, values = figures(ROW)
    assert step == 5
    assert values == {"train/epoch_loss": 0.5, "train/epoch": 1, "train/seconds": 2.0,
                      "validation/clean_accuracy": 0.9, "validation/robust_accuracy": 0.6}


@pytest.fixture(scope="module")
def registry(tmp_path_factory):
    return Registry(f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'm.db'}", "digits")


@pytest.fixture
def bundle(digits_model, tmp_path):
    return write_bundle(tmp_path / "bundle", digits_model, classes=list("0123456789"),
                        threats=[ThreatModel("Linf", 0.1)], objective="pgd")


def client(registry):
    from mlflow import MlflowClient

    return MlflowClient(registry.tracking_uri, registry.tracking_uri)


def test_figures_and_the_machines_own_arrive_while_the_run_goes_on(registry, bundle, monkeypatch):
    pytest.importorskip("psutil")
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "1")
    tracker = quick(LiveRun(registry, name="c1", parameters={"seed": 3, "epochs": 2}))
    tracker(beat(3, {"loss": 0.7, "learning_rate": 1e-3, "images_per_second": 9.0}))
    tracker(figures(ROW | {"robust_accuracy": float("nan")}))
    until(lambda: tracker.run_id and client(registry).get_metric_history(tracker.run_id, "train/epoch_loss"), 60)
    run = client(registry).get_run(tracker.run_id)
    assert run.info.status == "RUNNING"
    assert run.data.params == {"seed": "3", "epochs": "2"}
    assert run.data.metrics["train/loss"] == 0.7
    assert "validation/robust_accuracy" not in run.data.metrics, "no server takes what is no number"
    assert [point.step for point in client(registry).get_metric_history(tracker.run_id, "train/epoch_loss")] == [5]
    until(lambda: any(n.startswith("system/") for n in client(registry).get_run(tracker.run_id).data.metrics), 30)
    run_id = tracker.close()
    assert client(registry).get_run(run_id).info.status == "FINISHED"
    version = registry.register(bundle, metrics={}, parameters={"seed": 3, "epochs": 2}, tags={}, run_ids=(run_id,))
    assert version.run_id == run_id, "training and version are one run"
    again = registry.register(bundle, metrics={}, parameters={"seed": 3}, tags={}, run_ids=(run_id,))
    assert again.run_id != run_id, "a cached training step must not lead to a version that overwrites another's files"


def test_a_given_run_is_taken_up_and_an_unknown_one_does_not_stop_registration(registry, bundle):
    made = client(registry).create_run(registry._experiment(client(registry))).info.run_id
    client(registry).set_terminated(made, "FAILED")
    run_id, monitor = registry.begin_run("c1", {"seed": 3}, run_id=made)
    if monitor:
        monitor.finish()
    assert run_id == made and client(registry).get_run(made).info.status == "RUNNING"
    version = registry.register(bundle, metrics={}, parameters={"seed": 3}, tags={}, run_ids=("f" * 32, "", made))
    assert version.run_id == made


def test_an_unreachable_server_costs_one_warning_and_no_time(monkeypatch):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    warnings, told = [], threading.Event()
    tracker = quick(LiveRun(Registry(f"http://127.0.0.1:{port}", "digits"), name="c", parameters={}),
                    warn=lambda text: (warnings.append(text), told.set()))
    tracker(figures(ROW))
    assert told.wait(30)
    start = time.monotonic()
    assert tracker.close() == ""
    assert time.monotonic() - start < 1.0
    assert len(warnings) == 1 and "could not begin a run" in warnings[0]
