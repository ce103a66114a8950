"""Open Inference Protocol v2 in JSON: what comes in becomes a tensor of pixels, what goes out becomes named tensors.

Strict: whatever does not fit the model is refused with a sentence that says what would.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from pydantic_core import from_json
from torch import Tensor

from redoubt.bundle import Bundle
from redoubt.errors import InvalidInput

INPUT = "input"
DATATYPES = ("FP32", "UINT8")
_NUMBERS = {int, float}   # what JSON numbers become; a boolean is none
_MOST_WORDS = 80   # characters of a wrong value that an error repeats
ALWAYS = {"label": ("INT64", [-1]), "probabilities": ("FP32", [-1, None])}
VERDICT = {
    "is_adversarial": ("BOOL", [-1]),
    "instance_score": ("FP32", [-1]),
    "strength": ("FP32", [-1]),
    "strength_interval": ("FP32", [-1, 2]),
}


@dataclass(frozen=True)
class InferRequest:
    """A decoded request.

    Attributes:
        x: float32 [N, C, H, W] in [0, 1].
        id: the caller's id, returned as it came.
        outputs: names of the tensors that the caller wants; empty for all.
    """

    x: Tensor
    id: str | None
    outputs: tuple[str, ...]


def decode(body: bytes, shape: tuple[int, int, int], *, max_batch: int) -> InferRequest:
    """Read an infer request's body.

    Args:
        shape: (channels, height, width) that the model takes.
        max_batch: most inputs in one request.

    Raises:
        InvalidInput: for anything that the model cannot take.
    """
    try:
        message = from_json(body)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"the body is not JSON: {error}") from None
    if not isinstance(message, dict):
        raise InvalidInput(f"the body must be a JSON object with `inputs`, not {_kind(message)}")
    inputs = message.get("inputs")
    if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
        raise InvalidInput(f"`inputs` must be a list of one tensor named {INPUT!r}")
    identity = message.get("id")
    if identity is not None and not isinstance(identity, str):
        raise InvalidInput(f"`id` must be text, not {_kind(identity)}")
    return InferRequest(_tensor(inputs[0], shape, max_batch), identity, _wanted(message.get("outputs")))


def _wanted(outputs) -> tuple[str, ...]:
    if outputs is None:
        return ()
    valid = ALWAYS | VERDICT
    short = isinstance(outputs, list) and len(outputs) <= len(valid)
    names = [output.get("name") for output in outputs if isinstance(output, dict)] if short else []
    named = short and len(names) == len(outputs) and all(isinstance(name, str) and name in valid for name in names)
    if not named or len(set(names)) != len(names):
        raise InvalidInput(
            f"`outputs` must be a list of objects whose `name` is one of {', '.join(valid)}, each at most once"
        )
    return tuple(names)


def _tensor(tensor: dict, shape: tuple[int, int, int], max_batch: int) -> Tensor:
    if tensor.get("name") != INPUT:
        raise InvalidInput(f"the model has no input {_words(tensor.get('name'))}: its input is {INPUT!r}")
    datatype = tensor.get("datatype")
    if datatype not in DATATYPES:
        raise InvalidInput(f"datatype {_words(datatype)} is not taken: send FP32 in [0, 1] or UINT8 from 0 to 255")
    if "data" not in tensor:
        raise InvalidInput("the input has no `data`: only JSON data is taken, not binary tensors")
    declared = _declared_shape(tensor.get("shape"), shape, max_batch)
    numbers = _numbers(tensor["data"], declared)
    return torch.from_numpy(_pixels(numbers, datatype).reshape(declared))


def _declared_shape(declared, shape: tuple[int, int, int], max_batch: int) -> list[int]:
    right = f"[N, {shape[0]}, {shape[1]}, {shape[2]}]"
    whole = isinstance(declared, list) and all(type(size) is int for size in declared)
    if not whole or len(declared) != 4 or tuple(declared[1:]) != shape:
        what = _words(declared) if whole else _kind(declared)
        hint = ""
        if whole and len(declared) == 4 and declared[1] != shape[0]:
            hint = f"; {_words(declared[1])} channels were sent and the model takes {shape[0]}"
        raise InvalidInput(f"shape {what} does not fit the model, which takes {right}{hint}")
    if not 1 <= declared[0] <= max_batch:
        raise InvalidInput(f"a request carries 1 to {max_batch} inputs, not {_words(declared[0])}")
    return declared


def _numbers(data, declared: list[int]) -> list[int | float]:
    """The numbers of `data` in order. Counted and looked at first: nothing larger than `declared` is ever made."""
    if not isinstance(data, list):
        raise InvalidInput(f"`data` must be a list of numbers, not {_kind(data)}")
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
    if not _NUMBERS.issuperset(map(type, numbers)):
        raise InvalidInput("`data` holds something that is not a number")
    return numbers


def _pixels(numbers: list[int | float], datatype: str) -> np.ndarray:
    try:
        with np.errstate(over="ignore"):
            pixels = np.fromiter(numbers, np.float32, len(numbers))
        low, high = pixels.min(), pixels.max()
    except OverflowError:   # a whole number beyond every float
        low = high = np.float32("inf")
    if datatype == "UINT8":
        if not (low >= 0 and high <= 255) or float in map(type, numbers):
            raise InvalidInput("UINT8 data must be whole numbers from 0 to 255")
        return pixels / np.float32(255)
    if low >= 0 and high <= 1:
        return pixels
    if not np.isfinite(low) or not np.isfinite(high):
        raise InvalidInput("the input holds NaN or infinity: every pixel must be a number in [0, 1]")
    raise InvalidInput(
        f"the input holds values from {low:.6g} to {high:.6g}: FP32 pixels lie in [0, 1] (divide by 255, or send UINT8)"
    )


def _words(value) -> str:
    """A wrong value as an error shows it: cut short before it is written out, whatever its size."""
    if isinstance(value, list):
        inner = ", ".join(_words(part) for part in value[:6])
        return f"[{inner}{', ...' if len(value) > 6 else ''}]"[:_MOST_WORDS]
    if type(value) is int and value.bit_length() > 64:
        return "a number of many digits"
    if isinstance(value, dict):
        return "an object"
    return repr(value[:_MOST_WORDS] if isinstance(value, str) else value)


def _kind(value) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "a boolean", type(None): "nothing"}
    return names.get(type(value), "a number")


def encode(tensors: dict[str, Tensor], request: InferRequest, *, model_name: str, version: str) -> dict:
    """The answer to `request`.

    Args:
        tensors: output name to values, first dimension N; verdicts may be absent.
    """
    wanted = request.outputs or tuple(tensors)
    answer = {"model_name": model_name, "model_version": version}
    if request.id is not None:
        answer["id"] = request.id
    datatypes = {name: datatype for name, (datatype, _) in (ALWAYS | VERDICT).items()}
    answer["outputs"] = [
        {
            "name": name,
            "datatype": datatypes[name],
            "shape": list(tensors[name].shape),
            "data": tensors[name].flatten().tolist(),
        }
        for name in wanted if name in tensors
    ]
    return answer


def metadata(bundle: Bundle, *, model_name: str, versions: list[str]) -> dict:
    """What a client needs to know to call the model: names, datatypes, shapes (-1 is the batch), classes."""
    channels, height, width = bundle.architecture.input_shape
    outputs = ALWAYS | (VERDICT if bundle.has_detector else {})
    classes = len(bundle.classes)
    return {
        "name": model_name,
        "versions": versions,
        "platform": "redoubt_torch",
        "inputs": [{"name": INPUT, "datatype": "FP32", "shape": [-1, channels, height, width]}],
        "outputs": [
            {"name": name, "datatype": datatype, "shape": [classes if size is None else size for size in shape]}
            for name, (datatype, shape) in outputs.items()
        ],
        "parameters": {"classes": bundle.classes, "architecture": bundle.architecture.name},
    }
