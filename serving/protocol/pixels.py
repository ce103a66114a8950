"""Data becomes pixels: from JSON lists, flat or nested, and from raw bytes."""

from __future__ import annotations

import math
from array import array
from itertools import chain

import numpy as np

from redoubt.errors import InvalidInput
from serving.protocol.names import DATATYPES, kind, words
from serving.protocol.quick import Numbers

_NUMBERS = {int, float}   # what JSON numbers become; a boolean is none


def from_json_data(data, declared: list[int], datatype: str, text: bytes) -> np.ndarray:
    """`data` of a JSON tensor as float32 pixels of shape `declared`.

    Args:
        data: as the message holds them, or as `quick.Numbers`.
        text: the message. C conversion takes booleans for numbers, and looking at each value costs as much as the rest:
            it is left out where the message has neither word.

    Raises:
        InvalidInput: when count, nesting or values do not fit.
    """
    if isinstance(data, Numbers):
        pixels = _pixels(data.values(declared, whole=datatype == "UINT8"), datatype)
        if pixels is not None:
            return pixels.reshape(declared)
        data = data.plain()   # something is wrong with it, and the plain way knows how to say what
    numbers = _numbers(data, declared)
    if (b"true" in text or b"false" in text) and not _NUMBERS.issuperset(map(type, numbers)):
        raise InvalidInput("`data` holds something that is not a number")
    return _json_pixels(numbers, datatype).reshape(declared)


def _pixels(values: np.ndarray | None, datatype: str) -> np.ndarray | None:
    """Numbers in range as float32 pixels, else None."""
    if values is None:
        return None
    if datatype == "UINT8":
        return values.astype(np.float32) / np.float32(255) if values.max() <= 255 else None
    with np.errstate(over="ignore"):
        pixels = values.astype(np.float32)
    return pixels if pixels.min() >= 0 and pixels.max() <= 1 else None


def from_raw(data: memoryview, declared: list[int], datatype: str) -> np.ndarray:
    """A binary tensor as float32 pixels of shape `declared`.

    Raises:
        InvalidInput: when its length or its values do not fit.
    """
    kind_of = DATATYPES[datatype]
    needed = math.prod(declared) * kind_of.itemsize
    if len(data) != needed:
        raise InvalidInput(
            f"the binary tensor has {len(data)} bytes, but `shape` {declared} of {datatype} needs {needed}"
        )
    values = np.frombuffer(data, kind_of).reshape(declared)
    if datatype == "UINT8":
        return values / np.float32(255)
    # Checked before narrowing: a large FP64 becomes infinity as FP32, and says so better as the number it was.
    return _in_range(values, values.min(), values.max()).astype(np.float32)   # a copy: the body is let go


def _numbers(data, declared: list[int]) -> list[int | float]:
    """The numbers of `data` in order. Counted first: nothing larger than `declared` is ever made."""
    if not isinstance(data, list):
        raise InvalidInput(f"`data` must be a list of numbers, not {kind(data)}")
    count, sizes, numbers = math.prod(declared), [len(data)], data
    while numbers and type(numbers[0]) is list:
        if len(sizes) == len(declared) or math.prod(sizes) > count:
            raise InvalidInput(f"`data` is nested as {sizes} and deeper, but `shape` says {declared}")
        if any(type(row) is not list or len(row) != len(numbers[0]) for row in numbers):
            raise InvalidInput("`data` is ragged: nested lists must all have the same length, or send them flat")
        sizes.append(len(numbers[0]))
        if math.prod(sizes) > count:
            break
        numbers = list(chain.from_iterable(numbers))
    if len(sizes) > 1 and sizes != declared:
        raise InvalidInput(f"`data` is nested as {sizes}, but `shape` says {declared}")
    if len(numbers) != count:
        raise InvalidInput(f"`data` holds {len(numbers)} numbers, but `shape` {declared} needs {count}")
    return numbers


def _json_pixels(numbers: list[int | float], datatype: str) -> np.ndarray:
    """`array` fills itself in C, several times as quick as numpy does from a list."""
    if datatype == "UINT8":
        try:
            return np.frombuffer(array("B", numbers), np.uint8) / np.float32(255)
        except OverflowError:
            pass
        except TypeError:
            if not _NUMBERS.issuperset(map(type, numbers)):
                raise InvalidInput("`data` holds something that is not a number") from None
        wrong = next(number for number in numbers if type(number) is not int or not 0 <= number <= 255)
        raise InvalidInput(f"UINT8 data must be whole numbers from 0 to 255, not {words(wrong)}")
    try:
        pixels = np.frombuffer(array("f", numbers), np.float32)
        low, high = pixels.min(), pixels.max()
    except TypeError:
        raise InvalidInput("`data` holds something that is not a number") from None
    except OverflowError:   # a whole number beyond every float
        pixels, low, high = None, np.float32("-inf"), np.float32("inf")
    return _in_range(pixels, low, high)


def _in_range(pixels: np.ndarray | None, low, high) -> np.ndarray:
    if low >= 0 and high <= 1:
        return pixels
    if not np.isfinite(low) or not np.isfinite(high):
        raise InvalidInput("the input holds NaN or infinity: every pixel must be a number in [0, 1]")
    raise InvalidInput(
        f"the input holds values from {low:.6g} to {high:.6g}: floating-point pixels lie in [0, 1] (divide by 255, or "
        "send UINT8)"
    )
