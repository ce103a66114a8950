"""KFP signature of `gate`."""

from typing import NamedTuple

from kfp import dsl
from kfp.dsl import Dataset, Input, Markdown, Output

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def gate(
    data: Input[Dataset], decision: Output[Markdown], model_name: str, tracking_uri: str, version: int,
    objective: str, norm: str, epsilon: float, seed: int, policy: str,
) -> NamedTuple("Outputs", [("promoted", bool), ("status", str), ("reason", str)]):
    """Judge the challenger against the champion, and promote it if every rule passes and the policy says so."""
    from collections import namedtuple
    from pathlib import Path

    from components.context import step
    from components.gate.step import run
    from redoubt.promotion.record import table

    with step("gate"):
        verdict = run(Path(data.path), model_name=model_name, tracking_uri=tracking_uri, version=version,
                      objective=objective, norm=norm, epsilon=epsilon, seed=seed, policy=policy)
    Path(decision.path).write_text(f"**{verdict.status}**: {verdict.reason}\n\n{table(verdict.to_json()['rules'])}\n")
    return namedtuple("Outputs", ["promoted", "status", "reason"])(verdict.promoted, verdict.status, verdict.reason)
