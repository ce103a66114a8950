"""The pipeline: begin -> prepare_data -> train -> evaluate, fit_detector -> register -> gate (-> refusal)."""

from collections.abc import Callable
from typing import NamedTuple

from kfp import dsl

from components.begin.component import begin
from components.evaluate.component import evaluate
from components.fit_detector.component import fit_detector
from components.gate.component import gate
from components.prepare_data.component import prepare_data
from components.refusal.component import refusal
from components.register.component import register
from components.train.component import train
from redoubt.names import REFUSAL

NAME = "redoubt"
class Outputs(NamedTuple):
    version: int
    promoted: bool
    status: str
    reason: str
Place = Callable[[str, dsl.PipelineTask], None]


def steps(place: Place, given: dict) -> dict[str, dsl.PipelineTask]:
    """The chain's tasks, by their names, within a pipeline that is being defined.

    Args:
        place: called with each task, to say what its pod needs; must not change what it computes.
        given: the pipeline's parameters, by their names.
    """
    def of(*names: str) -> dict:
        return {name: given[name] for name in names}

    made: dict[str, dsl.PipelineTask] = {}

    def add(name: str, task: dsl.PipelineTask, cached: bool = True) -> dict:
        if not cached:
            task.set_caching_options(False)
        place(name, task)
        made[name] = task
        return task.outputs

    found = add("begin", begin(**of("dataset", "data_dir", "claim"), run=dsl.PIPELINE_JOB_ID_PLACEHOLDER), False)
    data = add("prepare_data", prepare_data(
        **of("dataset", "data_dir", "image_size", "limit", "split_seed", "data_checksum"),
        fingerprint=found["Output"]))["data"]
    model = add("train", train(data=data, **of(
        "architecture", "objective", "norm", "epsilon", "also", "epochs", "steps", "lam", "plugins", "seed",
        "start", "from_scratch", "processes", "parent", "model_name", "tracking_uri")))["model"]
    evaluation = add("evaluate", evaluate(
        data=data, model=model, **of("norm", "epsilon", "test_limit", "curve_n", "suite", "seed")))["evaluation"]
    detector = add("fit_detector", fit_detector(data=data, model=model, **of("fpr", "seed")))["detector"]
    version = add("register", register(
        model=model, evaluation=evaluation, detector=detector, **of("model_name", "tracking_uri", "cause", "parent")),
        False)["Output"]
    judged = add("gate", gate(data=data, version=version, **of(
        "model_name", "tracking_uri", "objective", "norm", "epsilon", "seed", "policy")), False)
    with dsl.If(judged["status"] == "refused"):
        add(REFUSAL, refusal(version=version, reason=judged["reason"], **of("model_name")), False)
    return made


def define(place: Place = lambda name, task: None):
    """The pipeline, with what `place` says of each task's pod."""
    @dsl.pipeline(name=NAME, description="Train a classifier for its threat models, and let the gate decide on it.")
    def pipeline(
        dataset: str = "digits",
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
        start: str = "",
        from_scratch: bool = False,
        processes: int = 1,
        model_name: str = "redoubt",
        tracking_uri: str = "http://mlflow:5000",
        cause: str = "manual",
        parent: int = 0,
        claim: str = "",
        data_dir: str = "",
        image_size: int = 0,
        limit: int = 0,
        split_seed: int = 0,
        data_checksum: str = "",
        test_limit: int = 2000,
        curve_n: int = 1000,
        suite: str = "quick",
        fpr: float = 0.01,
        policy: str = "",
    ) -> Outputs:
        """See `pipelines.parameters.RunParameters` for the meaning of each parameter."""
        tasks = chain(place, dict(locals()))
        judged = tasks["gate"].outputs
        return Outputs(tasks["register"].outputs["Output"], judged["promoted"], judged["status"], judged["reason"])

    return pipeline


chain = steps   # the pipeline has a parameter of that name
pipeline = define()
