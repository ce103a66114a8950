"""KFP signature of `compare`."""


from kfp import dsl
from kfp.dsl import HTML, Artifact, Input, Markdown, Metrics, Output

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def compare(
    evaluations: Input[list[Artifact]], page: Output[HTML], table: Output[Markdown], metrics: Output[Metrics],
    norm: str,
):
    """Put a sweep's reports side by side."""
    from pathlib import Path

    from components.compare.step import run
    from components.context import step

    with step("compare"):
        rows = run([Path(one.path) for one in evaluations], Path(page.path), Path(table.path), norm=norm)
    for row in rows:
        metrics.log_metric(f"clean at {row['trained']:.4g}", row["clean"])
        metrics.log_metric(f"robust at {row['trained']:.4g}", row["robust"])
