"""Where pictures come from. Every source ends as uint8 arrays [N, C, H, W] with the number of levels they use.

    digits                          scikit-learn's 8x8 handwritten digits, embedded, 17 grey levels
    mnist, fashion-mnist            the four IDX files, local or downloaded through torchvision
    cifar10, cifar100               through torchvision, local or downloaded
    photo-patches                   32x32 colour patches of photographs in scikit-learn and scikit-image, embedded
    folder:PATH                     PATH/<class>/*.png, or PATH/train/<class>/... with PATH/test/<class>/...
    npz:PATH                        keys x_train, y_train; optionally x_test, y_test, classes
    https://, s3://, oci://         one of the last two from elsewhere, with its checksum (`remote`)
"""

from __future__ import annotations

import gzip
import os
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from redoubt.data.photos import PHOTOGRAPHS, cut_between, cut_patches
from redoubt.errors import InvalidInput
from redoubt.names import SCHEMES

NAMED = ("cifar10", "cifar100", "digits", "fashion-mnist", "mnist", "photo-patches")
_IDX = {"mnist": ("MNIST", [str(d) for d in range(10)]),
        "fashion-mnist": ("FashionMNIST", ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt",
                                           "Sneaker", "Bag", "Ankle boot"])}
_IDX_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
_IDX_TYPE_UINT8 = 0x08
_MIX = 0   # seed of the order that a user's pictures get: never another, versions know their data by its checksum
_SYSTEM_DATASETS = Path("/usr/share/datasets")   # where Debian's dataset packages put theirs


@dataclass(frozen=True, kw_only=True)
class Source:
    """Pictures as they came, before splitting.

    Attributes:
        name: as the user wrote it.
        train_images: uint8 [N, C, S, S]; `train_labels`: int64 [N]. The same for test, or None when there is none.
        levels: the largest value that a pixel can have; pixel / levels lies in [0, 1].
        groups: int64 [N] of training pictures that belong together, such as parts of one photograph: `prepare` never
            divides a group between splits.
        further: given the groups that are not for training, gives more pictures and labels that are, and that have
            nothing in common with those groups.
    """

    name: str
    classes: tuple[str, ...]
    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray | None = None
    test_labels: np.ndarray | None = None
    levels: int = 255
    groups: np.ndarray | None = None
    further: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]] | None = None

    def __post_init__(self) -> None:
        if self.further and self.groups is None:
            raise InvalidInput(f"{self.name}: without groups, nothing says what `further` must keep away from")
        parts = [("training", self.train_images, self.train_labels)]
        if self.test_images is not None:
            parts.append(("test", self.test_images, self.test_labels))
        for what, images, labels in parts:
            if images.ndim != 4 or images.shape[1] not in (1, 3) or images.shape[2] != images.shape[3]:
                raise InvalidInput(f"{self.name}: {what} pictures must be square, grey or colour, not {images.shape}")
            if images.shape[1:] != self.train_images.shape[1:]:
                raise InvalidInput(f"{self.name}: test pictures are {images.shape[1:]}, training pictures differ")
            if len(images) != len(labels) or len(labels) == 0:
                raise InvalidInput(f"{self.name}: {len(images)} {what} pictures but {len(labels)} labels")
            if labels.min() < 0 or labels.max() >= len(self.classes):
                raise InvalidInput(f"{self.name}: {what} labels must be 0 to {len(self.classes) - 1}")


def load_source(dataset: str, data_dir: str | Path | None = None, *, size: int | None = None) -> Source:
    """Read a dataset by name.

    Published sets keep the order that they are published in. What a user brings is mixed, always in the same way: files
    in folders come class by class, and whoever takes the first pictures would look at one class.

    Args:
        dataset: one of `NAMED`, `folder:PATH`, `npz:PATH` or a remote one.
        data_dir: where a local copy may lie and where a download goes; by default REDOUBT_DATA or ~/.cache/redoubt.
        size: for folders, resize every picture to this many pixels a side.

    Raises:
        InvalidInput: for an unknown dataset, or files that are missing or corrupt.
    """
    root = Path(data_dir or os.environ.get("REDOUBT_DATA") or Path.home() / ".cache" / "redoubt")
    here = dataset
    if dataset.startswith(SCHEMES):
        from redoubt.data.remote import fetch

        here = fetch(dataset, root)
    kind, _, path = here.partition(":")
    if kind == "folder" and path:
        return _mixed(_folder(dataset, Path(path), size))
    if kind == "npz" and path:
        return _mixed(_npz(dataset, Path(path)))
    if dataset == "digits":
        return _digits()
    if dataset == "photo-patches":
        images, labels, groups = cut_patches()
        return Source(name=dataset, classes=tuple(PHOTOGRAPHS), train_images=images, train_labels=labels, groups=groups,
                      further=cut_between)
    if dataset in _IDX:
        return _idx(dataset, root)
    if dataset in ("cifar10", "cifar100"):
        return _cifar(dataset, root)
    raise InvalidInput(f"unknown dataset {dataset!r}: valid ones are {', '.join(NAMED)}, folder:PATH, npz:PATH")


def _mixed(source: Source) -> Source:
    """The source's pictures in an order that depends on nothing but how many there are."""
    train, test = (None if labels is None else np.random.default_rng(_MIX).permutation(len(labels))
                   for labels in (source.train_labels, source.test_labels))
    if test is not None:
        source = replace(source, test_images=source.test_images[test], test_labels=source.test_labels[test])
    return replace(source, train_images=source.train_images[train], train_labels=source.train_labels[train])


def _digits() -> Source:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return Source(
        name="digits", classes=tuple(str(d) for d in range(10)), levels=16,
        train_images=bunch.images.astype(np.uint8)[:, None], train_labels=bunch.target.astype(np.int64),
    )


def read_idx(path: Path) -> np.ndarray:
    """Read one IDX file of unsigned bytes, plain or gzipped (format: the MNIST database's page by LeCun et al.).

    Raises:
        InvalidInput: when the file is missing, truncated or of another type.
    """
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
            data = file.read()
        zero, kind, rank = struct.unpack(">HBB", data[:4])
        shape = struct.unpack(f">{rank}I", data[4 : 4 + 4 * rank])
        if zero != 0 or kind != _IDX_TYPE_UINT8:
            raise ValueError("no IDX file of unsigned bytes")
        return np.frombuffer(data, np.uint8, offset=4 + 4 * rank).reshape(shape)
    except (OSError, EOFError, ValueError, struct.error, zlib.error) as error:
        raise InvalidInput(f"{path} cannot be read ({error}): fetch it again") from None


def _idx(dataset: str, root: Path) -> Source:
    folder_name, classes = _IDX[dataset]
    places = [root, root / dataset, root / folder_name / "raw", _SYSTEM_DATASETS / dataset]
    files = next((found for place in places if (found := _idx_files(place))), None)
    if files is None:
        _download(folder_name, root)
        files = _idx_files(root / folder_name / "raw")
    images, labels, test_images, test_labels = (read_idx(file) for file in files)
    return Source(
        name=dataset, classes=tuple(classes),
        train_images=images[:, None], train_labels=labels.astype(np.int64),
        test_images=test_images[:, None], test_labels=test_labels.astype(np.int64),
    )


def _idx_files(place: Path) -> list[Path] | None:
    """The four files in `place`; None when it holds none of them.

    Raises:
        InvalidInput: when it holds some but not all: a download was cut, or a file was lost.
    """
    found = [next((place / (name + end) for end in ("", ".gz") if (place / (name + end)).is_file()), None)
             for name in _IDX_FILES]
    if not any(found):
        return None
    missing = [name for name, file in zip(_IDX_FILES, found, strict=True) if file is None]
    if missing:
        raise InvalidInput(f"{place} lacks {', '.join(missing)}: put all four IDX files there, plain or .gz")
    return found


def _download(class_name: str, root: Path):
    from torchvision import datasets

    try:
        kind = getattr(datasets, class_name)
        return kind(root, train=True, download=True), kind(root, train=False, download=True)
    except Exception as error:   # torchvision raises whatever its transport raises
        why = " ".join(str(error).split())[:120]
        raise InvalidInput(
            f"{class_name} is not in {root} and could not be downloaded ({why}): "
            f"put torchvision's files there, or name their folder with --data-dir"
        ) from None


def _cifar(dataset: str, root: Path) -> Source:
    parts = _download(dataset.upper(), root)   # with a local copy this verifies it and downloads nothing
    (images, labels), (test_images, test_labels) = (
        (part.data.transpose(0, 3, 1, 2), np.array(part.targets, dtype=np.int64)) for part in parts
    )
    return Source(
        name=dataset, classes=tuple(parts[0].classes), train_images=images, train_labels=labels,
        test_images=test_images, test_labels=test_labels,
    )


def _folder(name: str, path: Path, size: int | None) -> Source:
    if not path.is_dir():
        raise InvalidInput(f"{path} is no folder: folder:PATH expects PATH/<class>/<picture>")
    split = (path / "train").is_dir()
    base = path / "train" if split else path
    classes = sorted(entry.name for entry in base.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if len(classes) < 2:
        raise InvalidInput(f"{base} holds {len(classes)} class folders: at least 2 are needed")
    images, labels, mode, size = _pictures(base, classes, None, size)
    test = (None, None)
    if split and (path / "test").is_dir():
        test = _pictures(path / "test", classes, mode, size)[:2]
    return Source(name=name, classes=tuple(classes), train_images=images, train_labels=labels,
                  test_images=test[0], test_labels=test[1])


def _pictures(base: Path, classes: list[str], mode: str | None, size: int | None):
    from PIL import Image
    from torchvision.datasets.folder import IMG_EXTENSIONS

    files = [(file, label) for label, name in enumerate(classes) for file in sorted((base / name).glob("**/*"))
             if file.suffix.lower() in IMG_EXTENSIONS]
    if not files:
        raise InvalidInput(f"{base} holds no pictures ({', '.join(IMG_EXTENSIONS)})")
    arrays = []
    for file, _ in files:
        try:
            with Image.open(file) as picture:
                mode = mode or ("L" if picture.mode[0] in "1LI" else "RGB")
                size = size or min(picture.size)
                if picture.size != (size, size) and picture.size[0] != picture.size[1]:
                    raise ValueError(f"{picture.size[0]}x{picture.size[1]} is not square")
                if picture.mode.startswith("I"):   # 16 bit a pixel, which convert() would clip and not scale
                    picture = Image.fromarray((np.asarray(picture).clip(0, 65535) // 257).astype(np.uint8))
                picture = picture.convert(mode)
                arrays.append(np.asarray(picture if picture.size == (size, size) else picture.resize((size, size))))
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:   # Pillow raises all four
            raise InvalidInput(f"{file} cannot be used ({error})") from None
    images = np.stack(arrays)
    images = images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2)
    return images, np.array([label for _, label in files], dtype=np.int64), mode, size


def _npz(name: str, path: Path) -> Source:
    if path.is_file() and not zipfile.is_zipfile(path):
        raise InvalidInput(f"{path} is no .npz file: numpy.savez_compressed writes one, with x_train, y_train, "
                           "optionally x_test, y_test, classes")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
    except (OSError, ValueError, EOFError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise InvalidInput(f"{path} cannot be read as .npz ({error})") from None
    missing = {"x_train", "y_train"} - arrays.keys()
    if missing:
        raise InvalidInput(f"{path} lacks {', '.join(sorted(missing))}: it needs x_train, y_train, "
                           "optionally x_test, y_test, classes")
    if len(arrays.keys() & {"x_test", "y_test"}) == 1:
        raise InvalidInput(f"{path} holds one of x_test and y_test: give both or neither")
    labels = arrays["y_train"].astype(np.int64).ravel()
    classes = arrays.get("classes", np.arange(labels.max(initial=0) + 1))
    has_test = {"x_test", "y_test"} <= arrays.keys()
    return Source(
        name=name, classes=tuple(str(c) for c in classes),
        train_images=_as_uint8(path, "x_train", arrays["x_train"]), train_labels=labels,
        test_images=_as_uint8(path, "x_test", arrays["x_test"]) if has_test else None,
        test_labels=arrays["y_test"].astype(np.int64).ravel() if has_test else None,
    )


def _as_uint8(path: Path, key: str, images: np.ndarray) -> np.ndarray:
    """[N, S, S] or [N, S, S, C] or [N, C, S, S], uint8 or float in [0, 1], to uint8 [N, C, S, S]."""
    if np.issubdtype(images.dtype, np.floating):
        if not np.isfinite(images).all() or images.min() < 0 or images.max() > 1:
            raise InvalidInput(f"{path}: {key} holds floats outside [0, 1]")
        images = (images * 255).round().astype(np.uint8)
    if images.dtype != np.uint8:
        raise InvalidInput(f"{path}: {key} must be uint8, or float in [0, 1], not {images.dtype}")
    if images.ndim == 3:
        return images[:, None]
    return images if images.ndim != 4 or images.shape[1] in (1, 3) else images.transpose(0, 3, 1, 2)
