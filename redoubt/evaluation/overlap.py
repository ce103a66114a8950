"""Whether an evaluation set holds pictures that the model was trained on, found by the hash of their pixels."""

from __future__ import annotations

import hashlib

import numpy as np

from redoubt.errors import InvalidInput

TOLERATED = 0.001   # share of the set: public datasets have a few twins of their own, which are left out and counted


def hashes(images: np.ndarray) -> list[bytes]:
    """A hash of each picture, uint8 [N, C, H, W]."""
    flat = np.ascontiguousarray(images).reshape(len(images), -1)
    return [hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in flat]


def fresh(images: np.ndarray, trained_on: np.ndarray) -> np.ndarray:
    """Which pictures do not occur among the training pictures, however many do: bool [N].

    Args:
        images, trained_on: uint8 [N, C, H, W], stored values of one lattice.
    """
    known = set(hashes(trained_on))
    return np.array([mark not in known for mark in hashes(images)], dtype=bool)


def unseen(images: np.ndarray, trained_on: np.ndarray) -> np.ndarray:
    """Which pictures of an evaluation set do not occur among the training pictures: bool [N].

    Args:
        images, trained_on: uint8 [N, C, H, W], stored values of one lattice.

    Raises:
        InvalidInput: when more than `TOLERATED` of them occur there: figures would be those of a memory test.
    """
    new = fresh(images, trained_on)
    twins = int((~new).sum())
    if twins > TOLERATED * len(images):
        raise InvalidInput(f"{twins} of the {len(images)} evaluation pictures were trained on (found by hash): "
                           "give test pictures that the training set does not hold")
    return new
