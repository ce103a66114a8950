"""Data: where pictures come from (`sources`), and the prepared, split and checksummed form (`prepared`)."""

from redoubt.data.prepared import SPLITS, Prepared, prepare, split_sizes
from redoubt.data.sources import Source, load_source

__all__ = ["SPLITS", "Prepared", "Source", "load_source", "prepare", "split_sizes"]
