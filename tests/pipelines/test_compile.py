"""The compiled pipeline equals the golden file. After a deliberate change: REDOUBT_UPDATE_GOLDEN=1 make test."""

import os
import re
from pathlib import Path

import pytest
import yaml

from pipelines.cluster import compile_to, submit_run
from pipelines.parameters import RunParameters
from redoubt.errors import InvalidInput, RedoubtError

GOLDEN = Path(__file__).parent.parent / "golden" / "pipeline.yaml"


def test_the_pipeline_compiles_to_the_golden_file(tmp_path):
    compile_to(tmp_path / "out" / "pipeline.yaml")
    text = re.sub(r"sdkVersion: kfp-.*", "sdkVersion: kfp", (tmp_path / "out" / "pipeline.yaml").read_text())
    if os.environ.get("REDOUBT_UPDATE_GOLDEN"):
        GOLDEN.write_text(text)
    assert yaml.safe_load(text) == yaml.safe_load(GOLDEN.read_text())


def test_the_chain_runs_one_way():
    spec = yaml.safe_load(GOLDEN.read_text())
    tasks = spec["root"]["dag"]["tasks"]
    after = {name: set(task.get("dependentTasks", [])) for name, task in tasks.items()}
    assert after == {
        "prepare-data": set(), "train": {"prepare-data"}, "evaluate": {"prepare-data", "train"},
        "fit-detector": {"prepare-data", "train"}, "register": {"evaluate", "fit-detector", "train"},
        "gate": {"prepare-data", "register"},
    }
    for name in ("register", "gate"):
        assert not tasks[name].get("cachingOptions", {}).get("enableCache"), f"{name} has side effects"


def test_a_file_of_another_kind_is_refused(tmp_path):
    with pytest.raises(InvalidInput, match=r"must end in \.yaml"):
        compile_to(tmp_path / "pipeline.json")


def test_submitting_needs_an_endpoint(monkeypatch):
    monkeypatch.delenv("REDOUBT_KFP_ENDPOINT", raising=False)
    with pytest.raises(InvalidInput, match="REDOUBT_KFP_ENDPOINT"):
        submit_run(RunParameters(), endpoint="", namespace="", image="", wait=False)


def test_an_endpoint_that_does_not_answer_is_named():
    with pytest.raises(RedoubtError, match=r"http://127\.0\.0\.1:9 did not take the run"):
        submit_run(RunParameters(), endpoint="http://127.0.0.1:9", namespace="", image="", wait=False)
