"""KFP signature of `begin`."""

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def begin(dataset: str, data_dir: str, claim: str, run: str) -> str:
    """Claim what this run answers, and find out which data there are. Returns the data's fingerprint."""
    from components.begin.step import run as begin_run
    from components.context import step

    with step("begin"):
        return begin_run(dataset=dataset, data_dir=data_dir, claim=claim, run=run)
