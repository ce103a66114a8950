"""Signatures of model folders: only what a trusted key signed is opened."""

import json
import stat

import pytest

from redoubt.bundle import MANIFEST, WEIGHTS, open_bundle, seal, write_bundle
from redoubt.errors import ArtifactError, InvalidInput
from redoubt.models import Architecture, build
from redoubt.signing import SIGNATURE, key_id, new_keys, sign, trusted_keys, verify


@pytest.fixture
def keys(tmp_path):
    """A function (name) -> private key file and its public key."""
    def make(name: str):
        public = new_keys(tmp_path / name)
        return tmp_path / name, trusted_keys([public])

    return make


@pytest.fixture
def folder(tmp_path):
    model = build(Architecture(name="compact-cnn", num_classes=2, channels=1, size=8, mean=(0.5,), std=(0.5,)))
    return write_bundle(tmp_path / "b", model, classes=["a", "b"], threats=()).folder


def test_what_a_trusted_key_signed_is_opened(folder, keys):
    (private, mine), (_, other) = keys("mine"), keys("other")
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    sign(folder, MANIFEST, private)
    assert open_bundle(folder, trusted=mine).classes == ["a", "b"]
    assert open_bundle(folder, trusted=(*other, *mine)).classes == ["a", "b"]
    assert verify(folder, MANIFEST, mine) == key_id(mine[0]) == json.loads((folder / SIGNATURE).read_text())["key"]
    with pytest.raises(ArtifactError, match="none of the trusted keys"):
        open_bundle(folder, trusted=other)


def forge(folder):
    """Other weights under a manifest that names their sha256: what whoever can write to the store can do."""
    weights = folder / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    signature = (folder / SIGNATURE).read_bytes() if (folder / SIGNATURE).exists() else None
    seal(folder)
    if signature:
        (folder / SIGNATURE).write_bytes(signature)


def test_a_forged_manifest_is_opened_without_keys_and_refused_with_them(folder, keys):
    private, mine = keys("mine")
    with pytest.raises(ArtifactError, match="is not signed"):
        open_bundle(folder, trusted=mine)
    sign(folder, MANIFEST, private)
    forge(folder)
    open_bundle(folder)
    with pytest.raises(ArtifactError, match="altered"):
        open_bundle(folder, trusted=mine)


def test_sealing_again_takes_the_old_signature_away(folder, keys):
    private, _ = keys("mine")
    sign(folder, MANIFEST, private)
    assert SIGNATURE not in seal(folder).manifest["files"]
    assert not (folder / SIGNATURE).exists()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"signature": "&"}', '{"signature": 3}'])
def test_a_signature_that_cannot_be_read(folder, keys, text):
    (folder / SIGNATURE).write_text(text)
    with pytest.raises(ArtifactError, match=r"manifest\.sig cannot be read"):
        open_bundle(folder, trusted=keys("mine")[1])


def test_keys_that_are_none(tmp_path, keys, folder, monkeypatch):
    private, _ = keys("mine")
    with pytest.raises(InvalidInput, match="no key is overwritten"):
        new_keys(private)
    with pytest.raises(InvalidInput, match="nowhere cannot be read"):
        trusted_keys([tmp_path / "nowhere"])
    with pytest.raises(InvalidInput, match="holds no Ed25519 public key: `redoubt keygen FILE`"):
        trusted_keys([private])
    with pytest.raises(InvalidInput, match="holds no Ed25519 private key"):
        sign(folder, MANIFEST, f"{private}.pub")
    monkeypatch.setenv("REDOUBT_TRUSTED_KEYS", "redoubt.key.pub")
    with pytest.raises(InvalidInput, match="write a JSON list"):
        trusted_keys()
    monkeypatch.setenv("REDOUBT_TRUSTED_KEYS", json.dumps([f"{private}.pub"]))
    assert len(trusted_keys()) == 1


def test_a_folder_stands_for_every_public_key_in_it(tmp_path, keys, monkeypatch):
    """As a ConfigMap is mounted. One without any would mean that no signature is asked for, so it is a mistake."""
    mounted, private = tmp_path / "mounted", keys("mine")[0]
    mounted.mkdir()
    monkeypatch.setenv("REDOUBT_TRUSTED_KEYS", json.dumps([str(mounted)]))
    with pytest.raises(InvalidInput, match=r"holds no \.pub file"):
        trusted_keys()
    for name in ("old.pub", "new.pub"):
        (mounted / name).write_bytes(private.with_name(private.name + ".pub").read_bytes())
    (mounted / "README").write_text("not a key")
    assert len(trusted_keys()) == 2
