"""Prepared data: splits that share nothing and lose nothing, and a checksum that notices."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from redoubt.data import SPLITS, Prepared, Source, load_source, prepare, split_sizes
from redoubt.data.prepared import METADATA
from redoubt.errors import ArtifactError, InvalidInput


def numbered(n, start=0):
    """`n` pictures, each with its own number in its first two pixels, and labels that follow from the number."""
    images = np.zeros((n, 1, 8, 8), np.uint8)
    number = np.arange(start, start + n)
    images[:, 0, 0, 0], images[:, 0, 0, 1] = number // 256, number % 256
    return images, number % 3


def source(n=900, test=0):
    images, labels = numbered(n)
    more = numbered(test, n) if test else (None, None)
    return Source(name="numbered", classes=("a", "b", "c"), train_images=images, train_labels=labels,
                  test_images=more[0], test_labels=more[1])


def numbers(prepared, split):
    images, labels = prepared.arrays(split)
    number = images[:, 0, 0, 0].astype(int) * 256 + images[:, 0, 0, 1]
    assert (labels == number % 3).all(), "a picture lost its label"
    return set(number.tolist())


@pytest.mark.parametrize("test", [0, 120])
def test_splits_share_no_picture_and_lose_none(tmp_path, test):
    prepared = prepare(source(900, test), tmp_path / "data", seed=5)
    parts = {split: numbers(prepared, split) for split in SPLITS}
    assert sum(map(len, parts.values())) == 900 + test == len(set().union(*parts.values()))
    assert all(prepared.metadata["splits"][split]["n"] == len(part) > 0 for split, part in parts.items())
    if test:
        assert parts["test"] == set(range(900, 1020)), "a test file of its own stays whole"


def test_the_split_depends_on_the_seed_alone(tmp_path):
    seeds = {"a": 1, "b": 1, "c": 2}
    first, again, other = (prepare(source(), tmp_path / name, seed=seed) for name, seed in seeds.items())
    assert first.checksum == again.checksum != other.checksum
    assert numbers(first, "gate") == numbers(again, "gate") != numbers(other, "gate")


def test_fashion_mnist_divides_as_documented():
    assert split_sizes(60_000) == {
        "train": 49_000, "validation": 2_000, "detector_fit": 2_000, "calibration": 2_000, "gate": 5_000
    }


@pytest.mark.parametrize("n", [400, 1000, 5000, 70_000])
def test_sizes_add_up_and_training_keeps_half(n):
    sizes = split_sizes(n)
    assert sum(sizes.values()) == n
    assert sizes["train"] >= n // 2


def test_too_few_pictures_are_refused():
    with pytest.raises(InvalidInput, match="399 training pictures are too few"):
        split_sizes(399)


def test_a_limit_keeps_that_many(tmp_path):
    prepared = prepare(source(2000, 600), tmp_path / "data", limit=900)
    sizes = {split: part["n"] for split, part in prepared.metadata["splits"].items()}
    assert sum(sizes.values()) - sizes["test"] == 900
    assert sizes["test"] == 150


def test_pixels_come_out_between_zero_and_one(digits):
    x, y = digits.tensors("train")
    assert x.dtype == torch.float32
    assert y.dtype == torch.int64
    assert x.min() == 0
    assert x.max() == 1
    assert torch.equal((x * 16).round(), x * 16)
    assert (digits.levels, digits.metadata["shape"], len(digits.classes)) == (16, [1, 8, 8], 10)
    assert x.mean().item() == pytest.approx(digits.metadata["mean"][0], abs=1e-4)
    limited, _ = digits.tensors("train", limit=7)
    assert torch.equal(limited, x[:7])


def test_an_unknown_split_names_the_valid_ones(digits):
    with pytest.raises(InvalidInput, match=r"'holdout'.*calibration"):
        digits.arrays("holdout")


@pytest.fixture
def copied(digits, tmp_path):
    return Prepared.open(shutil.copytree(digits.folder, tmp_path / "copy"))


@pytest.mark.parametrize("part", ["images", "labels"])
def test_an_altered_split_is_noticed_and_others_stay_readable(copied, part):
    file = copied.folder / f"gate.{part}.npy"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(ArtifactError, match="'gate' does not match"):
        copied.tensors("gate")
    copied.tensors("test")


def test_a_missing_or_swapped_split_is_noticed(copied):
    (copied.folder / "gate.labels.npy").unlink()
    with pytest.raises(ArtifactError, match="'gate' cannot be read"):
        copied.arrays("gate")
    shutil.copy(copied.folder / "train.images.npy", copied.folder / "test.images.npy")
    with pytest.raises(ArtifactError, match="'test' does not match"):
        copied.arrays("test")


@pytest.mark.parametrize("key", ["levels", "classes", "splits", "seed"])
def test_altered_metadata_is_noticed(copied, key):
    metadata = json.loads((copied.folder / METADATA).read_text())
    metadata[key] = 3
    (copied.folder / METADATA).write_text(json.dumps(metadata))
    with pytest.raises(ArtifactError, match="does not match its checksum"):
        Prepared.open(copied.folder)


@pytest.mark.parametrize("text", [None, "", "{}", "[1]", '{"checksum": '])
def test_a_folder_without_usable_metadata_is_refused(tmp_path, text):
    if text is not None:
        (tmp_path / METADATA).write_text(text)
    with pytest.raises(ArtifactError, match="run prepare_data again"):
        Prepared.open(tmp_path)


@pytest.mark.fashion
def test_the_real_fashion_mnist_is_prepared_whole(tmp_path):
    prepared = prepare(load_source("fashion-mnist", tmp_path), tmp_path / "data")
    sizes = {split: part["n"] for split, part in prepared.metadata["splits"].items()}
    assert sizes == {"train": 49_000, "validation": 2_000, "detector_fit": 2_000, "calibration": 2_000, "gate": 5_000,
                     "test": 10_000}
    assert prepared.metadata["shape"] == [1, 28, 28]
    assert prepared.metadata["mean"][0] == pytest.approx(0.286, abs=0.002)   # as published for this dataset
    assert np.bincount(prepared.arrays("test")[1]).tolist() == [1000] * 10


def test_a_group_is_never_divided_between_splits(tmp_path):
    images, labels = numbered(900)
    groups = np.arange(900) // 7
    whole = Source(name="numbered", classes=("a", "b", "c"), train_images=images, train_labels=labels, groups=groups)
    prepared = prepare(whole, tmp_path / "data", seed=5)
    parts = {split: numbers(prepared, split) for split in SPLITS}
    assert sum(map(len, parts.values())) == 900 == len(set().union(*parts.values()))
    owners = [{number // 7 for number in part} for part in parts.values()]
    assert sum(map(len, owners)) == len(set().union(*owners))
    sizes = split_sizes(900 - len(parts["test"]), grouped=True)
    assert all(abs(len(parts[name]) - size) <= 21 for name, size in sizes.items())
    for split in SPLITS:   # the first few pictures of a split are no single group
        first = prepared.arrays(split)[0][:7, 0, 0]
        assert len({(int(high) * 256 + int(low)) // 7 for high, low in first[:, :2]}) > 2


def test_groups_of_every_class_reach_every_split(tmp_path):
    groups = np.arange(1200) // 5
    labels = np.repeat([0] * 120 + [1] * 90 + [2] * 30, 5)   # 120, 90 and 30 groups of five pictures
    images, _ = numbered(1200)
    whole = Source(name="numbered", classes=("a", "b", "c"), train_images=images, train_labels=labels, groups=groups)
    for seed in range(5):
        prepared = prepare(whole, tmp_path / str(seed), seed=seed)
        for split in SPLITS:
            counts = np.bincount(prepared.arrays(split)[1], minlength=3) / 5
            expected = counts.sum() * np.array([120, 90, 30]) / 240
            assert (np.abs(counts - expected) <= 2).all(), (split, counts)


def test_training_takes_what_the_source_has_besides_and_no_other_split_changes(tmp_path):
    groups, asked = np.arange(900) // 7, []

    def further(held_out):
        asked.append(set(held_out.tolist()))
        return numbered(150, 900)

    images, labels = numbered(900)
    plain = Source(name="numbered", classes=("a", "b", "c"), train_images=images, train_labels=labels, groups=groups)
    without = prepare(plain, tmp_path / "without", seed=5)
    with_more = prepare(replace(plain, further=further), tmp_path / "with", seed=5)
    assert asked == [set(groups.tolist()) - {number // 7 for number in numbers(without, "train")}]
    assert numbers(with_more, "train") == numbers(without, "train") | set(range(900, 1050))
    assert all(numbers(with_more, split) == numbers(without, split) for split in SPLITS if split != "train")
    first = with_more.arrays("train")[0][:100, 0, 0, :2].astype(int) @ [256, 1]
    assert 5 < (first >= 900).sum() < 60   # mixed
    prepare(replace(plain, further=further), tmp_path / "few", seed=5, limit=450)
    assert len(asked) == 1   # a quick trial stays small
