"""The quick way through JSON says what the plain way says, and is taken for what clients usually send."""

from __future__ import annotations

import json
from random import Random

import numpy as np
import pytest

from redoubt.errors import InvalidInput
from serving import protocol
from serving.protocol import quick, request

SHAPE = (1, 2, 3)


def body(data, *, datatype: str = "FP32", n: int = 2, **more) -> bytes:
    tensor = {"name": "input", "shape": [n, *SHAPE], "datatype": datatype, "data": data}
    return json.dumps({"inputs": [tensor]} | more).encode()


def outcome(raw: bytes):
    """What comes of a body: the pixels and what is wanted, or the error's text."""
    try:
        got = protocol.decode(raw, SHAPE, max_batch=4)
    except InvalidInput as error:
        return str(error)
    return got.x.tolist(), got.id, got.outputs, got.binary, got.timeout


def read(raw: bytes):
    return quick.read(raw, raw.count(b"["))


def numbers_of(raw: bytes, datatype: str = "FP32"):
    return read(raw)["inputs"][0]["data"].values([2, *SHAPE], whole=datatype == "UINT8")


FLAT = [i / 12 for i in range(12)]
NESTED = np.reshape(FLAT, (2, *SHAPE)).tolist()
WHOLE = list(range(0, 240, 20))


@pytest.mark.parametrize("data", [FLAT, NESTED, [0, 1] * 6, [0.5] * 11 + [1]])
def test_flat_and_nested_numbers_take_the_quick_way(data):
    np.testing.assert_array_equal(numbers_of(body(data)), np.array(data, dtype=float).flatten())
    np.testing.assert_array_equal(numbers_of(body(data, outputs=[{"name": "label"}], id="a")),
                                  np.array(data, dtype=float).flatten())


def test_bytes_take_the_quick_way():
    assert numbers_of(body(WHOLE, datatype="UINT8"), "UINT8").tolist() == WHOLE


@pytest.mark.parametrize("data", [
    FLAT[:-1], [*FLAT, 1], [*FLAT[:-1], [1]], [FLAT[:6], FLAT[6:]], [[[FLAT[:3], FLAT[3:]]], [[FLAT[:2], FLAT[2:6]]]],
    [*FLAT[:-1], True], [*FLAT[:-1], None], [*FLAT[:-1], "1"], [], [[]], np.reshape(FLAT, (2, 1, 3, 2)).tolist(),
])
def test_what_is_out_of_the_ordinary_does_not(data):
    assert numbers_of(body(data)) is None


def test_data_are_counted_before_an_array_is_made():
    class Data(list):
        def as_buffer(self, of_type):
            raise AssertionError("it was made")

    assert quick.Numbers(Data([0.5] * 1000), 1).values([2, *SHAPE], whole=False) is None


@pytest.mark.parametrize("raw", [
    b'{"id": "a", "id": "b", "inputs": [{"name": "input", "data": [1]}]}',
    b'{"inputs": [{"name": "input", "data": [1], "data": [2]}]}',
    b'{"inputs": [{"name": "input", "data": [NaN]}]}', b'{"inputs": [{"data": [1]}, {"data": [2]}]}',
    b'{"inputs": {"data": [1]}}', b'{"inputs": [{"data": 1}]}', b'{"inputs": [[1]]}', b"[]", b"", b'"x"', b"\xff\xfe",
    b'{"inputs": [{"data": [123456789012345678901234567890]}]}', b'\xef\xbb\xbf{"inputs": [{"data": [1]}]}',
])
def test_messages_that_are_left_to_the_plain_reader(raw):
    assert read(raw) is None


@pytest.mark.parametrize("where", ["message", "tensor"])
def test_many_keys_are_left_to_the_plain_reader(where):
    """simdjson finds a key by going through all of them: a mebibyte of keys took ten seconds."""
    more = {str(number): 0 for number in range(20)}
    tensor = {"data": [1]} | (more if where == "tensor" else {})
    assert read(json.dumps({"inputs": [tensor]} | (more if where == "message" else {})).encode()) is None


@pytest.mark.parametrize("where", ["id", "parameters", "outputs", "name", "shape", "datatype"])
def test_deep_nesting_is_a_fault_of_the_body(where):
    """Naming a wrong value goes down into it, and Python goes no deeper than a thousand calls."""
    deep = '{"a":' * 900 + "1" + "}" * 900 if where == "parameters" else "[" * 900 + "]" * 900
    message = {"inputs": [{"name": "input", "shape": [2, *SHAPE], "datatype": "FP32", "data": FLAT}]}
    (message if where in ("id", "parameters", "outputs") else message["inputs"][0])[where] = "DEEP"
    assert "recursion limit" in outcome(json.dumps(message).replace('"DEEP"', deep).encode())


@pytest.mark.parametrize("seed", range(60))
def test_both_ways_agree(seed, monkeypatch):
    random = Random(seed)
    strange = [True, None, "1", [], [1], {}, -1, 2, 1e39, 1e400, 10**30, 255, 256, float("nan"), 0.1 + 0.2, "["]
    sent = []
    for _ in range(20):
        data = random.choice([list(FLAT), list(WHOLE), json.loads(json.dumps(NESTED)), [0] * 12])
        if random.random() < 0.7:
            place = data if random.random() < 0.5 or not isinstance(data[0], list) else random.choice(data)[0][0]
            place[random.randrange(len(place))] = random.choice(strange)
        usual = ["a", [{"name": "label"}], {"timeout": 5}, {"binary_data_output": True}]
        more = {key: random.choice([*strange, *usual])
                for key in ("id", "outputs", "parameters") if random.random() < 0.3}
        datatype, n = random.choice(["FP32", "FP64", "UINT8"]), random.choice([2, 2, 2, 1])
        sent.append(body(data, datatype=datatype, n=n, **more))
    now = [outcome(raw) for raw in sent]
    assert any(read(raw) for raw in sent)
    monkeypatch.setattr(request, "read", lambda text, brackets: None)
    assert repr(now) == repr([outcome(raw) for raw in sent])
