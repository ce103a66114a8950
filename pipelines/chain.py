"""The pipeline: prepare_data -> train -> evaluate, fit_detector -> register -> gate."""

from typing import NamedTuple

from kfp import dsl

from components.evaluate.component import evaluate
from components.fit_detector.component import fit_detector
from components.gate.component import gate
from components.prepare_data.component import prepare_data
from components.register.component import register
from components.train.component import train

NAME = "redoubt"


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
    model_name: str = "redoubt",
    tracking_uri: str = "http://mlflow:5000",
    cause: str = "manual",
    parent: int = 0,
    data_dir: str = "",
    image_size: int = 0,
    limit: int = 0,
    split_seed: int = 0,
    data_checksum: str = "",
    test_limit: int = 2000,
    curve_n: int = 1000,
    suite: str = "quick",
    fpr: float = 0.01,
) -> NamedTuple("Outputs", [("version", int), ("promoted", bool), ("reason", str)]):
    """See `pipelines.parameters.RunParameters` for the meaning of each parameter."""
    from collections import namedtuple

    data = prepare_data(dataset=dataset, data_dir=data_dir, image_size=image_size, limit=limit,
                        split_seed=split_seed, data_checksum=data_checksum)
    prepared = data.outputs["data"]
    model = train(
        data=prepared, architecture=architecture, objective=objective, norm=norm, epsilon=epsilon, also=also,
        epochs=epochs, steps=steps, lam=lam, plugins=plugins, seed=seed, start=start,
    ).outputs["model"]
    evaluation = evaluate(data=prepared, model=model, norm=norm, epsilon=epsilon, test_limit=test_limit,
                          curve_n=curve_n, suite=suite, seed=seed)
    detector = fit_detector(data=prepared, model=model, fpr=fpr, seed=seed)
    registered = register(
        model=model, evaluation=evaluation.outputs["evaluation"], detector=detector.outputs["detector"],
        model_name=model_name, tracking_uri=tracking_uri, cause=cause, parent=parent,
    )
    registered.set_caching_options(False)
    judged = gate(
        data=prepared, model_name=model_name, tracking_uri=tracking_uri, version=registered.outputs["Output"],
        objective=objective, norm=norm, epsilon=epsilon, seed=seed,
    )
    judged.set_caching_options(False)
    return namedtuple("Outputs", ["version", "promoted", "reason"])(
        registered.outputs["Output"], judged.outputs["promoted"], judged.outputs["reason"]
    )
