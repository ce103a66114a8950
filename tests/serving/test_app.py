"""The real app over HTTP: what a client sees, and that bad input is never our fault."""

import json
import socket
import time
from io import BytesIO

import httpx
import numpy as np
import pytest
import torch
from PIL import Image
from serving_support import wait_until

from redoubt.attacks import on_lattice, pgd
from redoubt.threat import ThreatModel

INFER, IMAGE = "/v2/models/digits/infer", "/v2/models/digits/image"


def picture(x: torch.Tensor) -> bytes:
    out = BytesIO()
    Image.fromarray((x[0] * 255).round().byte().numpy()).save(out, "PNG")
    return out.getvalue()


def outputs(response: httpx.Response) -> dict[str, torch.Tensor]:
    assert response.status_code == 200, response.text
    return {
        tensor["name"]: torch.tensor(np.array(tensor["data"]).reshape(tensor["shape"]))
        for tensor in response.json()["outputs"]
    }


def test_health_and_metadata(live, registry):
    client = live(registry).client
    assert client.get("/v2/health/live").json() == {"live": True}
    assert client.get("/v2").json()["name"] == "redoubt"
    for path in ("", "/versions/1"):
        card = client.get(f"/v2/models/digits{path}").json()
        assert card["inputs"] == [{"name": "input", "datatype": "FP32", "shape": [-1, 1, 8, 8]}]
        assert card["outputs"][1] == {"name": "probabilities", "datatype": "FP32", "shape": [-1, 10]}
        assert len(card["outputs"]) == 7
        assert client.get(f"/v2/models/digits{path}/ready").json()["ready"]
    assert client.get("/openapi.json").status_code == 200


def test_answers_are_the_models_own(live, registry, digits, digits_model):
    running = live(registry)
    x, _ = digits.tensors("test", 5)
    answer = outputs(running.infer(x))
    with torch.no_grad():
        expected = digits_model(x).softmax(1)
    torch.testing.assert_close(answer["probabilities"].float(), expected)
    assert (answer["label"] == expected.argmax(1)).all()
    detector = running.server.engine.current.detector
    verdicts = detector.assess(x)
    assert (answer["is_adversarial"] == verdicts.is_adversarial).all()
    torch.testing.assert_close(answer["instance_score"].float(), verdicts.score)
    torch.testing.assert_close(answer["attack_probability"].float(), verdicts.probability)
    torch.testing.assert_close(answer["strength_interval"].float(), torch.stack([verdicts.low, verdicts.high], 1))


@pytest.mark.parametrize("how", ["raw", "multipart"])
def test_a_picture_gets_the_answer_of_its_pixels(live, registry, digits, how):
    running = live(registry)
    x, _ = digits.tensors("test", 1)
    x = (x * 255).round() / 255
    if how == "raw":
        got = running.client.post(IMAGE, content=picture(x[0]), headers={"content-type": "image/png"})
    else:
        got = running.client.post(IMAGE, files={"file": ("a.png", picture(x[0]), "image/png")})
    answer = outputs(running.infer(x))
    flat = got.json()
    assert flat["label"] == answer["label"].item()
    assert flat["class"] == f"digit {flat['label']}"
    assert flat["probabilities"] == pytest.approx(answer["probabilities"][0].tolist())
    assert flat["is_adversarial"] == answer["is_adversarial"].item()
    assert flat["strength_interval"] == pytest.approx(answer["strength_interval"][0].tolist())


def tensor(**changes) -> dict:
    good = {"name": "input", "shape": [1, 1, 8, 8], "datatype": "FP32", "data": [0.5] * 64}
    return {"inputs": [good | changes]}


@pytest.mark.parametrize(
    ("path", "content", "status", "says"),
    [
        (INFER, b"{", 400, "not JSON"),
        (INFER, json.dumps(tensor(shape=[1, 3, 8, 8])), 400, "the model takes 1"),
        (INFER, json.dumps(tensor(data=[float("nan")] * 64)), 400, "NaN"),
        (INFER, json.dumps(tensor(data=[3.5] * 64)), 400, "[0, 1]"),
        (INFER, json.dumps(tensor(datatype="BYTES")), 400, "FP32"),
        (INFER, b" " * 5000, 413, "limit"),
        ("/v2/models/letters/infer", json.dumps(tensor()), 404, "letters"),
        ("/v2/models/letters/image", b"x", 404, "digits"),
        ("/v2/models/digits/nonsense", b"x", 404, "there is nothing at /v2/models/digits/nonsense: /docs"),
        (IMAGE, b"", 400, "empty"),
        (IMAGE, picture(torch.zeros(1, 8, 8))[:-20], 400, "truncated"),
        (IMAGE, picture(torch.zeros(1, 9, 9)), 400, "exactly 8x8"),
        (IMAGE, picture(torch.zeros(1, 33, 8)), 413, "more than 32"),
    ],
    ids=[
        "no-json", "channels", "nan", "range", "datatype", "long-body", "model", "image-model", "path", "no-picture",
        "truncated", "size", "huge",
    ],
)
@pytest.mark.parametrize("chunked", [False, True], ids=["whole", "chunked"])
def test_bad_requests_are_explained(limited, path, content, status, says, chunked):
    content = content.encode() if isinstance(content, str) else content
    body = (content[i : i + 1000] for i in range(0, len(content), 1000)) if chunked else content
    got = limited.client.post(path, content=body)
    assert (got.status_code, list(got.json())) == (status, ["error"])
    assert says in got.json()["error"]
    assert limited.status()["requests"]["failed"] == 0


def test_other_bad_requests(limited):
    client = limited.client
    for got, status in [
        (client.post(IMAGE, files={"wrong": ("a.png", b"x")}), 400),
        (client.post(IMAGE, content=b"x", headers={"content-type": "multipart/form-data"}), 400),
        (client.post(IMAGE, content=b"x", headers={"content-type": "multipart/form-data; boundary=b"}), 400),
        (client.post(INFER, json=tensor(), headers={"inference-header-content-length": "10"}), 400),
        (client.post(INFER, json=tensor(), headers={"inference-header-content-length": "-1"}), 400),
        (client.post(INFER, json=tensor(), headers={"content-encoding": "gzip"}), 415),
        (client.get(INFER), 405),
        (client.get("/v2/models/digits/versions/9"), 404),
        (client.get("/v2/models/letters/ready"), 404),
    ]:
        assert (got.status_code, list(got.json())) == (status, ["error"]), got.text


FEEDBACK = "/v2/models/digits/feedback"
_JSON, _FORM = {"content-type": "application/json"}, {"content-type": "application/x-www-form-urlencoded"}


@pytest.mark.parametrize(
    ("path", "content", "headers", "says"),
    [
        (FEEDBACK, "{}", _JSON, "feedback: field required"),
        (FEEDBACK, '{"feedback": [{"request_id": "a"}]}', _JSON, "feedback[0].labels: field required"),
        (FEEDBACK, '{"feedback": [{"request_id": "a", "labels": [1, null, "b"]}]}', _JSON,
         "feedback[0].labels[2]: should be a valid integer"),
        (FEEDBACK, '{"feedback": [{"request_id": "a", "labels": [70000], "label": 1}]}', _JSON,
         "feedback[0].labels[0]: should be less than 65536; feedback[0].label: there is no such field"),
        (FEEDBACK, json.dumps({"feedback": [{"request_id": "a", "labels": ["b"] * 9}]}), _JSON, "and 4 more"),
        (FEEDBACK, json.dumps({"x" * 900: 1, "feedback": []}), _JSON, f"{'x' * 60}: there is no such field"),
        (FEEDBACK, '{"feedback": []}', {}, "the header `Content-Type: application/json` is missing"),
        (FEEDBACK, '{"feedback": []}', _FORM, "'application/x-www-form-urlencoded': send `application/json`"),
        (FEEDBACK, "", _JSON, "the body is missing: send a JSON object"),
        (FEEDBACK, "[]", _JSON, "the body must be a JSON object"),
        (FEEDBACK, '{"feedback"', _JSON, "the body is not JSON: Expecting ':' delimiter (character 11)"),
        ("/operations/pause", '{"way": "x"}', _JSON, "way: there is no such field"),
        ("/operations/acknowledge", "{}", _JSON, "campaign: field required"),
        ("/operations/acknowledge", '{"campaign": 3}', _JSON, "campaign: should be a valid string"),
    ],
)
def test_a_wrong_field_is_named_by_its_path(limited, path, content, headers, says):
    got = limited.client.post(path, content=content, headers=headers)
    assert got.status_code == 400
    assert says in got.json()["error"]
    assert len(got.text) < 500


@pytest.mark.parametrize(
    "content",
    [
        json.dumps(tensor(data=["x" * 1000] + [0.5] * 63)),
        json.dumps(tensor(data=[10**400] + [0.5] * 63)),
        json.dumps(tensor(shape=[10**400, 1, 8, 8])),
        json.dumps(tensor() | {"outputs": [{"name": {}}]}),
        json.dumps(tensor() | {"id": "\ud800"}),
        json.dumps(tensor() | {"inputs": [{"name": "\ud800"}]}),
        '{"inputs": ' + "[" * 3000,
        '{"inputs": ' * 300 + "0" + "}" * 300,
        json.dumps(tensor()).replace("[0.5", "[" * 60 + "0.5"),
        '{"inputs": [{"name": "input", "shape": [1, 1, 8, 8], "datatype": "FP32", "data": [' + "9" * 3500 + "]}]}",
        b"\xff\xfe",
    ],
)
def test_no_body_is_our_fault(limited, content):
    began = time.monotonic()
    got = limited.client.post(INFER, content=content)
    assert (got.status_code, list(got.json())) == (400, ["error"]), got.text
    assert time.monotonic() - began < 2
    assert limited.status()["requests"]["failed"] == 0


@pytest.mark.parametrize(
    ("method", "path", "says"),
    [
        ("GET", INFER, "/v2/models/digits/infer does not take GET: it takes POST"),
        ("DELETE", "/status", "/status does not take DELETE: it takes GET"),
        ("PUT", FEEDBACK, "/v2/models/digits/feedback does not take PUT: it takes POST"),
    ],
)
def test_another_method_is_told_the_right_one(limited, method, path, says):
    got = limited.client.request(method, path)
    assert got.status_code == 405
    assert says in got.json()["error"]
    assert got.headers["allow"] in says


def test_too_little_time_is_not_called_a_queue(limited):
    got = limited.client.post(INFER, json=tensor() | {"parameters": {"timeout": 1}})
    assert got.status_code == 429
    assert "shorter than an answer takes" in got.json()["error"]


@pytest.mark.parametrize(
    ("error", "status", "says"),
    [(MemoryError(), 413, "fewer inputs"), (RecursionError(), 400, "deeply"), (OverflowError(), 400, "too large")],
)
def test_a_request_that_is_too_much_is_refused(limited, monkeypatch, error, status, says):
    def too_much(*_, **__):
        raise error

    with monkeypatch.context() as patched:
        patched.setattr("serving.protocol.decode", too_much)
        got = limited.client.post(INFER, json=tensor())
    assert (got.status_code, list(got.json())) == (status, ["error"])
    assert says in got.json()["error"]
    assert limited.status()["requests"]["failed"] == 0


def test_a_client_that_goes_away_is_no_failure(limited, caplog):
    total = limited.status()["requests"]["total"]
    with socket.create_connection((limited.client.base_url.host, limited.client.base_url.port)) as connection:
        connection.sendall(b"POST /v2/models/digits/infer HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{")
        time.sleep(0.05)
    wait_until(lambda: limited.status()["requests"]["total"] == total + 1)
    assert limited.status()["requests"]["failed"] == 0
    assert "failed" not in caplog.text


def test_a_fault_of_ours_says_no_more_than_that(live, registry, monkeypatch):
    running = live(registry)
    monkeypatch.setattr("serving.protocol.encode", lambda *_, **__: 1 / 0)
    got = running.infer(torch.zeros(1, 1, 8, 8))
    assert (got.status_code, got.json()) == (500, {"error": "internal error"})
    assert running.status()["requests"] == {"total": 1, "failed": 1}


def test_a_detector_that_raises_does_not_stop_predictions(live, registry, monkeypatch):
    running = live(registry)
    detector = running.server.engine.current.detector
    with monkeypatch.context() as patched:
        patched.setattr(detector, "assess", lambda *_: 1 / 0)
        assert set(outputs(running.infer(torch.zeros(2, 1, 8, 8)))) == {"label", "probabilities"}
        assert "ZeroDivisionError" in running.status()["problem"]
    assert "is_adversarial" in outputs(running.infer(torch.zeros(2, 1, 8, 8)))
    assert running.status()["problem"] is None


def test_a_version_without_detector_serves_and_says_so(live, registry, plain):
    registry.folders[1] = plain
    running = live(registry)
    assert set(outputs(running.infer(torch.zeros(2, 1, 8, 8)))) == {"label", "probabilities"}
    status = running.status()
    assert status["monitor"] is None
    assert "attacks go unseen" in status["problem"]
    assert len(running.client.get("/v2/models/digits").json()["outputs"]) == 2


def test_a_large_batch_is_one_answer(live, registry):
    running = live(registry)
    got = outputs(running.infer(torch.rand(300, 1, 8, 8)))
    assert got["label"].shape == (300,)
    assert got["strength_interval"].shape == (300, 2)
    assert running.infer(torch.zeros(513, 1, 8, 8)).status_code == 400


def test_clean_pictures_five_times_over_raise_no_alarm(live, registry, digits):
    running = live(registry)
    x, _ = digits.tensors("test")
    for _ in range(5):
        for part in x.split(100):
            assert running.infer(part).status_code == 200
    status = running.status()
    assert status["campaigns"] == status["retrains"] == []
    assert status["monitor"]["distinct"] == len(x.unique(dim=0))
    assert status["monitor"]["statistic"] < status["monitor"]["threshold"]


def test_the_whole_way_from_attack_to_new_champion(live, registry, digits, digits_model, defended):
    """Real traffic, detector, monitor, matching and child process; only the training is a script."""
    registry.folders[2] = defended
    running = live(registry)
    home = running.server.settings.home
    (home / "plan.txt").write_text("failed slow")
    x, y = digits.tensors("test")
    x_adv = on_lattice(pgd(digits_model, x, y, ThreatModel("Linf", 0.15), steps=10, alpha=0.03), 16)
    assert running.infer(x[:50]).status_code == 200
    for part in x_adv.split(20):
        assert running.infer(part).status_code == 200
    retrain = wait_until(lambda: running.status()["retrains"], what="the request")[0]
    assert retrain["norm"] == "Linf"
    wait_until(lambda: running.status()["retrains"][0]["step"] == "train", what="the step")
    wait_until(lambda: running.status()["retrains"][0]["state"] == "promoted", what="the result")
    registry.number = 2
    wait_until(lambda: running.status()["champion"]["version"] == "2", what="the swap")
    status = running.status()
    campaign = status["campaigns"][0]
    assert (campaign["state"], campaign["outcome"], campaign["model_version"]) == ("closed", "answered", "1")
    assert campaign["strength"]["low"] < 0.15 < campaign["strength"]["high"]
    assert campaign["matched"] == status["retrains"][0]["epsilon"] >= campaign["strength"]["high"] * 0.999
    assert status["retrains"][0]["attempts"] == 1
    assert [swap["version"] for swap in status["swaps"]] == ["1", "2"]
    assert status["requests"]["failed"] == 0
    # the attacker goes on: found covered, no further run
    shifted = (x_adv.roll(1, -1) * 16).round() / 16
    for part in torch.cat([x_adv, shifted]).split(50):
        assert running.infer(part).status_code == 200
    status = running.status()
    assert [row["outcome"] for row in status["campaigns"]] == ["covered", "answered"]
    assert len(status["retrains"]) == 1
    assert len((home / "runs.txt").read_text().splitlines()) == 2
