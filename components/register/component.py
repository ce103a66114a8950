"""KFP signature of `register`."""

from kfp import dsl
from kfp.dsl import HTML, Artifact, Input, Model, Output

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def register(
    model: Input[Model], evaluation: Input[Artifact], detector: Input[Model], bundle: Output[Model],
    report: Output[HTML], model_name: str, tracking_uri: str, cause: str, parent: int,
) -> int:
    """Put model, detector and report together and register them as the challenger. Returns the version."""
    import os
    import shutil
    from pathlib import Path

    from components.context import step
    from components.register.step import PAGE, run

    with step("register"):
        version = run(Path(model.path), Path(evaluation.path), Path(detector.path), Path(bundle.path),
                      model_name=model_name, tracking_uri=tracking_uri, cause=cause, parent=parent,
                      run_id=os.environ.get("MLFLOW_RUN_ID", ""))
    shutil.copy(Path(bundle.path) / PAGE, report.path)
    bundle.metadata.update({"model_name": model_name, "version": version.number, "run_id": version.run_id})
    return version.number
