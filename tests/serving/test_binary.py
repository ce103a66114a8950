"""The binary tensor extension, by hand and with clients that others wrote."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from redoubt.errors import InvalidInput
from serving import protocol

INFER = "/v2/models/digits/infer"
X = np.linspace(0, 1, 128, dtype=np.float32).reshape(2, 1, 8, 8)
FOREIGN = [Path(entry) for entry in os.environ.get("REDOUBT_CLIENT_PYTHONS", "").split(os.pathsep) if entry]


def message(raw: bytes | None = None, datatype: str = "FP32", *, size=None, **changes) -> tuple[bytes, int]:
    raw = X.tobytes() if raw is None else raw
    tensor = {"name": "input", "shape": [2, 1, 8, 8], "datatype": datatype,
              "parameters": {"binary_data_size": len(raw) if size is None else size}}
    text = json.dumps({"inputs": [tensor | changes.pop("tensor", {})]} | changes).encode()
    return text + raw, len(text)


def decode(body: bytes, length: int | None) -> protocol.InferRequest:
    return protocol.decode(body, (1, 8, 8), max_batch=4, json_length=length)


@pytest.mark.parametrize("datatype, dtype", [("FP32", "<f4"), ("FP16", "<f2"), ("FP64", "<f8"), ("UINT8", "u1")])
def test_raw_pixels_arrive(datatype, dtype):
    sent = (X * 255).astype("u1") if datatype == "UINT8" else X.astype(dtype)
    got = decode(*message(sent.tobytes(), datatype)).x.numpy()
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, sent / np.float32(255) if datatype == "UINT8" else sent, rtol=1e-6)


@pytest.mark.parametrize(
    "body, says",
    [
        (message(X.tobytes()[:-1]), "511 bytes"),
        (message(size=8), "512 bytes follow"),
        (message(size=-1), "512 bytes follow"),
        (message(size="x"), "512 bytes follow"),
        (message(tensor={"data": [0.5] * 128}), "both"),
        (message(tensor={"parameters": {}}), "512 bytes follow the JSON, but no input"),
        (message(tensor={"parameters": 7}), "must be an object"),
        (message(np.full(128, np.nan, "f4").tobytes()), "NaN"),
        (message(np.full(128, 1e300).tobytes(), "FP64"), "from 1e\\+300"),
        (message(np.full(128, -1, "f4").tobytes()), "divide by 255"),
        (message(datatype="BYTES"), "FP32 in"),
        ((message()[0], 10_000), "the body has"),
        ((message()[0], 0), "the body has"),
        ((message()[0], None), "not JSON"),
        ((message()[0][:message()[1]], None), "Inference-Header-Content-Length"),
        (message(parameters={"binary_data_output": 1}), "true or false"),
        (message(parameters={"timeout": -1}), "microseconds"),
        (message(outputs=[{"name": "label", "parameters": {"binary_data": "yes"}}]), "true or false"),
    ],
)
def test_bad_binary_bodies_say_what_would_be_right(body, says):
    with pytest.raises(InvalidInput, match=says):
        decode(*body)


def test_outputs_come_as_they_were_asked_for():
    outputs = {"label": np.array([3, 4]), "probabilities": np.random.rand(2, 10).astype("f4")}
    request = decode(*message(
        outputs=[{"name": "probabilities", "parameters": {"binary_data": True}}, {"name": "label"}], id="a",
    ))
    body, length = protocol.encode(outputs, request, model_name="m", version="1")
    text = json.loads(body[:length])
    assert text["id"] == "a"
    assert text["outputs"][0]["parameters"] == {"binary_data_size": 80}
    assert text["outputs"][1]["data"] == [3, 4]
    np.testing.assert_array_equal(np.frombuffer(body[length:], "<f4").reshape(2, 10), outputs["probabilities"])


@pytest.mark.parametrize(
    "detail, names, score, strength",
    [
        ("exact", 7, 0.8712, 0.1234), ("rounded", 7, 0.9, 0.1), ("verdict", 3, None, None), ("none", 2, None, None),
    ],
)
def test_verdicts_are_only_as_fine_as_the_setting_says(detail, names, score, strength):
    outputs = {
        "label": np.array([3]), "probabilities": np.ones((1, 10), "f4"), "is_adversarial": np.array([True]),
        "instance_score": np.array([0.8712], "f4"), "attack_probability": np.array([0.8712], "f4"),
        "strength": np.array([0.1234], "f4"), "strength_interval": np.array([[0.0, 0.26]], "f4"),
    }
    shown = protocol.visible(outputs, detail)
    assert len(shown) == names
    if score:
        assert shown["instance_score"][0] == shown["attack_probability"][0] == pytest.approx(score)
        assert shown["strength"][0] == pytest.approx(strength)


def test_rounded_values_are_short_in_json_and_the_same_as_raw_bytes():
    values = np.array([0, 0.0312, 0.0704, 0.1, 0.28, 0.3, 0.66, 0.96, 3.3, 27, 3e-5], "f4")
    outputs = {"probabilities": np.full((11, 2), 0.123456, "f4")} | dict.fromkeys(
        ("instance_score", "attack_probability", "strength"), values) | {"strength_interval": np.stack([values] * 2, 1)}
    shown = protocol.visible(outputs, "rounded")
    asked, in_bytes = (decode(*message(parameters={"binary_data_output": binary})) for binary in (False, True))
    text, _ = protocol.encode(shown, asked, model_name="a", version="1")
    found = {output["name"]: output["data"] for output in json.loads(text)["outputs"]}
    tenths = [0, 0, 0.1, 0.1, 0.3, 0.3, 0.7, 1.0, 3.3, 27, 0]
    digits = [0, 0.03, 0.07, 0.1, 0.3, 0.3, 0.7, 1.0, 3, 30, 0.00003]
    assert found["instance_score"] == found["attack_probability"] == tenths
    assert found["strength"] == found["strength_interval"][::2] == digits
    assert found["probabilities"][0] == float(np.float32(0.123456))
    raw, length = protocol.encode(shown, in_bytes, model_name="a", version="1")
    assert len(raw) - length == 4 * 11 * (2 + 3 + 2)
    np.testing.assert_array_equal(np.frombuffer(raw[-88:], "<f4")[::2], np.array(digits, "f4"))


def test_over_http(live, light):
    running = live(light)
    body, length = message(parameters={"binary_data_output": True}, id="seven")
    got = running.client.post(INFER, content=body, headers={"inference-header-content-length": str(length)})
    assert got.status_code == 200
    length = int(got.headers["inference-header-content-length"])
    text = json.loads(got.content[:length])
    assert (text["id"], [output["name"] for output in text["outputs"]]) == ("seven", ["label", "probabilities"])
    plain = running.client.post(INFER, json={"inputs": [
        {"name": "input", "shape": [2, 1, 8, 8], "datatype": "FP32", "data": X.ravel().tolist()}]}).json()
    assert plain["id"]
    assert np.frombuffer(got.content[length:length + 16], "<i8").tolist() == plain["outputs"][0]["data"]
    named = running.client.post("/v2/models/digits/versions/1/infer", content=body,
                                headers={"inference-header-content-length": str(len(body) - 512)})
    assert named.content == got.content
    assert running.client.post("/v2/models/digits/versions/2/infer", content=b"x").status_code == 404


TRITON = """
import sys, numpy as np, tritonclient.http as http
from tritonclient.utils import InferenceServerException
client = http.InferenceServerClient(sys.argv[1])
assert client.is_server_live() and client.is_server_ready() and client.is_model_ready("digits", "1")
assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
card = client.get_model_metadata("digits")
x = np.random.default_rng(0).random((3, 1, 8, 8), dtype=np.float32)
answers = []
for binary in (True, False):
    for wanted in (None, [http.InferRequestedOutput("probabilities", binary_data=binary)]):
        one = http.InferInput("input", list(x.shape), card["inputs"][0]["datatype"])
        one.set_data_from_numpy(x, binary_data=binary)
        got = client.infer("digits", [one], outputs=wanted, request_id="r1", timeout=10_000_000)
        assert got.get_response()["id"] == "r1"
        answers.append(got.as_numpy("probabilities"))
        assert answers[-1].shape == (3, 10)
        if wanted is None:
            assert (got.as_numpy("label") == answers[-1].argmax(1)).all()
assert all(np.allclose(answers[0], answer) for answer in answers)
try:
    client.infer("letters", [one])
except InferenceServerException as error:
    assert "no model 'letters'" in str(error), error
else:
    raise AssertionError("no error")
print("ok")
"""
KSERVE = """
import asyncio, sys, numpy as np
from kserve import InferenceRESTClient, RESTConfig
from kserve.protocol.infer_type import InferInput, InferRequest
async def main(url):
    client = InferenceRESTClient(RESTConfig(protocol="v2", retries=0))
    assert await client.is_server_live(url) and await client.is_server_ready(url)
    assert await client.is_model_ready(url, "digits")
    x = np.random.default_rng(0).random((3, 1, 8, 8), dtype=np.float32)
    answers = []
    for binary in (False, True):
        one = InferInput("input", list(x.shape), "FP32")
        one.set_data_from_numpy(x, binary_data=binary)
        request = InferRequest("digits", [one], request_id="r1", parameters={"binary_data_output": binary})
        got = await client.infer(url, request, model_name="digits")
        outputs = {output.name: output.as_numpy() for output in got.outputs}
        assert got.id == "r1" and outputs["probabilities"].shape == (3, 10)
        answers.append(outputs["probabilities"])
    assert np.allclose(*answers)
asyncio.run(main("http://" + sys.argv[1]))
print("ok")
"""


@pytest.mark.parametrize(
    "module, script", [("tritonclient.http", TRITON), ("kserve", KSERVE)], ids=["triton", "kserve"],
)
def test_a_client_that_others_wrote(live, light, module, script):
    """In a Python of its own, named in REDOUBT_CLIENT_PYTHONS: these clients do not fit into this environment."""
    for python in [Path(sys.executable), *FOREIGN]:
        if subprocess.run([python, "-c", f"import {module}"], capture_output=True).returncode == 0:
            break
    else:
        pytest.skip(f"no {module} here, nor in REDOUBT_CLIENT_PYTHONS")
    url = live(light).client.base_url
    done = subprocess.run(
        [python, "-c", script, f"{url.host}:{url.port}"], capture_output=True, text=True, timeout=60,
        env=os.environ | {"NO_PROXY": "*"},
    )
    assert done.stdout.strip() == "ok", done.stderr
