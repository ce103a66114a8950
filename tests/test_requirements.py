"""The pins that the image is built from: whole, hashed, without an index, and what pyproject.toml asks for."""

import importlib.util
import re
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
FILES = ("build", "serving", "steps", "torch-cpu", "torch-gpu")
PYTHON = {"python_version": "3.11", "python_full_version": "3.11.9", "sys_platform": "linux",
          "platform_system": "Linux", "platform_machine": "x86_64", "extra": ""}


def pins(*names: str) -> dict[str, Requirement]:
    found = {}
    for name in names:
        text = (ROOT / "requirements" / f"{name}.txt").read_text()
        for line in re.findall(r"^[^#\s].*?(?= \\|$)", text, flags=re.MULTILINE):
            requirement = Requirement(line)
            if not requirement.marker or requirement.marker.evaluate(PYTHON):
                found[canonicalize_name(requirement.name)] = requirement
    return found


def wanted(extra: str) -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return [Requirement(line) for line in project["dependencies"] + project["optional-dependencies"][extra]]


@pytest.mark.parametrize("name", FILES)
def test_every_line_is_pinned_and_hashed(name):
    text = (ROOT / "requirements" / f"{name}.txt").read_text()
    blocks = re.split(r"^(?=[a-zA-Z0-9])", text, flags=re.MULTILINE)[1:]
    assert blocks
    for block in blocks:
        pinned = r"[a-zA-Z0-9._-]+==[^\s*]+( ; .+)? \\\n"
        assert re.fullmatch(pinned + r"(    --hash=sha256:[0-9a-f]{64}( \\)?\n)+", block), block


@pytest.mark.parametrize("name", FILES)
def test_no_file_names_an_index_or_a_path(name):
    text = (ROOT / "requirements" / f"{name}.txt").read_text()
    assert not re.search(r"://|--(extra-)?index|--find-links|@ |^-", text, flags=re.MULTILINE)


@pytest.mark.parametrize(("target", "extra"), [("steps", "pipelines"), ("steps", "registry"), ("serving", "serving"),
                                              ("serving", "traces")])
def test_pins_are_what_the_project_asks_for(target, extra):
    have = pins(target, "torch-gpu")
    for requirement in wanted(extra):
        if requirement.marker and not requirement.marker.evaluate(PYTHON):
            continue
        pin = have.get(canonicalize_name(requirement.name))
        assert pin, f"{requirement.name} is in pyproject.toml and not in requirements/{target}.txt: run `make lock`"
        version = next(iter(pin.specifier)).version
        assert requirement.specifier.contains(version), f"{requirement} against {pin}: run `make lock`"


@pytest.mark.parametrize("target", ["steps", "serving"])
def test_what_a_pinned_package_needs_is_pinned(target):
    """The image installs without looking at what packages need."""
    have, looked_at = pins(target, "torch-gpu"), 0
    for name, pin in have.items():
        try:
            installed = metadata.distribution(name)
        except metadata.PackageNotFoundError:   # of CUDA, or of another target
            continue
        if not pin.specifier.contains(installed.version, prereleases=True):
            continue   # what this version needs says nothing of the pinned one
        looked_at += 1
        for line in installed.requires or []:
            needed = Requirement(line)
            if needed.marker and not needed.marker.evaluate(PYTHON):
                continue
            assert canonicalize_name(needed.name) in have, f"{pin} needs {needed}: run `make lock`"
    assert looked_at > 20


def test_a_package_with_a_version_for_each_python_keeps_both():
    spec = importlib.util.spec_from_file_location("lock", ROOT / "requirements" / "lock.py")
    lock = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(lock)
    text = ("one==1 ; python_full_version < '3.12' \\\n    --hash=sha256:a\n"
            "one==2 ; python_full_version >= '3.12' \\\n    --hash=sha256:b\ntwo==1 \\\n    --hash=sha256:c\n")
    found = lock.parse(f"# head\n{text}")
    assert list(found) == ["one", "two"]
    assert "\n".join(found.values()) + "\n" == text


def test_serving_has_neither_kfp_nor_what_only_training_needs():
    have = set(pins("serving"))
    assert not {name for name in have if re.match(r"kfp|kubernetes$|torch|nvidia|pandas|scipy|matplotlib", name)}
    assert "mlflow-skinny" in have and "mlflow" not in have


def test_what_writes_and_what_reads_a_version_are_the_same():
    steps, serving = pins("steps"), pins("serving")
    for name in ("numpy", "safetensors", "mlflow-skinny"):
        assert steps[name].specifier == serving[name].specifier
