"""Several models in one server: each by its name, and none in another's way."""

import asyncio
import json

import httpx
import pytest
import torch
from browser import CHROMIUM, Browser
from prometheus_client.parser import text_string_to_metric_families
from serving_support import FolderRegistry, wait_until

from redoubt.attacks import on_lattice, pgd
from redoubt.errors import InvalidInput
from redoubt.threat import ThreatModel
from serving.__main__ import main
from serving.home import take_home
from serving.per_model import OF_A_MODEL, OF_THE_PROCESS, per_model
from serving.problems import HomeUnusable
from serving.security import KeyStore, new_key
from serving.settings import Settings, load_settings
from serving.several import create_several


@pytest.fixture
def plain_pair(untrained) -> dict[str, FolderRegistry]:
    """Registries of two models that only answer."""
    return {name: FolderRegistry({1: untrained}, 1) for name in ("mnist", "traffic")}


@pytest.fixture
def watched_pair(undefended, defended) -> dict[str, FolderRegistry]:
    """Registries of two models with detectors, and a version 2 of each."""
    return {name: FolderRegistry({1: undefended, 2: defended}, 1) for name in ("mnist", "traffic")}


def outputs(answer: httpx.Response) -> dict:
    assert answer.status_code == 200, answer.text
    return {tensor["name"]: tensor["data"] for tensor in answer.json()["outputs"]}


def test_each_answers_by_name_and_by_its_own_policy(several, watched_pair, digits):
    live = several(watched_pair, {"traffic": {"policy": "block"}})
    x = digits.tensors("test")[0][:40]
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).sign()
    noisy = (x + 0.3 * noise).clamp(0, 1)
    got = live.infer(noisy, "mnist")
    assert any(outputs(got)["is_adversarial"]) and got.json()["model_name"] == "mnist"
    refused = live.infer(noisy, "traffic")
    assert refused.status_code == 403 and "looks adversarial" in refused.json()["error"]
    for name in ("mnist", "traffic"):
        assert live.client.get(f"/v2/models/{name}").json()["name"] == name
        assert live.client.get(f"/v2/models/{name}/versions/1/ready").json() == {"name": name, "ready": True}


def test_an_attack_on_one_is_the_others_no_matter(several, watched_pair, digits, digits_model):
    live = several(watched_pair)
    home = live.server.settings.home
    for name in watched_pair:
        (home / name / "plan.txt").write_text("slow")
    x, y = digits.tensors("test")
    x_adv = on_lattice(pgd(digits_model, x, y, ThreatModel("Linf", 0.15), steps=10, alpha=0.03), 16)
    assert live.infer(x[:20], "mnist").status_code == 200
    for part in x_adv.split(50):
        assert live.infer(part, "traffic").status_code == 200

    def status(name: str) -> dict:
        return live.client.get(f"/models/{name}/status").json()

    wait_until(lambda: [run["state"] for run in status("traffic")["retrains"]] == ["promoted"], what="the run")
    watched_pair["traffic"].number = 2
    wait_until(lambda: status("traffic")["champion"]["version"] == "2", what="the swap")
    attacked, calm = status("traffic"), status("mnist")
    assert [row["outcome"] for row in attacked["campaigns"]] == ["answered"]
    assert (calm["champion"]["name"], calm["champion"]["version"]) == ("mnist", "1")
    assert calm["campaigns"] == calm["retrains"] == []
    assert (calm["monitor"]["inputs"], calm["requests"]["total"]) == (20, 1)
    # homes apart
    assert (home / "traffic" / "runs.txt").exists() and not (home / "mnist" / "runs.txt").exists()
    for name in watched_pair:
        assert (home / name / "ledger.db").exists() and (home / name / "models" / name).is_dir()
    assert not (home / "ledger.db").exists()


def test_ready_when_all_are(several, plain_pair):
    plain_pair["traffic"].number = None
    live = several(plain_pair, ready=False)
    client = live.client
    wait_until(lambda: client.get("/v2/models/mnist/ready").status_code == 200, what="the first model")
    assert client.get("/v2/models/traffic/ready").status_code == 503
    wait_until(lambda: "no champion" in client.get("/v2/health/ready").text, what="the reason")
    got = client.get("/v2/health/ready")
    assert got.status_code == 503 and got.json()["error"].startswith("not ready: traffic (")
    assert client.get("/v2/health/live").json() == {"live": True}
    assert client.get("/models/mnist/v2/health/ready").status_code == 200
    page = client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert "<td>ready" in page.text and "no champion" in page.text and "<script" not in page.text
    plain_pair["traffic"].number = 1
    wait_until(lambda: client.get("/v2/health/ready").status_code == 200, what="readiness")
    assert client.get("/v2/health/ready").json() == {"ready": True}
    live.server.draining = True
    assert "mnist (the server is shutting down), traffic (the" in client.get("/v2/health/ready").text
    assert client.get("/models/mnist/v2/health/ready").status_code == 503


def test_metrics_of_all_in_one_answer(several, plain_pair):
    live = several(plain_pair)
    for name, times in (("mnist", 1), ("traffic", 3)):
        for _ in range(times):
            live.infer(torch.zeros(2, 1, 8, 8), name)
    live.client.post("/v2/models/nobody/infer", content=b"{}")
    text = live.client.get("/metrics").text
    families = list(text_string_to_metric_families(text))
    assert len({family.name for family in families}) == len(families)   # Prometheus takes no family twice
    found = {(sample.name, *sorted(sample.labels.items())): sample.value for one in families for sample in one.samples}
    for name, times in (("mnist", 1), ("traffic", 3)):
        assert found["redoubt_request_seconds_count", ("model", name)] == times
        assert found["redoubt_verdicts_total", ("model", name), ("verdict", "none")] == 2 * times
        assert found["redoubt_ready", ("model", name)] == 1
    assert found["redoubt_requests_total", ("code", "404")] == 1   # that of no model
    nobodys = {sample.name for one in families for sample in one.samples if "model" not in sample.labels}
    assert nobodys == {"redoubt_requests_total", "redoubt_requests_created"}


def test_a_models_own_paths_below_its_name(several, plain_pair):
    live = several(plain_pair)
    client = live.client
    moved = client.get("/models/mnist")
    assert (moved.status_code, moved.headers["location"]) == (307, "mnist/")
    page = client.get("/models/mnist", follow_redirects=True)
    assert page.url.path == "/models/mnist/" and "<title>Redoubt</title>" in page.text
    for path in ("live/page.js", "live/page.css", "live/icon.svg", "ui/docs.css", "docs", "history", "metrics"):
        assert client.get(f"/models/mnist/{path}").status_code == 200, path
    assert 'href="ui/docs.css"' in client.get("/models/mnist/docs").text
    assert client.get("/models/mnist/openapi.json").json()["servers"] == [{"url": "/models/mnist"}]
    with client.stream("GET", "/models/traffic/live/events") as feed:
        lines = feed.iter_lines()
        assert next(lines) == "event: history"
        frame = next(line for line in lines if line.startswith("data: ") and "champion" in line)
    assert json.loads(frame[6:])["champion"]["name"] == "traffic"
    for path in ("status/", "models/mnist/status", "v2/models/traffic", "nothing"):
        assert client.get(f"/models/mnist/{path}").status_code == 404, path


def test_operators_act_on_one_alone(several, plain_pair):
    live = several(plain_pair)
    client = live.client
    assert client.post("/models/mnist/operations/pause", json={"why": "a look"}).status_code == 200
    paused = {name: client.get(f"/models/{name}/status").json()["operations"]["paused"] for name in plain_pair}
    assert paused["mnist"]["why"] == "a look" and paused["traffic"] is None
    assert client.get("/models/mnist/audit").json()[0]["action"] == "POST /models/mnist/operations/pause"
    assert client.get("/models/traffic/audit").json() == []
    assert client.post("/operations/pause", json={}).status_code == 404


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_a_browser_goes_from_the_links_to_a_live_page(several, plain_pair, tmp_path):
    live = several(plain_pair)
    with Browser(tmp_path / "profile") as browser:
        browser.open(str(live.client.base_url))
        assert browser.wait("document.querySelectorAll('td a').length") == 2
        browser.open(f"{live.client.base_url}/models/traffic/".replace("//models", "/models"))
        browser.wait("document.getElementById('model').textContent === 'traffic v1'")
        assert not browser.faults


@pytest.mark.parametrize(
    ("method", "path", "says"),
    [
        ("POST", "/v2/models/nobody/infer", "no model 'nobody' here: this server has mnist, traffic"),
        ("POST", "/v2/models/nobody/feedback", "has mnist, traffic"),
        ("GET", "/v2/models/nobody", "has mnist, traffic"),
        ("GET", "/models/nobody/status", "has mnist, traffic"),
        ("GET", "/models/nobody", "has mnist, traffic"),
        ("GET", "/status", "/v2/models/NAME or /models/NAME/, NAME being one of mnist, traffic"),
        ("GET", "/models/mnist/models/mnist/status", "nothing at /models/mnist/models/mnist/status"),
        ("DELETE", "/no/such/thing", "nothing at /no/such/thing"),
    ],
)
def test_what_is_nowhere_is_told_the_way(several, plain_pair, method, path, says):
    live = several(plain_pair, ready=False)
    large = b" " * 2**21 if path.endswith("infer") else b""   # the size is not what is wrong with it
    got = live.client.request(method, path, content=large, headers={"x-request-id": "mine"})
    assert (got.status_code, list(got.json())) == (404, ["error"]), got.text
    assert says in got.json()["error"]
    assert (got.headers["x-request-id"], got.headers["x-content-type-options"]) == ("mine", "nosniff")
    assert "default-src 'none'" in got.headers["content-security-policy"]


def test_one_door_for_all(several, plain_pair, tmp_path):
    store, tokens = KeyStore(tmp_path / "home" / "keys.json"), {}
    for name in ("predict", "read"):
        tokens[name], entry = new_key(name, (name,), rate=0.01 if name == "predict" else None)
        store.add(entry)
    client = several(plain_pair).client

    def code(path: str, name: str = "") -> int:
        return client.get(path, headers={"x-api-key": tokens[name]} if name else {}).status_code

    for path in ("/", "/v2/health/ready", "/v2/health/live", "/ui/docs.css", "/models/mnist", "/models/mnist/",
                 "/models/mnist/live/page.js"):
        assert code(path) in (200, 307), path
    for path in ("/metrics", "/status", "/v2", "/v2/models/mnist", "/v2/models/nobody", "/models/mnist/status"):
        assert code(path) == 401, path
    assert code("/metrics", "read") == code("/models/traffic/status", "read") == 200
    assert code("/metrics", "predict") == 403
    assert code("/models/mnist/v2/models/mnist", "read") == 403   # the way in changes nothing about the role
    # two at once are this key's due, whichever model it asks
    assert [code(f"/v2/models/{name}", "predict") for name in ("mnist", "traffic")] == [200, 429]


# -- settings ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("models", "arguments", "says"),
    [
        ('{"a/b": {}}', [], "a letter or digit first"),
        ('{"a": {"port": 1}}', [], "REDOUBT_MODELS: a: 'port' belongs to the whole server: a model may set acc"),
        ('{"a": {}, "b": {"polcy": "x"}}', [], "REDOUBT_MODELS: b: 'polcy' is no setting: a model may set acc"),
        ('{"a": {"policy": "x"}}', [], "REDOUBT_MODELS: a: policy='x': Input should be 'flag', 'block' or 'shadow'"),
        ('{"a": {"campaign_min_inputs": 9999}}', [], "REDOUBT_MODELS: a: campaign_min_inputs is above"),
        ('{"a": 3}', [], "REDOUBT_MODELS: a: Input should be a valid dictionary"),
        ("[1]", [], "REDOUBT_MODELS: Input should be a valid dictionary"),
        ("a, b", [], "REDOUBT_MODELS: write a JSON object such as"),
        ('{"a": {"webhook_secret": "hush"}', [], "REDOUBT_MODELS: write a JSON object such as"),
        ("{}", ["--models", "a, b"], "REDOUBT_MODELS"),
        ('{"a": {}}', ["--ledger", "kubernetes", "--no-retrain"], "one Deployment a model"),
    ],
)
def test_bad_settings_are_said_in_one_line(monkeypatch, tmp_path, capsys, models, arguments, says):
    monkeypatch.setenv("REDOUBT_MODELS", models)
    assert main(["--port", "0", "--home", str(tmp_path), *arguments]) == 2
    said = capsys.readouterr().err
    assert says in said and said.count("\n") == 1 and said.startswith("serving: ")
    assert "hush" not in said


def test_a_models_settings_are_the_servers_but_for_its_own(monkeypatch, tmp_path):
    monkeypatch.setenv("REDOUBT_HOME", str(tmp_path))
    monkeypatch.setenv("REDOUBT_POLICY", "block")
    monkeypatch.setenv("REDOUBT_WEBHOOK_SECRET", "hush")
    monkeypatch.setenv("REDOUBT_MODELS", '{"mnist": {}, "traffic": {"policy": "shadow", "workers": 2}}')
    whole = load_settings(["--batch-inputs", "32"])
    each = per_model(whole)
    assert [(own.model_name, own.policy, own.workers) for own in each.values()] == [
        ("mnist", "block", 1), ("traffic", "shadow", 2)
    ]
    for name, own in each.items():
        assert own.home == tmp_path / name and own.models == {} and own.batch_inputs == 32
        assert own.tracking_uri == whole.tracking_uri == f"sqlite:///{tmp_path}/mlflow.db"
        assert own.webhook_secret.get_secret_value() == "hush"
    assert load_settings(["--models", '{"a": {"policy": "flag"}}']).models == {"a": {"policy": "flag"}}


def test_every_setting_has_its_place():
    assert Settings.model_fields.keys() >= OF_THE_PROCESS
    assert {"policy", "tracking_uri", "retrain", "device"} <= set(OF_A_MODEL)


# -- beginning and end ------------------------------------------------------------------------------------------


def free(*homes) -> None:
    for home in homes:
        take_home(home).close()


def test_a_home_that_cannot_be_used_lets_go_of_the_others(settings, plain_pair):
    chosen = settings(models={"mnist": {}, "traffic": {}})
    chosen.home.mkdir()
    (chosen.home / "traffic").write_text("")
    with pytest.raises(HomeUnusable, match="traffic"):
        create_several(chosen, registries=plain_pair)
    free(chosen.home, chosen.home / "mnist")


def test_nothing_is_taken_for_settings_that_are_wrong(settings):
    chosen = settings(models={"mnist": {"port": 1}})
    with pytest.raises(InvalidInput):
        create_several(chosen)
    assert not chosen.home.exists()


def test_one_that_fails_to_start_stops_those_that_did(settings, plain_pair, monkeypatch):
    chosen = settings(models={"mnist": {}, "traffic": {}})
    app = create_several(chosen, registries=plain_pair)
    second = app.state.server.servers["traffic"]

    def fail():
        raise RuntimeError("no thread to be had")

    monkeypatch.setattr(second, "start", fail)

    async def live() -> None:
        async with app.router.lifespan_context(app):
            raise AssertionError("it started")

    with pytest.raises(RuntimeError, match="no thread"):
        asyncio.run(live())
    free(chosen.home, chosen.home / "mnist", chosen.home / "traffic")
    app.state.server.stop()   # a second call does nothing
