"""Who gets in: keys, roles, rates, addresses, and what is written down about it."""

import asyncio
import json
import time

import pytest
import torch
from serving_support import bearer, keyed, wait_until

from redoubt.errors import InvalidInput
from serving.__main__ import main
from serving.problems import Busy, Forbidden, Unauthorized
from serving.security import Access, KeyStore, needed_role, new_key
from serving.security.limits import RateLimits
from serving.telemetry.logs import redact


def test_the_file_holds_no_key_and_is_its_owners_alone(tmp_path):
    token = keyed(tmp_path, ann="predict")["ann"]
    file = tmp_path / "keys.json"
    assert token.split("_", 2)[2] not in file.read_text()
    assert file.stat().st_mode & 0o077 == 0
    store = KeyStore(file)
    assert store.find(token).name == "ann"
    for wrong in ("", "rdb", token[:-1], token + "x", token.replace("rdb", "abc"), "rdb__", "rdb_" + "x" * 5000):
        assert store.find(wrong) is None


def test_a_key_ends_when_it_expires_or_is_revoked(tmp_path, monkeypatch):
    monkeypatch.setattr("serving.security.keys._LOOK_SECONDS", 0)
    file = tmp_path / "keys.json"
    store = KeyStore(file)
    old, entry = new_key("old", ("predict",), expires_at=time.time() - 1)
    store.add(entry)
    token, entry = new_key("ann", ("predict",))
    store.add(entry)
    assert store.find(old) is None
    other = KeyStore(file)   # as another process has it
    assert other.find(token) is not None
    store.revoke(entry.id)
    assert other.find(token) is None
    with pytest.raises(InvalidInput, match="no key"):
        store.revoke(entry.id)


def test_a_damaged_file_lets_nobody_else_in_and_keeps_those_inside(tmp_path, monkeypatch):
    monkeypatch.setattr("serving.security.keys._LOOK_SECONDS", 0)
    token = keyed(tmp_path, ann="predict")["ann"]
    store = KeyStore(tmp_path / "keys.json")
    (tmp_path / "keys.json").write_text("{")
    assert store.find(token) is not None
    with pytest.raises(InvalidInput, match="cannot be read"):
        KeyStore(tmp_path / "keys.json")
    (tmp_path / "keys.json").unlink()
    assert store.find(token) is None


@pytest.mark.parametrize(
    ("method", "path", "role"),
    [
        ("GET", "/v2/health/ready", None), ("GET", "/", None), ("GET", "/live/page.js", None),
        ("GET", "/models/a", None), ("GET", "/models/a/status", "read"), ("POST", "/models/a", "operate"),
        ("GET", "/live/events", "read"),
        ("POST", "/v2/models/a/infer", "predict"), ("POST", "/v2/models/a/versions/2/infer", "predict"),
        ("GET", "/v2/models/a", "predict"), ("POST", "/v2/models/a/feedback", "feedback"),
        ("GET", "/status", "read"), ("GET", "/metrics", "read"), ("GET", "/anything/new", "read"),
        ("POST", "/anything/new", "operate"), ("DELETE", "/status", "operate"), ("POST", "/", "operate"),
        ("POST", "/live/page.js", "operate"), ("GET", "/live/../status", "read"),
    ],
)
def test_every_path_takes_a_role_unless_it_was_opened(method, path, role):
    assert needed_role(method, path) == role


def test_strangers_are_kept_out(live, light, tmp_path):
    tokens = keyed(tmp_path / "home", app="predict", labels="feedback", watcher="read", boss="admin")
    client = live(light).client
    infer = {"inputs": [{"name": "input", "shape": [1, 1, 8, 8], "datatype": "FP32", "data": [0.5] * 64}]}
    path, feedback = "/v2/models/digits/infer", {"feedback": [{"request_id": "x", "labels": [1]}]}
    assert client.get("/v2/health/ready").status_code == 200
    for headers in ({}, bearer("rdb_0123_x"), bearer("x.y.z"), {"x-api-key": "no"}):
        for got in (client.post(path, json=infer, headers=headers), client.get("/status", headers=headers)):
            assert (got.status_code, list(got.json())) == (401, ["error"])
            assert got.headers["www-authenticate"] == "Bearer"
    for name, may_infer, may_read, may_label in [
        ("app", 200, 403, 403), ("labels", 403, 403, 200), ("watcher", 403, 200, 403), ("boss", 200, 200, 200),
    ]:
        headers = bearer(tokens[name])
        assert client.post(path, json=infer, headers=headers).status_code == may_infer
        assert client.get("/status", headers=headers).status_code == may_read
        assert client.post("/v2/models/digits/feedback", json=feedback, headers=headers).status_code == may_label
    assert client.post(path, json=infer, headers={"x-api-key": tokens["app"]}).status_code == 200


def test_operators_leave_a_trace(live, light, tmp_path):
    tokens = keyed(tmp_path / "home", ann="operate", bob="read")
    running = live(light)
    for name, status in (("ann", 404), ("bob", 403)):
        got = running.client.post("/operate/nothing", headers=bearer(tokens[name]) | {"x-request-id": f"by-{name}"})
        assert got.status_code == status
    rows = running.client.get("/audit", headers=bearer(tokens["bob"])).json()
    assert [(row["principal"], row["status"], row["request_id"]) for row in rows] == [
        ("bob", 403, "by-bob"), ("ann", 404, "by-ann"),
    ]
    assert tokens["ann"] not in (running.server.settings.home / "audit.jsonl").read_text()


def test_a_client_that_asks_too_often_waits(live, light):
    running = live(light, rate_limit=1, rate_burst=3)
    codes = [running.client.get("/v2").status_code for _ in range(6)]
    assert codes[:2] == [200, 200]
    assert 429 in codes
    refused = running.client.get("/v2")
    assert refused.status_code == 429
    assert int(refused.headers["retry-after"]) >= 1


def test_rates_are_each_clients_own():
    limits = RateLimits(rate=0.001, burst=2)
    assert [limits.take("a") > 0 for _ in range(3)] == [False, False, True]
    assert limits.take("b") == 0
    assert limits.take("a", rate=0) == 0


def test_other_hosts_need_keys_or_a_proxy(settings, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("REDOUBT_HOME", str(tmp_path / "home"))
    assert main(["--host", "0.0.0.0", "--port", "0"]) == 2
    said = capsys.readouterr().err
    assert "would let strangers in" in said
    assert said.count("\n") == 1
    Access(settings(host="0.0.0.0", trusted_proxy=True))
    keyed(tmp_path / "home", ann="predict")
    Access(settings(host="0.0.0.0"))


def identify(access: Access, headers: dict, address: str = "9.9.9.9"):
    return asyncio.run(access.identify(headers, address))


def test_behind_a_proxy_without_keys_nobody_operates(settings):
    access = Access(settings(trusted_proxy=True))
    anyone = identify(access, {})
    access.check(anyone, "POST", "/v2/models/a/infer", {})
    with pytest.raises(Forbidden, match="operate"):
        access.check(anyone, "POST", "/operate/rollback", {})


def test_a_page_of_another_site_cannot_use_a_browser_here(settings):
    access = Access(settings())
    local = identify(access, {}, "127.0.0.1")
    access.check(local, "POST", "/operate/x", {b"host": b"localhost:8080", b"origin": b"http://localhost:8080"})
    with pytest.raises(Forbidden, match="other sites"):
        access.check(local, "POST", "/operate/x", {b"host": b"localhost:8080", b"origin": b"https://evil.example"})
    with pytest.raises(Forbidden, match="localhost only"):
        access.check(local, "GET", "/status", {b"host": b"evil.example"})


def test_the_first_key_closes_the_door(settings, tmp_path, monkeypatch):
    monkeypatch.setattr("serving.security.keys._LOOK_SECONDS", 0)
    access = Access(settings())
    assert not identify(access, {}).known
    keyed(tmp_path / "home", ann="predict")
    with pytest.raises(Unauthorized):
        identify(access, {})
    (tmp_path / "home" / "keys.json").unlink()   # and no file opens it again
    with pytest.raises(Unauthorized):
        identify(access, {})


def test_only_declared_proxies_speak_for_others(settings):
    access = Access(settings(proxies=["10.0.0.0/8"]))
    forwarded = {b"x-forwarded-for": b"1.1.1.1, 2.2.2.2, 10.0.0.7"}
    assert access.client_address("10.1.2.3", forwarded) == "2.2.2.2"
    assert access.client_address("8.8.8.8", forwarded) == "8.8.8.8"
    assert Access(settings()).client_address("10.1.2.3", forwarded) == "10.1.2.3"


@pytest.mark.parametrize(("address", "name"), [
    ("2a00:1450:4001:80b::200e", "2a00:1450:4001:80b::/64"), ("2a00:1450:4001:80b:ffff::1", "2a00:1450:4001:80b::/64"),
    ("8.8.8.8", "8.8.8.8"), ("::ffff:8.8.8.8", "8.8.8.8"), ("::1", "::1"), ("fd00::7", "fd00::7"),
    ("64:ff9b::808:808", "64:ff9b::808:808"), ("fe80::1%eth0", "fe80::1%eth0"), ("unknown", "unknown"),
])
def test_a_network_of_ipv6_is_one_client(settings, address, name):
    assert asyncio.run(Access(settings()).identify({}, address)).name == name


def test_the_keys_command(tmp_path, capsys):
    home = ["--home", str(tmp_path)]
    assert main(["keys", *home, "add", "ann", "--role", "predict", "--role", "read", "--expires", "30d"]) == 0
    token = capsys.readouterr().out.split()[-1]
    entry = KeyStore(tmp_path / "keys.json").find(token)
    assert (entry.name, entry.roles) == ("ann", ("predict", "read"))
    assert 29 * 86400 < entry.expires_at - time.time() < 30 * 86400 + 1
    assert main(["keys", *home, "list"]) == 0
    assert entry.id in capsys.readouterr().out
    assert main(["keys", *home, "add", "bob", "--role", "king"]) == 2
    assert "roles are some of predict" in capsys.readouterr().err
    assert main(["keys", *home, "add", "bob", "--role", "read", "--expires", "soon"]) == 2
    assert main(["keys", *home, "revoke", entry.id]) == 0
    assert json.loads((tmp_path / "keys.json").read_text()) == {"keys": []}


def test_logs_hold_no_secrets(tmp_path):
    token = keyed(tmp_path, ann="predict")["ann"]
    text = redact(f"Authorization: Bearer abc.def.ghi {token} postgresql://me:secret@host/db")
    assert token not in text
    assert "abc.def" not in text
    assert "secret" not in text
    assert "host/db" in text


def test_every_answer_carries_its_id_and_closed_headers(live, light):
    running = live(light)
    got = running.client.get("/v2", headers={"x-request-id": "seven"})
    assert got.headers["x-request-id"] == "seven"
    assert got.headers["x-content-type-options"] == "nosniff"
    assert "default-src 'none'" in got.headers["content-security-policy"]
    assert "access-control-allow-origin" not in got.headers
    assert len(running.client.get("/v2", headers={"x-request-id": "a b"}).headers["x-request-id"]) == 24


def test_tokens_of_an_issuer(settings, tmp_path, monkeypatch):
    jwt = pytest.importorskip("jwt")
    from cryptography.hazmat.primitives.asymmetric import rsa

    private = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    stranger = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    access = Access(settings(oidc_issuer="https://id.example", oidc_audience="redoubt"))
    jwks = {"keys": [json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(private.public_key())) | {"kid": "k", "use": "sig"}]}
    client = jwt.PyJWKClient("https://id.example/jwks")
    monkeypatch.setattr(client, "fetch_data", lambda: jwks)
    access.tokens._client = client

    def token(key=private, algorithm="RS256", **changes) -> str:
        now = int(time.time())
        claims = {"iss": "https://id.example", "aud": "redoubt", "sub": "ann", "iat": now, "exp": now + 60,
                  "roles": ["predict", "king"]} | changes
        return jwt.encode({k: v for k, v in claims.items() if v is not None}, key, algorithm, headers={"kid": "k"})

    def ask(text: str):
        return identify(access, {b"authorization": b"Bearer " + text.encode()})

    ann = ask(token())
    assert (ann.name, ann.roles) == ("oidc:ann", frozenset({"predict"}))
    bad = [
        token(key=stranger), token(aud="another"), token(iss="https://evil.example"), token(exp=1), token(exp=None),
        token(sub=None), token(key="x" * 64, algorithm="HS256"), "a.b.c", token()[:-4] + "AAAA",
    ]
    for text in bad:
        with pytest.raises(Unauthorized):
            ask(text)


def test_room_is_limited(live, light):
    running = live(light, max_in_flight=1, max_in_flight_bytes=4096)
    admission = running.server.admission
    admission.enter(10, 0)
    got = running.infer(torch.zeros(1, 1, 8, 8))
    assert got.status_code == 429
    assert int(got.headers["retry-after"]) >= 1
    admission.leave(10)
    wait_until(lambda: running.infer(torch.zeros(1, 1, 8, 8)).status_code == 200)
    wait_until(lambda: (admission.requests, admission.bytes) == (0, 0))
    admission._most = 5
    admission.enter(4000, 0)
    with pytest.raises(Busy, match="memory"):
        admission.enter(200, 0)
