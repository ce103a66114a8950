"""Feedback, the policy for flagged inputs, and the quarantine."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from serving_support import bearer, keyed, wait_until

from redoubt.errors import InvalidInput
from serving.feedback import Feedback
from serving.quarantine import Quarantine

FEEDBACK = "/v2/models/digits/feedback"


def version(folder, key: str = "1", accuracy: float | None = 0.9, low: float = 0.88):
    if accuracy is not None:
        (folder / "report.json").write_text(json.dumps({"clean_accuracy": accuracy, "clean_low": low}))
    return SimpleNamespace(key=key, bundle=SimpleNamespace(folder=folder, classes=list("abcdefghij")))


@pytest.fixture
def feedback(tmp_path):
    made = Feedback(1000)
    made.on_model(version(tmp_path))
    return made


def label(feedback, loaded, n: int, wrong: int) -> None:
    for i in range(n):
        feedback.remember((f"r{i}",), "ann", loaded, np.array([3]))
        assert feedback.take(f"r{i}", [4 if i * 37 % 100 < wrong else 3]) == "counted"


def test_accuracy_as_recorded_is_no_loss(feedback):
    label(feedback, feedback._loaded, 3000, 10)
    status = feedback.status()
    assert status["accuracy"] == pytest.approx(0.9)
    assert (status["lost"], status["finding"]) == (False, None)


def test_accuracy_that_fell_is_noticed_and_named_by_what_goes_on(feedback):
    label(feedback, feedback._loaded, 600, 35)
    assert feedback.status(campaign=True)["finding"] == "attack"
    assert feedback.status(campaign=False)["finding"] == "shift"


def test_each_answer_is_labelled_once_and_by_its_shape(feedback):
    feedback.remember(("a",), "ann", feedback._loaded, np.array([1, 2, 3]))
    for labels, says in (([1], "3 inputs"), ([1, 2, 10], "0 to 9"), ([1, 2, -1], "0 to 9")):
        with pytest.raises(InvalidInput, match=says):
            feedback.take("a", labels)
    assert feedback.take("a", [1, None, 4]) == "counted"
    assert feedback.take("a", [1, 2, 3]) == "unknown"
    assert (feedback.status()["labels"], feedback.status()["wrong"]) == (2, 1)


def test_an_id_that_two_clients_used_is_nobodys(feedback):
    feedback.remember(("a",), "ann", feedback._loaded, np.array([1]))
    feedback.remember(("a",), "eve", feedback._loaded, np.array([2]))
    feedback.remember(("a",), "ann", feedback._loaded, np.array([1]))
    assert feedback.take("a", [1]) == "unknown"


def test_an_id_that_one_client_used_twice_names_the_newest(feedback):
    feedback.remember(("a", "r1"), "ann", feedback._loaded, np.array([1]))
    feedback.remember(("a", "r2"), "ann", feedback._loaded, np.array([2, 3]))
    assert feedback.take("a", [2, 3]) == "counted"
    assert feedback.take("r2", [2, 3]) == "unknown"   # the same request: it counts once
    assert feedback.take("r1", [1]) == "counted"
    assert (feedback._held, len(feedback._answers)) == (0, 0)


def test_nobody_labels_anothers_request_by_its_id(feedback):
    """Whether eve uses ann's own id or the one that the server made for it, before or after her."""
    feedback.remember(("made", "mine"), "ann", feedback._loaded, np.array([1]))
    feedback.remember(("e1", "mine"), "eve", feedback._loaded, np.array([2]))
    feedback.remember(("e2", "made"), "eve", feedback._loaded, np.array([2]))
    assert feedback.take("mine", [2]) == feedback.take("made", [2]) == "unknown"
    assert feedback.take("e1", [2]) == feedback.take("e2", [2]) == "counted"


def test_an_id_of_the_body_is_its_clients_and_labellers(feedback):
    for i, (name, by, says) in enumerate([
        ("1", "eve", "unknown"), ("1", "ann", "counted"), ("1", None, "counted"), ("made", "eve", "counted"),
        ("9" * 500, "eve", "unknown"), ("9" * 500, "ann", "counted"),
    ]):
        feedback.on_model(feedback._loaded)
        feedback.remember(("made", "1", "9" * 500), "ann", feedback._loaded, np.array([i]))
        assert feedback.take(name, [i], by) == says


def test_one_key_cannot_guess_anothers_request(live, light, settings):
    home = settings().home
    home.mkdir()
    keys = keyed(home, ann="predict feedback", eve="predict feedback", labeller="feedback")
    running = live(light, keys_file=home / "keys.json")
    tensor = {"name": "input", "shape": [1, 1, 8, 8], "datatype": "FP32", "data": [0.5] * 64}
    body = {"feedback": [{"request_id": "1", "labels": [1]}]}
    for name, counted in (("eve", 0), ("ann", 1), ("labeller", 1)):
        asked = {"id": "1", "inputs": [tensor]}
        running.client.post("/v2/models/digits/infer", json=asked, headers=bearer(keys["ann"]))
        running.server.engine.batcher.settle()
        got = running.client.post(FEEDBACK, json=body, headers=bearer(keys[name])).json()
        assert (got["counted"], got["unknown"]) == (counted, 1 - counted)


def test_requests_with_two_names_take_no_more_room(feedback):
    for i in range(1500):
        feedback.remember((f"r{i}", f"{i}" + "é" * 500), "ann", feedback._loaded, np.array([1]))
    assert (feedback._held, len(feedback._answers)) == (1000, 2000)
    assert max(map(len, feedback._answers)) <= 128
    assert feedback.take("r499", [1]) == feedback.take("499" + "é" * 500, [1]) == "unknown"
    assert feedback.take("500" + "é" * 500, [1]) == "counted"


def test_answers_of_another_version_and_old_ones_do_not_count(feedback, tmp_path):
    feedback.remember(("a",), "ann", feedback._loaded, np.array([1]))
    feedback.on_model(version(tmp_path, key="2"))
    assert feedback.take("a", [1]) == "stale"
    for i in range(1500):
        feedback.remember((f"r{i}",), "ann", feedback._loaded, np.array([1]))
    assert feedback.take("r0", [1]) == "unknown"
    assert feedback.take("r1499", [1]) == "counted"


@pytest.mark.parametrize("report", [None, "{", '{"clean_accuracy": 90, "clean_low": 88}', '{"clean_accuracy": 0.3}'])
def test_without_a_usable_record_labels_are_only_counted(tmp_path, report):
    if report is not None:
        (tmp_path / "report.json").write_text(report)
    feedback = Feedback(10)
    loaded = version(tmp_path, accuracy=None)
    feedback.on_model(loaded)
    label(feedback, loaded, 50, 100)
    assert (feedback.status()["accuracy"], feedback.status()["lost"]) == (0.0, False)


def test_labels_over_http(live, light):
    running = live(light)
    got = running.infer(torch.zeros(2, 1, 8, 8))
    body = {"feedback": [{"request_id": got.json()["id"], "labels": [1, None]}, {"request_id": "x", "labels": [1]}]}
    assert running.client.post(FEEDBACK, json=body).json() == {"counted": 1, "unknown": 1, "stale": 0}
    assert running.status()["feedback"]["labels"] == 1
    for bad in ({}, {"feedback": []}, {"feedback": [{"request_id": "x", "labels": ["a"]}]}, [], "x"):
        refused = running.client.post(FEEDBACK, json=bad)
        assert (refused.status_code, list(refused.json())) == (400, ["error"])


@pytest.mark.parametrize("sent", ["mine-7", "süß, 7\r\nx: y", "7" * 512, ""])
@pytest.mark.parametrize("by", ["id", "header"])
def test_a_request_is_found_under_the_id_that_its_client_chose(live, light, sent, by):
    running = live(light)
    tensor = {"name": "input", "shape": [1, 1, 8, 8], "datatype": "FP32", "data": [0.5] * 64}
    got = running.client.post("/v2/models/digits/infer", json={"id": sent, "inputs": [tensor]},
                              headers={"x-request-id": "trace-1"})
    assert (got.json()["id"], got.headers["x-request-id"]) == (sent or "trace-1", "trace-1")
    running.status()   # returns once the answer is remembered, which may be after it went out
    names = [got.json()["id"], got.headers["x-request-id"]]
    for name, counted in zip(names if by == "id" else reversed(names), (1, 0), strict=True):
        answer = running.client.post(FEEDBACK, json={"feedback": [{"request_id": name, "labels": [1]}]}).json()
        assert (answer["counted"], answer["unknown"]) == (counted, 1 - counted)


def test_the_documented_requests_get_the_documented_answers(live, registry):
    page = (Path(__file__).resolve().parents[2] / "docs" / "serving.md").read_text()
    running = live(registry, verdict_detail="rounded")
    for path, headers in (("infer", {}), ("feedback", {"content-type": "application/json"})):
        example = rf"curl localhost:8080(/v2/models/digits/{path}) .*?-d '(.*?)'\n\n    (.*?)\n\n"
        found = re.search(example, page, re.DOTALL)
        got = running.client.post(found[1], content=found[2], headers=headers)
        assert without_chance(got.json()) == without_chance(json.loads(found[3]))
        running.status()   # returns once the answer is remembered, which may be after it went out


def without_chance(answer: dict) -> dict:
    """The answer with the probability of an attack, which moves in its last digits with the processor that
    fitted the detector, as no more than the side of one half that it is on."""
    for output in answer.get("outputs", ()):
        if output["name"] == "attack_probability":
            assert all(0 <= value == round(value, 1) <= 1 for value in output["data"])
            output["data"] = [value >= 0.5 for value in output["data"]]
    return answer


def flag(running, monkeypatch, rows: list[int]) -> None:
    """The detector flags these rows of every request."""
    detector = running.server.engine.current.detector
    assess = detector.assess

    def flagged(*given):
        verdicts = assess(*given)
        verdicts.is_adversarial.zero_()[rows] = True
        return verdicts

    monkeypatch.setattr(detector, "assess", flagged)


@pytest.mark.parametrize("policy, status, outputs", [("flag", 200, 7), ("block", 403, 0), ("shadow", 200, 2)])
def test_the_policy_decides_what_a_flagged_input_gets(live, registry, monkeypatch, policy, status, outputs):
    running = live(registry, policy=policy)
    flag(running, monkeypatch, [1])
    got = running.infer(torch.rand(2, 1, 8, 8))
    assert got.status_code == status
    if outputs:
        assert len(got.json()["outputs"]) == outputs
    else:
        assert "[1]" in got.json()["error"]
    assert len(running.client.get("/v2/models/digits").json()["outputs"]) == (2 if policy == "shadow" else 7)
    assert running.status()["monitor"]["flagged"] == 1   # counted all the same


def test_what_was_flagged_is_kept_for_people(live, registry, monkeypatch):
    running = live(registry, quarantine=True)
    flag(running, monkeypatch, [0])
    running.infer(torch.full((2, 1, 8, 8), 0.2))
    entry, = wait_until(lambda: running.client.get("/quarantine").json(), what="the entry")
    assert (entry["version"], entry["client"]) == ("1", "127.0.0.1")
    picture = running.client.get(f"/quarantine/{entry['id']}")
    assert picture.headers["content-type"] == "image/png"
    assert running.client.get("/quarantine/..%2f..%2fkeys").status_code == 404
    assert (running.server.settings.home / "quarantine").stat().st_mode & 0o077 == 0


@pytest.fixture
def ring(tmp_path):
    made, counts, faults, now = [], [], [], [1e9]

    def make(**changes):
        values = {"most": 5, "most_bytes": 10**6, "seconds": 100, "count": counts.append, "fault": faults.append,
                  "clock": lambda: now[0], **changes}
        made.append(Quarantine(tmp_path / "ring", **values))
        made[-1].start()
        return made[-1]

    yield SimpleNamespace(make=make, counts=counts, faults=faults, now=now, folder=tmp_path / "ring")
    for one in made:
        one.stop()


def fill(ring, kept, n: int) -> None:
    for i in range(n):
        done = len(ring.counts)
        ring.now[0] += 1
        kept.put(np.full((1, 8, 8), i / 10, np.float32), number=i)
        wait_until(lambda: len(ring.counts) > done)   # noqa: B023 - it is called before the next round


def test_the_ring_is_bounded_by_number_bytes_and_age(ring):
    kept = ring.make()
    fill(ring, kept, 8)
    assert [entry["number"] for entry in kept.entries()] == [7, 6, 5, 4, 3]
    kept.stop()
    smaller = ring.make(most_bytes=600)   # taken over by a new start
    fill(ring, smaller, 1)
    wait_until(lambda: len(list(ring.folder.glob("*.npy"))) < 5)
    assert sum(file.stat().st_size for file in ring.folder.iterdir()) <= 600
    ring.now[0] += 200
    fill(ring, smaller, 1)
    wait_until(lambda: len(smaller.entries()) == 1)
    np.testing.assert_array_equal(smaller.pixels(smaller.entries()[0]["id"]), np.zeros((1, 8, 8), np.uint8))


def test_a_disk_that_fails_is_said_and_costs_nothing_else(ring, monkeypatch):
    kept = ring.make()
    with monkeypatch.context() as patched:
        def full(*_, **__):
            raise OSError(28, "No space left on device")

        patched.setattr("serving.quarantine.np.save", full)
        fill(ring, kept, 1)
    assert ring.counts == ["dropped"]
    assert "No space" in ring.faults[-1]
    assert list(ring.folder.iterdir()) == []
    fill(ring, kept, 1)
    assert (ring.counts[-1], ring.faults[-1]) == ("kept", None)
