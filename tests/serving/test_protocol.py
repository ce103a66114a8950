import json

import numpy as np
import pytest
import torch

from redoubt.errors import InvalidInput
from serving import protocol

SHAPE = (1, 8, 8)


def body(**changes) -> bytes:
    tensor = {"name": "input", "shape": [2, 1, 8, 8], "datatype": "FP32", "data": [0.5] * 128}
    message = {"inputs": [tensor | changes.pop("tensor", {})]} | changes
    return json.dumps(message).encode()


def decode(raw: bytes):
    return protocol.decode(raw, SHAPE, max_batch=4)


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("datatype", ["FP32", "UINT8"])
def test_pixels_arrive_exactly(nested, datatype):
    pixels = np.random.default_rng(0).integers(0, 256, (2, 1, 8, 8))
    sent = pixels if datatype == "UINT8" else (pixels / np.float32(255)).astype(np.float32)
    data = sent.tolist() if nested else sent.flatten().tolist()
    request = decode(body(tensor={"data": data, "datatype": datatype}, id="seven"))
    assert request.id == "seven"
    assert request.x.dtype == torch.float32
    np.testing.assert_array_equal(request.x.numpy(), pixels.astype(np.float32) / np.float32(255))


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[]", "JSON object"),
        (b"{}", "`inputs`"),
        (body(inputs=[]), "one tensor"),
        (body(inputs=[1]), "one tensor"),
        (body(id=7), "`id`"),
        (body(outputs="label"), "`outputs`"),
        (body(outputs=[{"name": "colour"}]), "probabilities"),
        (body(tensor={"name": "x"}), "its input is 'input'"),
        (body(tensor={"datatype": "INT64"}), "FP32 in"),
        (body(tensor={"datatype": None}), "FP32 in"),
        (body(tensor={"shape": [2, 3, 8, 8]}), "3 channels were sent and the model takes 1"),
        (body(tensor={"shape": [2, 64]}), r"\[N, 1, 8, 8\]"),
        (body(tensor={"shape": [2, 1, 28, 28]}), r"\[N, 1, 8, 8\]"),
        (body(tensor={"shape": "2"}), r"\[N, 1, 8, 8\]"),
        (body(tensor={"shape": [2.0, 1, 8, 8]}), r"\[N, 1, 8, 8\]"),
        (body(tensor={"shape": [0, 1, 8, 8], "data": []}), "1 to 4 inputs, not 0"),
        (body(tensor={"shape": [5, 1, 8, 8]}), "1 to 4 inputs, not 5"),
        (body(tensor={"data": [0.5] * 127}), "127 numbers"),
        (body(tensor={"data": [[0.5] * 64] * 2}), r"nested as \[2, 64\]"),
        (body(tensor={"data": [[0.5], [0.5, 0.5]]}), "ragged"),
        (body(tensor={"data": "0.5"}), "list of numbers"),
        (body(tensor={"data": ["0.5"] * 128}), "not a number"),
        (body(tensor={"data": [None] * 128}), "not a number"),
        (body(tensor={"data": [True] * 128}), "not a number"),
        (body(tensor={"data": [10**400] + [0] * 127}), "NaN or infinity|not a number"),
        (body(tensor={"data": [float("nan")] + [0.0] * 127}), "NaN"),
        (body(tensor={"data": [float("inf")] + [0.0] * 127}), "NaN or infinity"),
        (body(tensor={"data": [-0.1] + [0.0] * 127}), "divide by 255"),
        (body(tensor={"data": [255.0] + [0.0] * 127}), "divide by 255"),
        (body(tensor={"datatype": "UINT8"}), "whole numbers"),
        (body(tensor={"datatype": "UINT8", "data": [256] + [0] * 127}), "whole numbers"),
        (body(tensor={"datatype": "UINT8", "data": [-1] + [0] * 127}), "whole numbers"),
    ],
)
def test_bad_bodies_say_what_would_be_right(raw, says):
    with pytest.raises(InvalidInput, match=says):
        decode(raw)


def test_missing_data_is_named():
    message = json.loads(body())
    del message["inputs"][0]["data"]
    with pytest.raises(InvalidInput, match="no `data`"):
        decode(json.dumps(message).encode())


def test_only_wanted_outputs_are_returned():
    request = decode(body(outputs=[{"name": "label"}]))
    tensors = {"label": torch.tensor([3, 4]), "probabilities": torch.rand(2, 10)}
    answer = protocol.encode(tensors, request, model_name="m", version="1")
    assert answer["outputs"] == [{"name": "label", "datatype": "INT64", "shape": [2], "data": [3, 4]}]
