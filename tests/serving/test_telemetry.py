"""Metrics, history, logs, traces and events: what others are told, and that telling costs nothing else."""

import hashlib
import hmac
import json
import logging
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import torch
from prometheus_client.parser import text_string_to_metric_families
from pydantic import SecretStr
from serving_support import wait_until

from serving.telemetry.events import Differences, Webhook
from serving.telemetry.logs import _Json
from serving.telemetry.traces import Traces


def samples(running) -> dict:
    """Values by name and labels, without the label `model`, which every sample has."""
    families = text_string_to_metric_families(running.client.get("/metrics").text)
    found = [sample for family in families for sample in family.samples]
    assert {sample.labels.pop("model") for sample in found} == {"digits"}
    return {(sample.name, *sample.labels.values()): sample.value for sample in found}


def test_metrics_say_what_happened(live, light):
    running = live(light)
    for _ in range(3):
        running.infer(torch.zeros(2, 1, 8, 8))
    running.client.post("/v2/models/digits/infer", content=b"{")
    found = samples(running)
    assert found["redoubt_requests_total", "400"] == 1
    assert found["redoubt_requests_total", "200"] >= 3
    assert found["redoubt_request_seconds_count",] == 4
    assert found["redoubt_batch_size_sum",] == 6
    assert found["redoubt_verdicts_total", "none"] == 6
    assert found["redoubt_champion_info", "0", "1"] == 1
    assert found["redoubt_fault", "detector"] == 1   # this version has none
    assert found["redoubt_queue_depth",] == found["redoubt_campaign_active",] == 0
    assert found["redoubt_swap_seconds_count",] == 1


def test_probes_are_no_requests(live, light):
    """A pod that waits for a model, or drains, refuses its probes: an alert on failing requests must not hear of it."""
    running = live(light)
    running.server.draining = True
    for path in ("/v2/health/ready", "/v2/health/live"):
        assert running.client.get(path).status_code in (200, 503)
    running.client.get("/nowhere")
    counted = {labels[0] for name, *labels in samples(running) if name == "redoubt_requests_total"}
    assert counted == {"404"}


def test_metrics_of_verdicts(live, registry):
    running = live(registry)
    running.infer(torch.rand(20, 1, 8, 8, generator=torch.Generator().manual_seed(0)))
    status, found = running.status()["monitor"], samples(running)
    assert found.get(("redoubt_verdicts_total", "adversarial"), 0) == status["flagged"]
    assert found.get(("redoubt_strength_count",), 0) == status["flagged"]
    assert found["redoubt_monitor_threshold",] == pytest.approx(status["threshold"])
    assert found["redoubt_monitor_statistic",] == pytest.approx(status["statistic"])


def test_history_over_http(live, light):
    running = live(light)
    wait_until(lambda: running.client.get("/history").json()["seconds"], what="the first row")


def test_a_log_line_is_one_json_object():
    record = logging.LogRecord("redoubt.serving", logging.WARNING, "x", 1, "two\nlines %s", ("rdb_00ff_secret",), None)
    row = json.loads(_Json().format(record))
    assert (row["level"], row["message"]) == ("warning", "two\nlines ***")


def test_a_span_continues_the_callers_trace(live, light):
    pytest.importorskip("opentelemetry.sdk")
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter = InMemorySpanExporter()
    running = live(light)
    running.server.traces = Traces(True, exporter)
    trace = "0af7651916cd43dd8448eb211c80319c"
    running.client.get("/v2", headers={"traceparent": f"00-{trace}-b7ad6b7169203331-01"})
    span, = wait_until(lambda: running.server.traces.flush() and exporter.get_finished_spans(), what="the span")
    assert format(span.context.trace_id, "032x") == trace
    assert span.attributes["http.response.status_code"] == 200


def row(identity: str, state: str, **more) -> dict:
    return {"id": identity, "state": state, **more}


def test_differences_tell_each_change_once():
    seen = Differences()
    assert seen.look([row("c1", "open")], [], [{"at": 1}]) == []   # from before this start
    events = seen.look([row("c2", "open"), row("c1", "closed")], [row("r1", "pending")], [{"at": 1}, {"at": 2}])
    assert sorted(kind for kind, _ in events) == ["alarm", "campaign.closed", "champion", "retrain.pending"]
    assert seen.look([row("c2", "open"), row("c1", "closed")], [row("r1", "running")], [{"at": 2}]) == [
        ("retrain.running", row("r1", "running"))
    ]


class Receiver:
    """A webhook's other end: answers with the codes given, the last one for ever."""

    def __init__(self, *codes: int):
        self.codes, self.got = list(codes), []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["content-length"]))
                receiver.got.append((dict(self.headers), body))
                code = receiver.codes.pop(0) if len(receiver.codes) > 1 else receiver.codes[0]
                self.send_response(code)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_):
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/hook"


@pytest.fixture
def webhook():
    made = []

    def make(*codes: int, **changes):
        receiver, counts = Receiver(*codes), []
        values = {"source": "redoubt/digits", "capacity": 3, "count": counts.append, "first_wait": 0.01, **changes}
        hook = Webhook(changes.pop("url", receiver.url), SecretStr("hush"), **values)
        made.append((receiver, hook))
        return hook, receiver, counts

    yield make
    for receiver, hook in made:
        hook.stop()
        receiver.server.shutdown()
        receiver.server.server_close()


def test_an_event_is_signed_and_tried_again(webhook):
    hook, receiver, counts = webhook(503, 500, 204)
    hook.start()
    hook.send("alarm", {"id": "c1"})
    wait_until(lambda: counts == ["delivered"])
    assert len(receiver.got) == 3
    headers, body = receiver.got[-1]
    event = json.loads(body)
    assert (event["specversion"], event["type"], event["data"]) == ("1.0", "redoubt.alarm", {"id": "c1"})
    stamp, signature = (part.split("=")[1] for part in headers["x-redoubt-signature"].split(","))
    expected = hmac.new(b"hush", f"{stamp}.".encode() + body, hashlib.sha256).hexdigest()
    assert hmac.compare_digest(signature, expected)
    assert hook.fault is None


def test_an_event_that_is_refused_is_given_up_and_said(webhook):
    hook, receiver, counts = webhook(403)
    hook.start()
    hook.send("alarm", {})
    wait_until(lambda: counts == ["failed"])
    assert len(receiver.got) == 1
    assert hook.fault == "the webhook answers 403"


def test_what_waits_is_bounded_and_drops_are_counted(webhook):
    hook, receiver, counts = webhook(204)
    for number in range(5):
        hook.send("alarm", {"number": number})
    assert counts == ["dropped", "dropped"]
    hook.start()
    wait_until(lambda: counts.count("delivered") == 3)
    assert [json.loads(body)["data"]["number"] for _, body in receiver.got] == [2, 3, 4]


def test_the_server_sends_what_matters(live, light, untrained, webhook):
    _, receiver, _ = webhook(204)
    light.folders[2] = untrained
    running = live(light, webhook_url=receiver.url, webhook_secret="hush")
    time.sleep(1.2)   # its first look
    light.number = 2
    wanted = ("redoubt.champion", "2")
    wait_until(lambda: wanted in [(e["type"], e["data"].get("version")) for _, body in receiver.got
                                  for e in [json.loads(body)]], what="the event")
    assert "hush" not in running.client.get("/status").text
