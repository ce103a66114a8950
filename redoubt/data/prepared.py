"""Prepared data: a folder of memory-mapped uint8 pictures and labels, in disjoint splits, with a checksum.

    metadata.json                 dataset, classes, shape, levels, seed, and of each split its size and sha256
    <split>.images.npy            uint8 [N, C, H, W]; a pixel's value is the stored integer / levels
    <split>.labels.npy            int64 [N]
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from redoubt.data.sources import Source
from redoubt.errors import ArtifactError, InvalidInput, one_of

if TYPE_CHECKING:   # torch takes two seconds to import, and a run's first two steps need no tensor
    from torch import Tensor

SPLITS = ("train", "validation", "detector_fit", "calibration", "gate", "test")
METADATA = "metadata.json"

# Share of the training file, and the least that a small file should give when it can afford to.
_HELD_OUT = {
    "validation": (2 / 60, 100),
    "detector_fit": (2 / 60, 250),
    "calibration": (2 / 60, 200),
    "gate": (5 / 60, 200),
}
MINIMUM = 400   # below this no split is large enough to decide anything


def split_sizes(n: int, *, grouped: bool = False) -> dict[str, int]:
    """How `n` training pictures are divided; the rest after the held-out splits is `train`.

    Pictures of one group say little more than one of them does: where they come in groups, a tenth is held out each
    time.

    Raises:
        InvalidInput: for fewer than `MINIMUM` pictures.
    """
    if n < MINIMUM:
        raise InvalidInput(f"{n} training pictures are too few to split: at least {MINIMUM} are needed")
    held_out = {name: n // 10 if grouped else max(round(n * share), min(least, n // 8))
                for name, (share, least) in _HELD_OUT.items()}
    return {"train": n - sum(held_out.values()), **held_out}


def prepare(
    source: Source, folder: Path, *, seed: int = 0, limit: int | None = None, request: dict | None = None
) -> Prepared:
    """Split `source` and write it to `folder`.

    A source without a test file of its own gives a sixth of its pictures to `test` first. The shuffle depends on
    `seed` alone; pictures of one group stay together, and splits then differ from their sizes by part of a group.
    `limit` keeps that many training pictures (and a sixth as many for test), for quick trials; without it, `train` also
    takes what the source has `further`. `request` is what a later run must ask for to get the same data; it is kept,
    but is no part of the checksum.
    """
    order, mixed = _shuffled(source, seed), np.random.default_rng(seed)
    test = (source.test_images, source.test_labels)
    if test[0] is None:
        cut = _whole_groups(source, order, len(order) // 6)
        rows = order[:cut] if source.groups is None else mixed.permutation(order[:cut])
        test = (source.train_images[rows], source.train_labels[rows])
        order = order[cut:]
    if limit is not None:
        order = order[:limit]
        test = tuple(part[: max(limit // 6, 100)] for part in test)

    folder.mkdir(parents=True, exist_ok=True)
    sizes, start, splits = split_sizes(len(order), grouped=source.groups is not None), 0, {}
    for name in SPLITS[:-1]:
        end = len(order) if name == SPLITS[-2] else _whole_groups(source, order, start + sizes[name])
        # Sorted rows of groups would come class by class, and the first n of a split are often all that is looked at.
        rows = np.sort(order[start:end]) if source.groups is None else mixed.permutation(order[start:end])
        start = end
        chosen = source.train_images[rows], source.train_labels[rows]
        if name == "train" and source.further and limit is None:
            chosen = _with_further(source, rows, seed)
        splits[name] = _write(folder, name, *chosen)
    splits["test"] = _write(folder, "test", *test)

    fit = np.load(folder / "train.images.npy", mmap_mode="r")
    metadata = {
        "format": 1,
        "dataset": source.name,
        "classes": list(source.classes),
        "shape": list(source.train_images.shape[1:]),
        "levels": source.levels,
        "mean": [round(float(fit[:, c].mean() / source.levels), 6) for c in range(fit.shape[1])],
        "std": [round(max(float(fit[:, c].std() / source.levels), 1e-3), 6) for c in range(fit.shape[1])],
        "seed": seed,
        "splits": splits,
    }
    metadata |= {"checksum": _checksum(metadata), "request": request or {}}
    (folder / METADATA).write_text(json.dumps(metadata, indent=1))
    return Prepared.open(folder)


def _shuffled(source: Source, seed: int) -> np.ndarray:
    """Row numbers in random order.

    Those of one group follow each other, and the groups of a class lie spread evenly: a split holds its share of them,
    where that is a whole group or more.
    """
    random = np.random.default_rng(seed)
    if source.groups is None:
        return random.permutation(len(source.train_labels))
    names, first, which = np.unique(source.groups, return_index=True, return_inverse=True)
    place = np.empty(len(names))
    for label in np.unique(source.train_labels[first]):
        of_class = np.flatnonzero(source.train_labels[first] == label)
        place[random.permutation(of_class)] = (np.arange(len(of_class)) + random.random(len(of_class))) / len(of_class)
    return np.argsort(place[which], kind="stable")


def _whole_groups(source: Source, order: np.ndarray, cut: int) -> int:
    """`cut`, or the place in `order` next to it where a group ends."""
    if source.groups is None:
        return cut
    ends = np.flatnonzero(np.diff(source.groups[order], append=-1)) + 1
    return int(ends[np.abs(ends - cut).argmin()])


def _with_further(source: Source, rows: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Pictures and labels of `rows` and what the source has for training besides, mixed."""
    more = source.further(np.setdiff1d(source.groups, source.groups[rows]))
    order = np.random.default_rng(seed).permutation(len(rows) + len(more[1]))
    return tuple(np.concatenate(part)[order] for part in
                 zip((source.train_images[rows], source.train_labels[rows]), more, strict=True))


def _write(folder: Path, split: str, images: np.ndarray, labels: np.ndarray) -> dict:
    np.save(folder / f"{split}.images.npy", np.ascontiguousarray(images, dtype=np.uint8))
    np.save(folder / f"{split}.labels.npy", np.ascontiguousarray(labels, dtype=np.int64))
    return {"n": len(labels), "sha256": _file_hash(folder, split)}


def _file_hash(folder: Path, split: str) -> str:
    digest = hashlib.sha256()
    for part in ("images", "labels"):
        with (folder / f"{split}.{part}.npy").open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _checksum(metadata: dict) -> str:
    content = {key: value for key, value in metadata.items() if key not in ("checksum", "request")}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Prepared:
    """A prepared data folder, opened. Nothing is read into memory before it is asked for."""

    folder: Path
    metadata: dict

    @classmethod
    def open(cls, folder: Path | str) -> Prepared:
        """Open a folder that `prepare` wrote.

        Raises:
            ArtifactError: when the metadata is missing or was altered. Pictures are checked when a split is read.
        """
        folder = Path(folder)
        try:
            metadata = json.loads((folder / METADATA).read_text())
            intact = metadata["checksum"] == _checksum(metadata)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ArtifactError(f"{folder} is no prepared data folder ({error}): run prepare_data again") from None
        if not intact:
            raise ArtifactError(f"{folder / METADATA} does not match its checksum: run prepare_data again")
        return cls(folder, metadata)

    @property
    def classes(self) -> list[str]:
        return self.metadata["classes"]

    @property
    def levels(self) -> int:
        """The largest stored value: 255 for 8-bit pictures, 16 for the digits."""
        return self.metadata["levels"]

    @property
    def checksum(self) -> str:
        return self.metadata["checksum"]

    def arrays(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """Pictures (uint8 [N, C, H, W], memory-mapped) and labels (int64 [N]) of one split, verified.

        Raises:
            InvalidInput: for an unknown split.
            ArtifactError: when a file is missing or altered.
        """
        one_of(split, SPLITS, "split")
        try:
            if _file_hash(self.folder, split) != self.metadata["splits"][split]["sha256"]:
                raise ArtifactError(f"{self.folder}: split {split!r} does not match its sha256: run prepare_data again")
            return tuple(np.load(self.folder / f"{split}.{part}.npy", mmap_mode="r") for part in ("images", "labels"))
        except (OSError, ValueError) as error:
            raise ArtifactError(f"{self.folder}: split {split!r} cannot be read ({error})") from None

    def tensors(self, split: str, limit: int | None = None) -> tuple[Tensor, Tensor]:
        """Float pictures in [0, 1] ([N, C, H, W]) and labels ([N]) of one split, the first `limit` of them."""
        images, labels = self.pixels(split, limit)
        return images.float() / self.levels, labels

    def pixels(self, split: str, limit: int | None = None) -> tuple[Tensor, Tensor]:
        """Pictures as they are stored (uint8 [N, C, H, W], at most `levels`) and labels of one split, see `tensors`."""
        import torch

        return tuple(torch.from_numpy(np.array(part[:limit])) for part in self.arrays(split))
