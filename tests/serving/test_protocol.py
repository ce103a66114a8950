import json
import time
import tracemalloc
from random import Random

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


def lacking(key: str) -> bytes:
    message = json.loads(body())
    del message["inputs"][0][key]
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
        (b"[" * 100_000, "more parts"),
        (b"[" * 2_000_000, "more parts"),
        (b'{"inputs": [{"data": [' + b"[]," * 100_000 + b"[]]}]}", "more parts"),
        (b"[" * 2_000, "not JSON"),
        (b"[]", "JSON object"),
        (b"{}", "`inputs`"),
        (body(inputs=[]), "one tensor"),
        (body(inputs=[1]), "one tensor"),
        (body(id=7), "`id`"),
        (body(outputs="label"), "`outputs`"),
        (body(outputs=[{"name": "colour"}]), "probabilities"),
        (body(outputs=[{"name": []}]), "`outputs`"),
        (body(outputs=[{"name": "label"}] * 2), "at most once"),
        (body(outputs=[{"name": "label"}] * 2_000), "at most once"),
        (body(tensor={"name": "x"}), "its input is 'input'"),
        (body(tensor={"datatype": "INT64"}), "FP32 in"),
        (body(tensor={"datatype": None}), "FP32 in"),
        (body(tensor={"shape": [2, 3, 8, 8]}), "3 channels were sent and the model takes 1"),
        (body(tensor={"shape": [2, 64]}), r"\[N, 1, 8, 8\]"),
        (body(tensor={"shape": [2, 1, 28, 28]}), r"\[N, 1, 8, 8\]"),
        (body(tensor={"shape": "2"}), r"\[N, 1, 8, 8\]"),
        (body(tensor={"shape": [2.0, 1, 8, 8]}), r"shape \[2.0, 1, 8, 8\] must hold whole numbers: .*\[N, 1, 8, 8\]"),
        (body(tensor={"shape": [True, 1, 8, 8]}), r"\[True, 1, 8, 8\] must hold whole numbers"),
        (body(inputs=[{}]), "the input has no `name` and no `datatype` and no `shape`: send"),
        (lacking("name"), 'the input has no `name`: send "name": "input"'),
        (lacking("datatype"), "the input has no `datatype`: send"),
        (lacking("shape"), r"the input has no `shape`: send .*\[N, 1, 8, 8\]"),
        (body(outputs=[{"name": "label"}, {"name": "colour"}]), "not 'colour', each at most once"),
        (body(parameters={"timeout": 0}), "whole number of microseconds above 0, not 0"),
        (body(tensor={"datatype": "UINT8", "data": [3] * 127 + [256]}), "from 0 to 255, not 256"),
        (body(tensor={"datatype": "UINT8", "data": [3] * 127 + [-1]}), "from 0 to 255, not -1"),
        (body(tensor={"datatype": "UINT8", "data": [3] * 127 + [0.5]}), "from 0 to 255, not 0.5"),
        (body(tensor={"shape": [0, 1, 8, 8], "data": []}), "1 to 4 inputs, not 0"),
        (body(tensor={"shape": [5, 1, 8, 8]}), "1 to 4 inputs, not 5"),
        (body(tensor={"data": [0.5] * 127}), "127 numbers"),
        (body(tensor={"data": [[0.5] * 64] * 2}), r"nested as \[2, 64\]"),
        (body(tensor={"data": [[0.5], [0.5, 0.5]]}), "ragged"),
        (body(tensor={"data": [[[[[0.5]]]]]}), "and deeper"),
        (body(tensor={"data": [[]] * 2}), r"nested as \[2, 0\]"),
        (body(tensor={"data": [[0.5]] * 129}), r"nested as \[129\] and deeper"),
        (body(tensor={"data": [[0.5] * 64, 0.5]}), "ragged"),
        (body(tensor={"data": [0.5, [0.5] * 64]}), "2 numbers"),
        (body(tensor={"data": "0.5"}), "list of numbers"),
        (body(tensor={"data": ["0.5"] * 128}), "not a number"),
        (body(tensor={"data": [None] * 128}), "not a number"),
        (body(tensor={"data": [True] * 128}), "not a number"),
        (body(tensor={"data": [0.5] * 127 + [True]}), "not a number"),
        (body(tensor={"data": [0.5] * 127 + ["0.5"]}), "not a number"),
        (body(tensor={"data": [0.5] * 127 + [[0.5]]}), "not a number"),
        (body(tensor={"datatype": "UINT8", "data": [1] * 127 + [False]}), "not a number"),
        (body(tensor={"datatype": "UINT8", "data": [1] * 127 + [1.0]}), "whole numbers"),
        (body(tensor={"datatype": "UINT8", "data": [1] * 127 + [10**400]}), "whole numbers"),
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
    tensors = {"label": np.array([3, 4]), "probabilities": np.random.rand(2, 10)}
    text, json_length = protocol.encode(tensors, request, model_name="m", version="1")
    answer = json.loads(text)
    assert json_length is None
    assert answer["outputs"] == [{"name": "label", "datatype": "INT64", "shape": [2], "data": [3, 4]}]


@pytest.mark.parametrize(
    "changes",
    [
        {"data": ["x" * 100_000] + [0.5] * 127},
        {"data": [[["x" * 100_000, *[""] * 7]] * 8] * 2},
        {"data": [0.5] * 50_000},
        {"data": [[0.5] * 50_000] * 2},
        {"data": [[]] * 50_000},
        {"shape": [7] * 50_000},
        {"shape": [10**4000, 1, 8, 8]},
        {"datatype": ["x" * 100_000] * 3},
        {"name": {"x": "y" * 100_000}},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_small_body_never_becomes_a_large_array_nor_a_long_answer(changes):
    raw = body(tensor=changes)
    with pytest.raises(InvalidInput) as refused:
        decode(raw)   # imports and caches are made
    assert len(str(refused.value)) < 500
    tracemalloc.start()
    try:
        with pytest.raises(InvalidInput):
            decode(raw)
        assert tracemalloc.get_traced_memory()[1] < 20 * len(raw) + 100_000
    finally:
        tracemalloc.stop()


def some_json(random: Random, depth: int = 0):
    """A JSON value of any kind; now and then a huge number, long text, or lists in lists."""
    kind = random.randrange(10 if depth < 4 else 6)
    if kind >= 6:
        parts = [some_json(random, depth + 1) for _ in range(random.choice((0, 1, 2, 4, 8)))]
        return parts if kind < 9 else {random.choice(("name", "x", "data")): part for part in parts}
    return (
        random.choice((0, 1, -1, 255, 256, 2**53, 2**63, 2**64, -(2**70), 10**400)),
        random.choice((0.0, 0.5, 1.0, -0.0, 1e308, float("nan"), float("-inf"))),
        random.choice(("", "FP32", "UINT8", "input", "label", "\ud800", "x" * 3000)),
        True, None, random.random(),
    )[kind]


@pytest.mark.parametrize("seed", range(4))
def test_whatever_json_comes_is_taken_or_refused_with_a_sentence(seed):
    random, began = Random(seed), time.monotonic()
    for _ in range(500):
        changes = {key: some_json(random) for key in ("data", "shape", "datatype", "name") if random.random() < 0.4}
        if "data" in changes and random.random() < 0.5:   # of the right length, so that its values are looked at
            changes["data"] = [0] * 126 + [changes["data"], some_json(random, 4)]
        message = {key: some_json(random) for key in ("id", "outputs", "inputs") if random.random() < 0.05}
        try:
            request = decode(body(tensor=changes, **message))
        except InvalidInput as error:
            assert 0 < len(str(error).encode()) < 500
        else:
            assert 0 <= request.x.min() <= request.x.max() <= 1
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("digits", [4_000, 5_000, 1_000_000])
def test_a_number_of_many_digits_costs_nothing(digits):
    began = time.monotonic()
    for field in (b'"data": [', b'"shape": ['):
        raw = body().replace(field, field + b"9" * digits + b", ")
        with pytest.raises(InvalidInput):
            decode(raw)
    assert time.monotonic() - began < 2
