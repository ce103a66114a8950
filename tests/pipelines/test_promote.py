"""What people do to the champion by command: the gate runs, or its record is taken, and everything is written down."""

import json
import re
import threading
import time
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest

from components.gate.step import LOWERED
from components.gate.step import run as gate
from pipelines import champion, deescalate
from pipelines.champion import holds, promote_version, roll_back
from pipelines.deescalate import Quiet, all_clear, lower, parameters, read_status
from redoubt.bundle import write_bundle
from redoubt.errors import InvalidInput, Overtaken, Refused
from redoubt.promotion.policy import Policy
from redoubt.registry import Registry
from redoubt.threat import ThreatModel, load_threats

THREAT = ThreatModel("Linf", 0.1)


@pytest.fixture
def register(registry, digits, tmp_path):
    """A function (model, threats=()) -> a registered version of the digits."""
    def make(model, threats=(), **tags):
        bundle = write_bundle(
            tmp_path / f"b{time.time_ns()}", model, classes=digits.classes, threats=threats,
            objective="pgd" if threats else "standard",
            parameters={"architecture": "compact-cnn", "objective": "pgd" if threats else "standard", "norm": "Linf",
                        "epsilon": threats[0].epsilon if threats else 0.1, "seed": 0},
            data={"dataset": "digits", "checksum": digits.checksum, "request": digits.metadata["request"] or {
                "dataset": "digits", "data_dir": "", "image_size": 0, "limit": 0, "split_seed": 0}})
        return registry.register(bundle, metrics={}, parameters={}, tags={"cause": "manual", **tags})

    return make


def test_the_gate_judges_before_a_person_promotes(registry, register, digits_model, robust_digits_model, capsys):
    register(digits_model)
    promote_version(registry, "1", "", Policy())
    assert (registry.champion().number, registry.version(1).standing) == (1, "promoted")
    register(robust_digits_model, [THREAT])
    promote_version(registry, "challenger", "", Policy())
    assert registry.champion().number == 2
    register(digits_model)
    with pytest.raises(Refused, match="threat models that it was trained for is nothing"):
        promote_version(registry, "3", "", Policy())
    assert registry.champion().number == 2
    promote_version(registry, "3", "it must be quick", Policy())
    assert registry.champion().number == 3
    version = registry.version(3)
    assert (version.standing, version.override["reason"], version.passed) == ("overridden", "it must be quick", False)
    assert "@" in version.override["by"]
    assert [change.how for change in registry.history()] == ["gate", "gate", "override"]
    promote_version(registry, "3", "", Policy())
    assert "version 3 is champion already" in capsys.readouterr().out
    roll_back(registry, "enough")
    shown = capsys.readouterr().out
    assert "version 2 is champion again\na further rollback goes to version 1" in shown
    with pytest.raises(Refused, match="threat models that it was trained for is nothing"):
        promote_version(registry, "1", "", Policy())
    assert registry.version(1).standing == "refused"
    roll_back(registry, "it was the first, whatever the gate says of it beside the second")
    assert (registry.champion().number, registry.champion().sanctioned) == (1, True)


def test_a_record_that_holds_is_taken_and_another_is_made_anew(registry, register, digits, digits_model, monkeypatch):
    version = register(digits_model)
    gate(digits.folder, model_name="m", tracking_uri=registry.tracking_uri, version=1, objective="standard",
         norm="Linf", epsilon=0.1, policy="promotion: ask")
    assert holds(registry.version(1), None, Policy()), "whether to ask is not what the gate measured by"
    assert not holds(registry.version(1), None, Policy(level=0.01))
    assert not holds(registry.version(1), version, Policy())
    monkeypatch.setattr(champion, "judge_here", lambda *_: pytest.fail("it was measured again"))
    promote_version(registry, "1", "", Policy(promotion="ask"))
    assert (registry.champion().number, registry.version(1).standing) == (1, "promoted")


def test_a_version_that_cannot_be_judged_here_needs_a_reason(registry, digits_model, tmp_path):
    bundle = write_bundle(tmp_path / "b", digits_model, classes=list("0123456789"), threats=())
    registry.register(bundle, metrics={}, parameters={}, tags={})
    with pytest.raises(Refused, match="cannot do so here: its manifest does not say 'data'"):
        promote_version(registry, "1", "", Policy())
    (weights,) = tmp_path.glob("artifacts/*/artifacts/bundle/model.safetensors")
    weights.write_bytes(b"")
    with pytest.raises(Refused, match=r"whatever the reason: .*sha256"):
        promote_version(registry, "1", "I insist", Policy())
    assert registry.champion() is None


def test_of_two_people_one_is_told(registry, register, digits_model, monkeypatch):
    register(digits_model), register(digits_model)

    def meanwhile(*_):
        registry.promote(registry.version(2), override="I was first", by="bob@there")
        return SimpleNamespace(passed=True)

    monkeypatch.setattr(champion, "judge_here", meanwhile)
    registry.tag(registry.version(1), decision='{"passed": true, "champion": 9, "reason": ""}')
    with pytest.raises(Overtaken, match=r"version 2 became champion at .*bob@there.* judged against no version"):
        promote_version(registry, "1", "", Policy())
    assert registry.champion().number == 2


# -- deescalate -----------------------------------------------------------------------------------------------------

QUIET = Quiet(url="http://127.0.0.1:9", days=7, inputs=1000)


@pytest.fixture
def defended(registry, register, robust_digits_model):
    registry.promote(register(robust_digits_model, [THREAT]), override="a test")
    return registry.champion()


def status(**changes):
    return {"champion": {"name": "m", "version": "1"}, "monitor": {"distinct": 5000}, "campaigns": [], **changes}


def campaign(days_ago, **changes):
    return {"id": "c1", "state": "closed", "outcome": "covered", "closed_at": time.time() - days_ago * 86400, **changes}


def test_half_of_what_is_covered_unless_said_otherwise(defended):
    assert lower(defended, "") == ThreatModel("Linf", 0.05)
    assert lower(defended, "0.08") == ThreatModel("Linf", 0.08)
    for epsilon, message in (("0.1", "must be below the champion's Linf 0.1"), ("0.001", "below the smallest")):
        with pytest.raises(InvalidInput, match=message):
            lower(defended, epsilon)


@pytest.mark.parametrize("said, message", [
    (status(), "0.0 days ago"),
    (status(champion={"name": "m", "version": "7"}), "serves m version 7, not the champion m version 1"),
    (status(champion=None), "serves None"),
    (status(campaigns=[campaign(0, state="open", closed_at=None)]), "still open"),
], ids=["just promoted", "another version", "nothing served", "under attack"])
def test_it_is_not_proposed_before_all_has_been_clear_for_long(registry, defended, said, message):
    with pytest.raises(Refused, match=message):
        all_clear(said, registry, defended, QUIET)


def test_after_a_long_all_clear_it_is_proposed(registry, defended, monkeypatch, capsys, tmp_path):
    later = time.time() + 20 * 86400
    monkeypatch.setattr(deescalate.time, "time", lambda: later)
    days, inputs = all_clear(status(campaigns=[campaign(9.5)]), registry, defended, QUIET)
    assert (round(days, 1), inputs) == (9.5, 5000)
    shift = all_clear(status(campaigns=[campaign(1, outcome="shift")]), registry, defended, QUIET)
    assert round(shift[0]) == 20, "a shift is no attack"
    with pytest.raises(Refused, match=r"5\.0 days ago"):
        all_clear(status(campaigns=[campaign(5)]), registry, defended, QUIET)
    with pytest.raises(Refused, match="watched 10 distinct inputs"):
        all_clear(status(monitor={"distinct": 10}), registry, defended, QUIET)
    monkeypatch.setattr(deescalate, "read_status", lambda quiet, name: status())
    assert deescalate.propose(registry, QUIET, epsilon="", start=False, policy=None, home=None) == 0
    assert "redoubt deescalate m --epsilon 0.05 --yes" in capsys.readouterr().out
    asked = parameters(registry, defended, ThreatModel("Linf", 0.05), tmp_path, "")
    assert (asked.epsilon, asked.cause, asked.parent, load_threats(asked.also)) == (0.05, LOWERED, 1, ())
    assert json.loads(asked.plugins) == {}


def test_a_champion_set_by_hand_has_no_known_beginning(registry, register, defended, robust_digits_model, monkeypatch):
    """Its quiet time would be counted from the promotion of the version before it."""
    by_hand = register(robust_digits_model, [THREAT])
    with registry._mlflow("set an alias by hand") as client:
        client.set_registered_model_alias("m", "champion", str(by_hand.number))
    later = time.time() + 20 * 86400
    monkeypatch.setattr(deescalate.time, "time", lambda: later)
    said = status(champion={"name": "m", "version": "2"})
    with pytest.raises(Refused, match=r"since when version 2 is champion: .* by hand, .* ends with version 1"):
        all_clear(said, registry, registry.champion(), QUIET)
    monkeypatch.setattr(Registry, "history", lambda self: [])
    with pytest.raises(Refused, match="ends with nothing"):
        all_clear(said, registry, registry.champion(), QUIET)


@pytest.mark.parametrize("place", ["/status", "/models/m/status"], ids=["one model", "several"])
def test_a_server_of_several_models_is_asked_about_this_one(place):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            body = json.dumps(status()).encode() if self.path == place else b"{}"
            self.send_response(200 if self.path == place else 404)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        quiet = replace(QUIET, url=f"http://127.0.0.1:{server.server_port}/")
        assert read_status(quiet, "m") == status()
        if place != "/status":
            with pytest.raises(InvalidInput, match="404"):
                read_status(quiet, "other")
        server.shutdown()


def test_a_version_that_waited_does_not_wait_in_the_history(registry, register, digits, digits_model, capsys):
    register(digits_model)
    gate(digits.folder, model_name="m", tracking_uri=registry.tracking_uri, version=1, objective="standard",
         norm="Linf", epsilon=0.1, seed=0, policy=Policy(promotion="ask"))
    assert registry.version(1).verdict == "waiting"
    promote_version(registry, "1", "", Policy(promotion="ask"))
    assert registry.history()[0].why == "every rule passed"


def test_without_a_server_nobody_knows(registry):
    for url in (QUIET.url, "nonsense", "ftp://host", "http://[::1", "http://no host"):
        with pytest.raises(InvalidInput, match=f"^{re.escape(url)} does not say what it saw") as caught:
            read_status(replace(QUIET, url=url), "m")
        assert "\n" not in str(caught.value)
    with pytest.raises(InvalidInput, match="there is no champion"):
        deescalate.propose(registry, QUIET, epsilon="", start=False, policy=None, home=None)
