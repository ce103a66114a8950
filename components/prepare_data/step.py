"""Read a dataset, split it, write it with a checksum."""

from __future__ import annotations

from pathlib import Path

from redoubt.data import load_source, prepare


def run(
    out: Path, *, dataset: str, data_dir: str = "", image_size: int = 0, limit: int = 0, seed: int = 0
) -> dict:
    """Write the prepared data to `out` and return its metadata.

    Args:
        dataset: see `redoubt.data.sources`.
        image_size, limit: 0 leaves size and number of pictures as they are.
    """
    source = load_source(dataset, data_dir or None, size=image_size or None)
    request = {"dataset": dataset, "data_dir": data_dir, "image_size": image_size, "limit": limit, "seed": seed}
    return prepare(source, out, seed=seed, limit=limit or None, request=request).metadata
