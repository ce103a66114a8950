"""KFP signature of `evaluate`."""

from kfp import dsl
from kfp.dsl import Artifact, ClassificationMetrics, Dataset, Input, Metrics, Model, Output

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def evaluate(
    data: Input[Dataset], model: Input[Model], evaluation: Output[Artifact], metrics: Output[Metrics],
    confusion: Output[ClassificationMetrics], norm: str, epsilon: float, test_limit: int, curve_n: int, seed: int,
):
    """Measure the model on the test split, clean and attacked."""
    from pathlib import Path

    from components.context import step
    from components.evaluate.step import run

    with step("evaluate"):
        report = run(Path(data.path), Path(model.path), Path(evaluation.path), norm=norm, epsilon=epsilon,
                     limit=test_limit, curve_n=curve_n, seed=seed)
    metrics.log_metric("clean_accuracy", report["clean_accuracy"])
    for row in report["robust"]:
        metrics.log_metric(f"{row['label']} {row['norm']} {row['epsilon']:.4g}", row["accuracy"])
    confusion.log_confusion_matrix([row["class"] for row in report["per_class"]], report["confusion"])
