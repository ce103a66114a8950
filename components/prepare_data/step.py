"""Read a dataset, split it, write it with a checksum."""

from __future__ import annotations

from pathlib import Path

from redoubt.data import load_source, prepare
from redoubt.errors import ArtifactError


def run(
    out: Path, *, dataset: str, data_dir: str = "", image_size: int = 0, limit: int = 0, split_seed: int = 0,
    data_checksum: str = "",
) -> dict:
    """Write the prepared data to `out` and return its metadata.

    Args:
        dataset: see `redoubt.data.sources`.
        image_size, limit: 0 leaves size and number of pictures as they are.
        data_checksum: what the result must be, so that a retraining run meets the data that its parent met.

    Raises:
        ArtifactError: when the checksum differs.
    """
    source = load_source(dataset, data_dir or None, size=image_size or None)
    request = {"dataset": dataset, "data_dir": data_dir, "image_size": image_size, "limit": limit,
               "split_seed": split_seed}
    prepared = prepare(source, out, seed=split_seed, limit=limit or None, request=request)
    if data_checksum and prepared.checksum != data_checksum:
        raise ArtifactError(f"{dataset} has changed: its checksum is {prepared.checksum[:12]}, not "
                            f"{data_checksum[:12]}; train a new model on it under another name")
    return prepared.metadata
