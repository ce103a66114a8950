"""An epsilon sweep: one model for each epsilon, in parallel, and a page that puts them side by side.

Nothing is registered or promoted. It runs on a cluster and, two models at a time, on this machine:
`python -m pipelines.sweep FOLDER` runs what FOLDER/parameters.json asks for, as `pipelines.local` does for one model.
"""

import json
import os
import shutil
import sys
from pathlib import Path

from kfp import dsl

from components.begin.component import begin
from components.compare.component import compare
from components.context import PROGRESS
from components.evaluate.component import evaluate
from components.prepare_data.component import prepare_data
from components.train.component import train
from pipelines.local import failure, shell_safe_python, write_json
from pipelines.parameters import RunParameters
from redoubt.errors import InvalidInput, RedoubtError
from redoubt.threat import parse_epsilon

NAME = "redoubt-sweep"
LEFT_OUT = ("epsilon", "start", "from_scratch", "model_name", "tracking_uri", "cause", "parent", "claim", "fpr",
            "policy")
TAKEN = ("architecture", "objective", "norm", "also", "epochs", "steps", "lam", "plugins", "seed", "processes")


def define(place=lambda name, task: None):
    """The pipeline, with what `place` says of each task's pod."""
    @dsl.pipeline(name=NAME, description="Train and measure a model for each epsilon, and compare them.")
    def sweep(
        epsilons: list[float], dataset: str = "digits", architecture: str = "compact-cnn", objective: str = "blend",
        norm: str = "Linf", also: str = "[]", epochs: int = 0, steps: int = 5, lam: float = 1.0, plugins: str = "{}",
        seed: int = 0, processes: int = 1, data_dir: str = "", image_size: int = 0, limit: int = 0, split_seed: int = 0,
        data_checksum: str = "", test_limit: int = 2000, curve_n: int = 1000, suite: str = "quick",
    ):
        given = dict(locals())
        found = begin(dataset=dataset, data_dir=data_dir, claim="", run="")
        found.set_caching_options(False)
        data = prepare_data(dataset=dataset, data_dir=data_dir, image_size=image_size, limit=limit,
                            split_seed=split_seed, data_checksum=data_checksum, fingerprint=found.output)
        with dsl.ParallelFor(epsilons) as epsilon:
            model = train(data=data.outputs["data"], epsilon=epsilon, start="", from_scratch=True, parent=0,
                          model_name="", tracking_uri="", **{name: given[name] for name in TAKEN})
            measured = evaluate(data=data.outputs["data"], model=model.outputs["model"], norm=norm, epsilon=epsilon,
                                test_limit=test_limit, curve_n=curve_n, suite=suite, seed=seed)
        compared = compare(evaluations=dsl.Collected(measured.outputs["evaluation"]), norm=norm)
        for name, task in (("begin", found), ("prepare_data", data), ("train", model), ("evaluate", measured),
                           ("compare", compared)):
            place(name, task)

    return sweep


def arguments(parameters: RunParameters, epsilons: list[float]) -> dict:
    """The sweep's arguments, from those of a run for one epsilon."""
    given = {name: value for name, value in parameters.to_json().items() if name not in LEFT_OUT}
    return {"epsilons": epsilons, **given}


def read_epsilons(text: str, norm: str) -> list[float]:
    """Epsilons written as `0.05,0.1` or `2/255,4/255,8/255`.

    Raises:
        InvalidInput: for fewer than two, or one that occurs twice.
    """
    found = [parse_epsilon(one.strip(), norm=norm) for one in text.split(",") if one.strip()]
    if len(found) < 2 or len(set(found)) != len(found):
        raise InvalidInput(f"--epsilons {text!r}: write at least two different ones, as 2/255,4/255,8/255")
    return found


def execute(given: dict, folder: Path) -> Path:
    """Run the sweep in this process; returns the page.

    Raises:
        RedoubtError: when a step failed; the reason is its own.
    """
    os.environ[PROGRESS] = str(folder / "progress.jsonl")
    from kfp import local

    with shell_safe_python():
        local.init(local.SubprocessRunner(use_venv=False), pipeline_root=str(folder / "artifacts"), raise_on_error=True)
        try:
            define()(**given)
        except RuntimeError as error:
            raise RedoubtError(failure(folder) or str(error)) from None
    found = sorted((folder / "artifacts").rglob("compare/page"))
    if not found:
        raise RedoubtError("the sweep ended without its page: see run.log")
    shutil.copy(found[-1], folder / "sweep.html")
    return folder / "sweep.html"


def main(folder: Path) -> int:
    """Run what `folder`/parameters.json asks for and write `folder`/result.json. Returns the exit code."""
    try:
        page = execute(json.loads((folder / "parameters.json").read_text()), folder)
        result = {"status": "promoted", "reason": str(page)}
    except RedoubtError as error:
        result = {"status": "failed", "reason": str(error)}
    write_json(folder / "result.json", {"version": None, **result})
    return 1 if result["status"] == "failed" else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
