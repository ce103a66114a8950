"""Train a model on prepared data and write its bundle."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

from components.context import CHECKPOINTS, Progress
from components.train import together, trainjob
from components.train.parent import find
from components.train.trainjob import Nodes
from components.train.work import Work, wanted
from redoubt.bundle import Bundle, open_bundle, seal
from redoubt.data import Prepared
from redoubt.registry import Registry
from redoubt.tracking import LiveRun, Tracker, beat, figures

SAY_SECONDS = 5.0   # between two lines of progress within an epoch


def run(
    data: Path,
    out: Path,
    *,
    architecture: str = "compact-cnn",
    objective: str = "blend",
    norm: str = "Linf",
    epsilon: float = 0.1,
    also: str = "[]",
    epochs: int = 0,
    steps: int = 5,
    lam: float = 1.0,
    plugins: str = "{}",
    seed: int = 0,
    precision: str = "auto",
    processes: int = 1,
    start: str = "",
    parent: int = 0,
    from_scratch: bool = False,
    model_name: str = "",
    tracking_uri: str = "",
    run_id: str = "",
    progress: Callable[[dict], None] = lambda row: None,
) -> Bundle:
    """Train and write a bundle without report and detector.

    Args:
        also: JSON list of further [norm, epsilon] pairs to cover, as a retrain does with the champion's set.
        epochs: 0 takes the default for objective, architecture and number of pictures. A warm start is a fine-tuning
            (`redoubt.training.fine_tuning`) of so many, unless `start` and `epochs` are both given.
        plugins: JSON object, see `redoubt.training.Plugins`. CIFAR is flipped and cropped unless it says otherwise.
        processes: 1 trains in this process; more share every batch under torchrun, each on a GPU of its own where there
            are GPUs; 0 takes as many as there are GPUs.
        start: the version whose weights to begin with: a bundle's folder, models:/NAME/VERSION or models:/NAME@ALIAS.
            Empty begins with those of `parent`, or with random ones when there is none.
        parent: number of the version of `model_name` that a retraining run answers for; 0 for none.
        from_scratch: begin with random weights, whatever the parent.
        model_name, tracking_uri: where `parent` is registered, and where figures go while training goes on; empty for
            nowhere. A server that does not answer is warned of once and costs at most seconds.
        run_id: a run there to take up instead of starting one.
        progress: called with one row an epoch, and with {"note": ...} when something did not go as asked.

    A run that was killed goes on from its last checkpoint, where the environment names a folder for them.

    Raises:
        InvalidInput: for a setting out of range, for more processes than GPUs, and for a `start` of another
            architecture, shape or set of classes. A parent that does not fit, or cannot be read, is given up for random
            weights; the manifest says why.
    """
    asked = {"architecture": architecture, "objective": objective, "norm": norm, "epsilon": epsilon, "epochs": epochs,
             "steps": steps, "lam": lam, "plugins": plugins, "seed": seed, "precision": precision,
             "processes": processes}
    nodes = Nodes.from_environment()   # of a TrainJob, which has its own processes and GPUs
    size, prepared = 1 if nodes else together.count(processes), Prepared.open(data)
    with tempfile.TemporaryDirectory(prefix="redoubt-start-") as folder:
        begin = find(start, parent=parent, from_scratch=from_scratch, model_name=model_name, tracking_uri=tracking_uri,
                     folder=Path(folder) / "parent", wanted=wanted(asked, prepared), data=prepared)
        if begin.given_up:
            progress({"note": f"from random weights, not the parent's: {begin.given_up}"})
        elif begin.bundle:
            progress({"note": f"warm start from {begin.version or begin.bundle.folder}"})
        file = checkpoint_file(asked | {"processes": None, "also": also, "data": prepared.checksum,
                                        "start": begin.to_json()})
        work = Work(data=data, out=out, asked=asked, also=also, start=begin, checkpoint=file)
        with tracked(tracking_uri, model_name, "train", asked, run_id, progress) as (progress, pulse, tracker):
            if nodes:
                trainjob.run(work, nodes, progress, pulse)
            elif size > 1:
                together.run(work, size, progress, pulse)
            else:
                work.run(progress, pulse)
    if tracker and tracker.run_id:
        seal(out, training=open_bundle(out).manifest["training"] | {"run_id": tracker.run_id})
    if file:
        file.unlink(missing_ok=True)   # the bundle is whole: nothing is left to go on from
    return open_bundle(out)


@contextmanager
def tracked(tracking_uri: str, model_name: str, name: str, parameters: dict, run_id: str, progress: Progress):
    """Callbacks that also send what they are told to the tracking server.

    Yields:
        progress, pulse, and the tracker; None when there is no server. Whoever watches `progress` hears of a pulse
        every `SAY_SECONDS`, too.
    """
    said = time.monotonic()

    def say(values: dict) -> None:
        nonlocal said
        if time.monotonic() - said >= SAY_SECONDS:
            said = time.monotonic()
            progress({name: value for name, value in values.items() if name != "learning_rate"})

    if not (tracking_uri and model_name):
        yield progress, lambda step, values: say(values), None
        return
    tracker = Tracker(LiveRun(Registry(tracking_uri, model_name), name=name, parameters=parameters, run_id=run_id),
                      warn=lambda text: progress({"note": text}))

    def both(row: dict) -> None:
        progress(row)
        if "epoch" in row:
            tracker(figures(row))

    def heard(step: int, values: dict) -> None:
        say(values)
        tracker(beat(step, values))

    try:
        yield both, heard, tracker
    except BaseException:
        tracker.close(failed=True)
        raise
    tracker.close()


def checkpoint_file(asked: dict) -> Path | None:
    """Where this run's checkpoint lies: the same for the same request, so that a second attempt finds the first's."""
    folder = os.environ.get(CHECKPOINTS)
    if not folder:
        return None
    return Path(folder) / f"{hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:24]}.safetensors"
