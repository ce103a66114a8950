"""KFP signature of `fit_detector`."""

from kfp import dsl
from kfp.dsl import Dataset, Input, Metrics, Model, Output

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def fit_detector(
    data: Input[Dataset], model: Input[Model], detector: Output[Model], metrics: Output[Metrics], fpr: float, seed: int
):
    """Fit the model's own detector of adversarial inputs, with its estimate of their strength."""
    from pathlib import Path

    from components.context import step
    from components.fit_detector.step import run

    with step("fit_detector"):
        quality = run(Path(data.path), Path(model.path), Path(detector.path), fpr=fpr, seed=seed)
    detector.metadata.update({"fpr": fpr, "null_rate": quality["null_rate"]})
    metrics.log_metric("false_positives", quality["false_positives"])
    for row in quality["attacks"]:
        metrics.log_metric(f"detected {row['attack']} {row['epsilon']}", row["detected"])
