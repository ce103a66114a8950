"""An infer request is read: JSON alone, or JSON followed by the raw bytes of its binary tensors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from pydantic_core import from_json
from torch import Tensor

from redoubt.errors import InvalidInput
from serving.protocol.names import DATATYPES, INPUT, OUTPUTS, kind, words
from serving.protocol.pixels import from_json_data, from_raw
from serving.protocol.quick import read

_SMALL = 1 << 20   # bytes of a message of which nothing but the lists is counted
_SLACK = 4096   # brackets and commas that a message may have beside its data: outputs, parameters, an id in words
_LONGEST_ID = 512


@dataclass(frozen=True)
class Wanted:
    """An output that the client asked for, and whether as raw bytes."""

    name: str
    binary: bool


@dataclass(frozen=True)
class InferRequest:
    """A decoded request.

    Attributes:
        x: float32 [N, C, H, W] in [0, 1].
        id: the caller's id, returned as it came.
        outputs: what the caller wants; empty for everything.
        binary: whether outputs that are not named come as raw bytes.
        timeout: seconds that the caller gives the request; None for the server's own bound.
    """

    x: Tensor
    id: str | None
    outputs: tuple[Wanted, ...]
    binary: bool = False
    timeout: float | None = None


def decode(body: bytes, shape: tuple[int, int, int], *, max_batch: int, json_length: int | None = None) -> InferRequest:
    """Read an infer request's body.

    Args:
        shape: (channels, height, width) that the model takes.
        max_batch: most inputs in one request.
        json_length: bytes of JSON at the beginning, after which binary tensors follow; None when all is JSON.

    Raises:
        InvalidInput: for anything that the model cannot take.
    """
    if json_length is not None and not 0 < json_length <= len(body):
        raise InvalidInput(f"Inference-Header-Content-Length is {json_length}, but the body has {len(body)} bytes")
    text = body if json_length is None else body[:json_length]
    raw = None if json_length is None else memoryview(body)[json_length:]
    message = _parse(text, shape, max_batch)
    inputs = message.get("inputs")
    if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
        raise InvalidInput(f"`inputs` must be a list of one tensor named {INPUT!r}; its first dimension is the batch")
    identity = message.get("id")
    if identity is not None and (not isinstance(identity, str) or len(identity) > _LONGEST_ID):
        raise InvalidInput(f"`id` must be text of at most {_LONGEST_ID} characters, not {words(identity)[:40]}")
    parameters = _object(message.get("parameters"), "`parameters`")
    binary = _flag(parameters, "binary_data_output")
    x = _tensor(inputs[0], raw, shape, max_batch, text)
    return InferRequest(x, identity or None, _wanted(message.get("outputs"), binary), binary, _timeout(parameters))


def _parse(text: bytes, shape: tuple[int, int, int], max_batch: int) -> dict:
    """The message. Its lists are counted before: half a megabyte of brackets would take half a second to become lists.

    So are the other parts of a large one. A small one's become some ten megabytes in some ten milliseconds at most, and
    counting would cost as much as reading it.
    """
    channels, height, width = shape
    brackets = text.count(b"[")
    if brackets > max_batch * (1 + channels * (1 + height)) + _SLACK or (len(text) > _SMALL and (
        text.count(b"{") > _SLACK or text.count(b",") > max_batch * channels * height * width + _SLACK
    )):
        raise InvalidInput(f"the message has more parts than {max_batch} inputs of {list(shape)} can have")
    message = read(text, brackets)
    if message is not None:
        return message
    try:
        message = from_json(text)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"the body is not JSON: {error}") from None
    if not isinstance(message, dict):
        raise InvalidInput(f"the body must be a JSON object with `inputs`, not {kind(message)}")
    return message


def _object(value, what: str) -> dict:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InvalidInput(f"{what} must be an object, not {kind(value)}")
    return value


def _flag(parameters: dict, name: str, default: bool = False) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise InvalidInput(f"the parameter {name!r} must be true or false, not {words(value)}")
    return value


def _timeout(parameters: dict) -> float | None:
    """The parameter `timeout`, in microseconds as other servers of the protocol have it, as seconds."""
    value = parameters.get("timeout")
    if value is None:
        return None
    if type(value) is not int or not 0 < value < 2**63:
        must = "must be a whole number of microseconds above 0"
        raise InvalidInput(f"the parameter 'timeout' {must}, not {words(value)}")
    return value / 1e6


def _wanted(outputs, binary: bool) -> tuple[Wanted, ...]:
    if outputs is None:
        return ()
    short = isinstance(outputs, list) and len(outputs) <= len(OUTPUTS)
    names = [output.get("name") for output in outputs if isinstance(output, dict)] if short else []
    named = short and len(names) == len(outputs) and all(isinstance(name, str) and name in OUTPUTS for name in names)
    if not named or len(set(names)) != len(names):
        wrong = next((f", not {words(name)}" for name in names if not (isinstance(name, str) and name in OUTPUTS)), "")
        raise InvalidInput(
            f"`outputs` must be a list of objects whose `name` is one of {', '.join(OUTPUTS)}{wrong}, each at most once"
        )
    wanted = []
    for output in outputs:
        parameters = _object(output.get("parameters"), "an output's `parameters`")
        wanted.append(Wanted(output["name"], _flag(parameters, "binary_data", binary)))
    return tuple(wanted)


def _tensor(tensor: dict, raw, shape: tuple[int, int, int], max_batch: int, text: bytes) -> Tensor:
    lacking = [f"`{key}`" for key in ("name", "datatype", "shape") if key not in tensor]
    if lacking:
        raise InvalidInput(f"the input has no {' and no '.join(lacking)}: send {_example(shape)}")
    if tensor["name"] != INPUT:
        raise InvalidInput(f"the model has no input {words(tensor['name'])}: its input is {INPUT!r}")
    datatype = tensor["datatype"]
    if not isinstance(datatype, str) or datatype not in DATATYPES:
        raise InvalidInput(
            f"datatype {words(datatype)} is not taken: send FP32 in [0, 1] (or FP16, FP64), or UINT8 from 0 to 255"
        )
    declared = _declared_shape(tensor["shape"], shape, max_batch)
    size = _object(tensor.get("parameters"), "the input's `parameters`").get("binary_data_size")
    if size is None:
        if raw is not None and len(raw):
            raise InvalidInput(f"{len(raw)} bytes follow the JSON, but no input has the parameter 'binary_data_size'")
        if "data" not in tensor:
            raise InvalidInput("the input has no `data` and no binary tensor")
        return torch.from_numpy(from_json_data(tensor["data"], declared, datatype, text))
    if raw is None:
        raise InvalidInput("a binary tensor needs the header Inference-Header-Content-Length: the length of the JSON")
    if "data" in tensor:
        raise InvalidInput("the input has both `data` and the parameter 'binary_data_size': send one of them")
    if type(size) is not int or size != len(raw):
        raise InvalidInput(f"'binary_data_size' is {words(size)}, but {len(raw)} bytes follow the JSON")
    return torch.from_numpy(from_raw(raw, declared, datatype))


def _example(shape: tuple[int, int, int]) -> str:
    return f'"name": "{INPUT}", "datatype": "FP32", "shape": {_right(shape)} and the pixels as "data"'


def _right(shape: tuple[int, int, int]) -> str:
    return f"[N, {shape[0]}, {shape[1]}, {shape[2]}]"


def _declared_shape(declared, shape: tuple[int, int, int], max_batch: int) -> list[int]:
    right = _right(shape)
    whole = isinstance(declared, list) and all(type(size) is int for size in declared)
    if isinstance(declared, list) and not whole:
        raise InvalidInput(f"shape {words(declared)} must hold whole numbers: the model takes {right}")
    if not whole or len(declared) != 4 or tuple(declared[1:]) != shape:
        what = words(declared) if whole else kind(declared)
        hint = ""
        if whole and len(declared) == 4 and declared[1] != shape[0]:
            hint = f"; {words(declared[1])} channels were sent and the model takes {shape[0]}"
        raise InvalidInput(f"shape {what} does not fit the model, which takes {right}{hint}")
    if not 1 <= declared[0] <= max_batch:
        raise InvalidInput(f"a request carries 1 to {max_batch} inputs, not {words(declared[0])}")
    return declared
