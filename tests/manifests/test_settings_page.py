"""docs/settings.md against the code, the manifests and the Dockerfile; docs/install.md against the files it names."""

import re

import pytest
from manifests_support import MANIFESTS, OVERLAYS, serving_environment

ROOT = MANIFESTS.parent
PAGE = (ROOT / "docs" / "settings.md").read_text()
INSTALL = (ROOT / "docs" / "install.md").read_text()


def rows(heading: str) -> list[list[str]]:
    """Cells of the table under a heading, without its head."""
    text = PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in lines[2:]]


@pytest.mark.parametrize("overlay", ["base", "overlays/dev", "overlays/kubeflow"])
def test_what_the_manifests_set(overlay):
    column, told = {"base": 2, "overlays/dev": 3, "overlays/kubeflow": 4}[overlay] - 1, {}
    for cells in rows("What the manifests set"):
        value = cells[column] or cells[1]
        if value:
            told[cells[0]] = {"none": "", "the pod's name": "from the pod", "the pod's uid": "from the pod"}.get(
                value, value)
    assert told == serving_environment(overlay)


def test_gpu_is_base_with_one_more():
    assert serving_environment("overlays/gpu") == serving_environment("base") | {"REDOUBT_DEVICE": "cuda"}
    for overlay in ("overlays/kserve", "overlays/monitoring"):
        assert serving_environment(overlay) == serving_environment("base")


def test_build_arguments_and_their_defaults():
    dockerfile = (ROOT / "Dockerfile").read_text()
    declared = dict(re.findall(r"\b([A-Z]+)=([\w.:-]+)", " ".join(re.findall(r"^ARG (.*)$", dockerfile, re.MULTILINE))))
    assert {cells[0]: cells[1] for cells in rows("The image")} == declared


def test_every_variable_of_the_command_and_the_steps_is_listed():
    """Those of the server are held against docs/serving.md by the server's own tests."""
    from serving.settings import Settings

    named = set()
    for room in ("redoubt", "components", "pipelines"):
        for file in (ROOT / room).rglob("*.py"):
            named |= set(re.findall(r"""["'](REDOUBT_[A-Z_]+)["']""", file.read_text()))
    listed = {cells[0] for cells in rows("The command and the steps") if cells[0].startswith("REDOUBT_")}
    of_the_server = {f"REDOUBT_{name.upper()}" for name in Settings.model_fields}
    assert named - of_the_server <= listed
    if (ROOT / "redoubt" / "cluster").is_dir():
        assert listed <= named | of_the_server


def test_files_that_the_pages_name_exist():
    for page in (PAGE, INSTALL, (ROOT / "docs" / "operations.md").read_text()):
        for path in re.findall(r"\b(?:manifests/)?((?:overlays|components|base)/[a-z/.-]+\b)", page):
            assert (MANIFESTS / path.rstrip("/.")).exists(), path


def test_every_overlay_is_introduced():
    for overlay in OVERLAYS:
        assert overlay in INSTALL, overlay


def test_image_names_in_the_pages_are_those_of_the_manifests():
    text = "".join(file.read_text() for file in MANIFESTS.rglob("kustomization.yaml"))
    for name, tag in re.findall(r"(redoubt/(?:serving|steps)):([\w.-]+)", INSTALL):
        assert re.search(rf"name: {name}.*\n\s+newTag: {re.escape(tag)}\b", text), (name, tag)
