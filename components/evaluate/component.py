"""KFP signature of `evaluate`."""

from kfp import dsl
from kfp.dsl import Artifact, ClassificationMetrics, Dataset, Input, Markdown, Metrics, Model, Output

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def evaluate(
    data: Input[Dataset], model: Input[Model], evaluation: Output[Artifact], metrics: Output[Metrics],
    confusion: Output[ClassificationMetrics], checks: Output[Markdown], norm: str, epsilon: float, test_limit: int,
    curve_n: int, suite: str, seed: int,
):
    """Measure the model on the test split, clean and attacked, and doubt the result."""
    from pathlib import Path

    from components.context import step
    from components.evaluate.step import run
    from redoubt.report.facts import checks_markdown, metric_values

    with step("evaluate") as event:
        report = run(Path(data.path), Path(model.path), Path(evaluation.path), norm=norm, epsilon=epsilon,
                     limit=test_limit, curve_n=curve_n, suite=suite, seed=seed, progress=event)
    for name, value in metric_values(report).items():
        metrics.log_metric(name, value)
    confusion.log_confusion_matrix([row["class"] for row in report["per_class"]], report["confusion"])
    evaluation.metadata.update({"suite": suite, "n": report["n"], "split": report["split"]})
    Path(checks.path).write_text(checks_markdown(report))
