"""Small colour pictures without a download: patches of the photographs that scikit-learn and scikit-image ship.

The class is the photograph. Patches overlap inside a block of it; blocks lie at least `GAP` pixels apart, so that
splits made by block share no pixel and no edge. Once it is settled which blocks are held out, training may take what
lies between its own blocks, too. What such a benchmark can show is how a system treats real texture.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from redoubt.errors import InvalidInput

SIZE, STRIDE, BLOCK, GAP = 32, 4, 48, 32   # pixels: a patch, from one to the next, a block of patches, between blocks
MOST_BLOCKS, MOST_BETWEEN = 60, 1500       # blocks of one photograph, and patches between them: large ones do not rule
LEAST = 16   # levels between the darkest and the brightest value of a patch
PHOTOGRAPHS = {
    "china": "sklearn", "flower": "sklearn", "astronaut": "skimage", "chelsea": "skimage", "coffee": "skimage",
    "hubble_deep_field": "skimage", "ihc": "skimage", "motorcycle_left": "skimage", "retina": "skimage",
    "rocket": "skimage",
}
_FOLDERS = {"sklearn": ("sklearn", "datasets/images", "scikit-learn"), "skimage": ("skimage", "data", "scikit-image")}


def cut_patches() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All patches: uint8 [N, 3, 32, 32], the photograph of each [N] (index into `PHOTOGRAPHS`), the block of each [N].

    Raises:
        InvalidInput: when a package is not installed, or its photograph is missing.
    """
    patches, labels, blocks = [], [], []
    for label, picture in enumerate(_photographs()):
        for top, left in _corners(label, picture):
            cut = _cut(picture[:, top : top + BLOCK, left : left + BLOCK])
            cut = cut[_textured(cut)]
            patches.append(cut)
            blocks.append(np.full(len(cut), len(blocks)))
            labels.append(np.full(len(cut), label))
    return np.concatenate(patches), np.concatenate(labels), np.concatenate(blocks)


def cut_between(held_out: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Patches at least `GAP` pixels from each block `held_out` (numbered as by `cut_patches`), at places where
    `cut_patches` cuts none: uint8 [M, 3, 32, 32], and their labels [M]."""
    patches, labels, first = [], [], 0
    for label, picture in enumerate(_photographs()):
        tops, lefts = (np.arange(STRIDE // 2, side - SIZE + 1, STRIDE) for side in picture.shape[1:])
        free = np.ones((len(tops), len(lefts)), bool)
        corners = _corners(label, picture)
        for top, left in (corners[block - first] for block in held_out if first <= block < first + len(corners)):
            free &= ~(_near(tops, top)[:, None] & _near(lefts, left))
        chosen = np.random.default_rng(label).permutation(np.argwhere(free))[:MOST_BETWEEN]
        places = np.lib.stride_tricks.sliding_window_view(picture, (SIZE, SIZE), (1, 2))
        cut = places[:, tops[chosen[:, 0]], lefts[chosen[:, 1]]].swapaxes(0, 1)
        patches.append(cut[_textured(cut)])
        labels.append(np.full(len(patches[-1]), label))
        first += len(corners)
    return np.concatenate(patches), np.concatenate(labels)


def _textured(patches: np.ndarray) -> np.ndarray:
    """Which patches [N, 3, S, S] show anything: the black round a photograph is the same in every split."""
    return np.ptp(patches.reshape(len(patches), -1), 1) >= LEAST


def _near(starts: np.ndarray, block: int) -> np.ndarray:
    """Which patches begin nearer than `GAP` to a block, along one axis."""
    return (starts + SIZE + GAP > block) & (starts < block + BLOCK + GAP)


def _corners(label: int, picture: np.ndarray) -> list[tuple[int, int]]:
    """Top and left of each block of one photograph."""
    corners = [(top, left) for top in range(0, picture.shape[1] - BLOCK + 1, BLOCK + GAP)
               for left in range(0, picture.shape[2] - BLOCK + 1, BLOCK + GAP)]
    chosen = np.random.default_rng(label).permutation(len(corners))[:MOST_BLOCKS]
    return [corners[i] for i in sorted(chosen)]


def _photographs() -> Iterator[np.ndarray]:
    return (_read(name, package) for name, package in PHOTOGRAPHS.items())


def _cut(block: np.ndarray) -> np.ndarray:
    places = range(0, BLOCK - SIZE + 1, STRIDE)
    return np.stack([block[:, top : top + SIZE, left : left + SIZE] for top in places for left in places])


def _read(name: str, package: str) -> np.ndarray:
    """One photograph, uint8 [3, H, W]."""
    from importlib.util import find_spec

    from PIL import Image

    module, inside, distribution = _FOLDERS[package]
    found = find_spec(module)
    if found is None or found.origin is None:
        raise InvalidInput(f"photo-patches needs the photographs of {distribution}: pip install {distribution}")
    file = next((Path(found.origin).parent / inside).glob(f"{name}.*"), None)
    if file is None:
        raise InvalidInput(f"this version of {distribution} ships no photograph {name!r}: install another version")
    with Image.open(file) as picture:
        return np.asarray(picture.convert("RGB")).transpose(2, 0, 1)
