"""KFP signature of `refusal`."""

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def refusal(model_name: str, version: int, reason: str) -> str:
    """Say that the gate refused the version. It runs in no other case, so that a run's steps tell how it ended."""
    from components.refusal.step import run

    return run(model_name=model_name, version=version, reason=reason)
