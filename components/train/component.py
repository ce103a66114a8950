"""KFP signature of `train`."""

from kfp import dsl
from kfp.dsl import Dataset, Input, Metrics, Model, Output

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def train(
    data: Input[Dataset], model: Output[Model], metrics: Output[Metrics], architecture: str, objective: str,
    norm: str, epsilon: float, also: str, epochs: int, steps: int, lam: float, plugins: str, seed: int, start: str,
    from_scratch: bool, processes: int, parent: int, model_name: str, tracking_uri: str,
):
    """Train a classifier against every threat model that it is asked to cover, beginning with its parent's weights."""
    import os
    from pathlib import Path

    from components.context import step
    from components.train.step import run

    with step("train") as progress:
        bundle = run(Path(data.path), Path(model.path), architecture=architecture, objective=objective, norm=norm,
                     epsilon=epsilon, also=also, epochs=epochs, steps=steps, lam=lam, plugins=plugins, seed=seed,
                     processes=processes, start=start, from_scratch=from_scratch, parent=parent, model_name=model_name,
                     tracking_uri=tracking_uri, run_id=os.environ.get("MLFLOW_RUN_ID", ""),
                     progress=progress)
    training = bundle.manifest["training"]
    model.metadata.update({"architecture": architecture, "objective": objective, "seed": seed,
                           "threats": bundle.manifest["threats"], "data_checksum": bundle.manifest["data"]["checksum"],
                           "warm_start": training["warm_start"], "epochs": training["epochs"],
                           "start_version": (training["start"] or {}).get("version", "")})
    best = next(row for row in training["history"] if row["epoch"] == training["best_epoch"])
    for name in ("loss", "clean_accuracy", "robust_accuracy"):
        if name in best:
            metrics.log_metric(f"validation_{name}", best[name])
    metrics.log_metric("seconds", training["seconds"])
    metrics.log_metric("epochs", training["epochs"])
    metrics.log_metric("warm_start", int(training["warm_start"]))
