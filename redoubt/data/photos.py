"""Small colour pictures without a download: patches of the photographs that scikit-learn and scikit-image ship.

The class is the photograph. Patches overlap inside a block of it; blocks lie at least `GAP` pixels apart, so that
splits made by block share no pixel and no edge. What such a benchmark can show is how a system treats real texture.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from redoubt.errors import InvalidInput

SIZE, STRIDE, BLOCK, GAP = 32, 4, 48, 32   # pixels: a patch, from one to the next, a block of patches, between blocks
MOST_BLOCKS = 60                           # of one photograph, so that large ones do not rule
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
    for label, (name, package) in enumerate(PHOTOGRAPHS.items()):
        picture = _read(name, package)
        corners = [(top, left) for top in range(0, picture.shape[1] - BLOCK + 1, BLOCK + GAP)
                   for left in range(0, picture.shape[2] - BLOCK + 1, BLOCK + GAP)]
        chosen = np.random.default_rng(label).permutation(len(corners))[:MOST_BLOCKS]
        for top, left in (corners[i] for i in sorted(chosen)):
            cut = _cut(picture[:, top : top + BLOCK, left : left + BLOCK])
            patches.append(cut)
            blocks.append(np.full(len(cut), len(blocks)))
            labels.append(np.full(len(cut), label))
    return np.concatenate(patches), np.concatenate(labels), np.concatenate(blocks)


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
