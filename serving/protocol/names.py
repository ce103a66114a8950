"""The protocol's vocabulary here: names, datatypes and shapes, and how errors quote a wrong value."""

from __future__ import annotations

import numpy as np

INPUT = "input"
FLOATS = {"FP32": np.dtype("<f4"), "FP16": np.dtype("<f2"), "FP64": np.dtype("<f8")}
DATATYPES = {**FLOATS, "UINT8": np.dtype("u1")}   # as raw bytes, little-endian
# name: (datatype, shape); -1 is the batch, None the number of classes
ALWAYS = {"label": ("INT64", [-1]), "probabilities": ("FP32", [-1, None])}
VERDICT = {
    "is_adversarial": ("BOOL", [-1]),
    "instance_score": ("FP32", [-1]),
    "attack_probability": ("FP32", [-1]),
    "strength": ("FP32", [-1]),
    "strength_interval": ("FP32", [-1, 2]),
}
OUTPUTS = ALWAYS | VERDICT
RAW = {"INT64": np.dtype("<i8"), "FP32": np.dtype("<f4"), "BOOL": np.dtype("?")}
# How much of a verdict a client is told, from everything to nothing: exact scores help who attacks the detector.
DETAILS = {
    "exact": tuple(VERDICT),
    "rounded": tuple(VERDICT),
    "verdict": ("is_adversarial",),
    "none": (),
}
_MOST_WORDS = 80   # characters of a wrong value that an error repeats


def words(value) -> str:
    """A wrong value as an error shows it: cut short before it is written out, whatever its size."""
    if isinstance(value, list):
        inner = ", ".join(words(part) for part in value[:6])
        return f"[{inner}{', ...' if len(value) > 6 else ''}]"[:_MOST_WORDS]
    if type(value) is int and value.bit_length() > 64:
        return "a number of many digits"
    if isinstance(value, dict):
        return "an object"
    return repr(value[:_MOST_WORDS] if isinstance(value, str) else value)


def kind(value) -> str:
    """What sort of JSON value it is."""
    names = {dict: "an object", list: "a list", str: "text", bool: "a boolean", type(None): "nothing"}
    return names.get(type(value), "a number")
