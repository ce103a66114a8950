"""A model folder is opened only when every file in it is the one that was written."""

import json

import pytest
import torch

from redoubt.bundle import MANIFEST, WEIGHTS, open_bundle, seal, write_bundle
from redoubt.errors import ArtifactError
from redoubt.threat import ThreatModel


@pytest.fixture
def bundle(digits_model, tmp_path):
    return write_bundle(tmp_path / "b", digits_model, classes=list("0123456789"),
                        threats=[ThreatModel("Linf", 0.1)], objective="pgd")


def test_a_round_trip_gives_the_same_logits(bundle, digits_model, digits):
    x, _ = digits.tensors("test", 20)
    again = open_bundle(bundle.folder)
    assert torch.allclose(again.model()(x), digits_model(x), atol=1e-5)
    assert again.threats == (ThreatModel("Linf", 0.1),)
    assert again.classes == list("0123456789")
    assert not again.has_detector


def edit_manifest(bundle, **changes):
    path = bundle.folder / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_changed_byte_is_found(bundle):
    weights = bundle.folder / WEIGHTS
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(ArtifactError, match=r"model\.safetensors does not match its sha256"):
        open_bundle(bundle.folder)


def test_a_missing_file_is_found(bundle):
    (bundle.folder / WEIGHTS).unlink()
    with pytest.raises(ArtifactError, match=r"model\.safetensors is missing"):
        open_bundle(bundle.folder)


def test_no_folder_and_no_manifest(tmp_path):
    with pytest.raises(ArtifactError, match="cannot be read"):
        open_bundle(tmp_path / "nowhere")


def test_a_file_outside_the_folder_is_refused(bundle):
    edit_manifest(bundle, files={**bundle.manifest["files"], "../../etc/passwd": "0" * 64})
    with pytest.raises(ArtifactError, match="outside the folder"):
        open_bundle(bundle.folder)


@pytest.mark.parametrize("changes, message", [
    ({"format": 99}, "format 99 is unknown"),
    ({"architecture": {"name": "perceptron"}}, "cannot be used"),
    ({"threats": [["L7", 0.1]]}, "cannot be used"),
    ({"files": {}}, "does not list"),
    ({"files": None}, "cannot be read"),
], ids=["format", "architecture", "threats", "files", "no files"])
def test_a_manifest_that_cannot_be_used(bundle, changes, message):
    edit_manifest(bundle, **changes)
    with pytest.raises(ArtifactError, match=message):
        open_bundle(bundle.folder)


def test_weights_of_another_architecture(bundle, digits_model):
    architecture = bundle.manifest["architecture"] | {"num_classes": 7}
    edit_manifest(bundle, architecture=architecture)
    with pytest.raises(ArtifactError, match="does not fit"):
        open_bundle(bundle.folder).model()


def test_sealing_takes_in_new_files(bundle):
    (bundle.folder / "report.json").write_text("{}")
    sealed = seal(bundle.folder, note="evaluated")
    assert "report.json" in sealed.manifest["files"]
    assert sealed.manifest["note"] == "evaluated"
