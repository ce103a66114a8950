"""KFP signature of `gate`."""

from typing import NamedTuple

from kfp import dsl
from kfp.dsl import Dataset, Input, Markdown, Output

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def gate(
    data: Input[Dataset], decision: Output[Markdown], model_name: str, tracking_uri: str, version: int,
    objective: str, norm: str, epsilon: float, seed: int,
) -> NamedTuple("Outputs", [("promoted", bool), ("reason", str)]):
    """Judge the challenger against the champion, and promote it if every rule passes."""
    from collections import namedtuple
    from pathlib import Path

    from components.context import step
    from components.gate.step import run

    with step("gate"):
        verdict = run(Path(data.path), model_name=model_name, tracking_uri=tracking_uri, version=version,
                      objective=objective, norm=norm, epsilon=epsilon, seed=seed)
    lines = ["| rule | value | limit | verdict |", "|---|---|---|---|"]
    lines += [f"| {r.rule} | {r.value} | {r.limit} | {'pass' if r.passed else 'FAIL'} |" for r in verdict.rules]
    Path(decision.path).write_text("\n".join(lines))
    return namedtuple("Outputs", ["promoted", "reason"])(verdict.promoted, verdict.reason)
