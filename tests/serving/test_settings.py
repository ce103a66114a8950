import re
from pathlib import Path

import pytest

import serving.__main__ as main
from redoubt.errors import InvalidInput
from serving.environment import unknown_variables
from serving.per_model import per_model
from serving.settings import Settings, load_settings

ROOT = Path(__file__).resolve().parents[2]


def test_environment_then_arguments(monkeypatch, tmp_path):
    monkeypatch.setenv("REDOUBT_PORT", "9001")
    monkeypatch.setenv("REDOUBT_HOME", str(tmp_path / "a home"))
    assert load_settings().port == 9001
    settings = load_settings(["--port", "9002", "--no-retrain"])
    assert (settings.port, settings.retrain) == (9002, False)
    assert settings.tracking_uri == f"sqlite:///{tmp_path / 'a home'}/mlflow.db"


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("PORT", "70000", "REDOUBT_PORT"),
        ("PORT", "http", "REDOUBT_PORT"),
        ("POLL_SECONDS", "0", "greater than 0"),
        ("POLL_SECONDS", "nan", "REDOUBT_POLL_SECONDS"),
        ("EPSILON_CEILING", "8", "8/255 rather than 8"),
        ("EPSILON_RATIO", "1.2", "1.1"),
        ("EPSILON_FLOOR", "0.9", "above epsilon_ceiling"),
        ("GATE_POLICY", "/no/such.yaml", "cannot be read"),
        ("CAMPAIGN_MIN_INPUTS", "9999", "above campaign_max_inputs"),
        ("DEVICE", "gpu", "REDOUBT_DEVICE='gpu': should be auto, cpu, cuda or cuda:N$"),
        ("RETRAIN", "maybe", "REDOUBT_RETRAIN='maybe': should be true or false$"),
        ("TLS_CERT", "a.pem", "REDOUBT_TLS_CERT and REDOUBT_TLS_KEY go together"),
        ("OIDC_ISSUER", "https://a", "REDOUBT_OIDC_ISSUER and REDOUBT_OIDC_AUDIENCE go together"),
        ("MODELS", '{"a": {"device": "gpu"}}', "a: device='gpu': should be auto"),
        ("RETRAIN_COMMAND", "python -m x", "JSON list"),
        *(("MODEL_NAME", name, "REDOUBT_MODEL_NAME=.*a letter or digit first")
          for name in ("a/b", "a:b", "..", ".hidden", "-x", "a b", "né", "a\n", "a" * 101)),
    ],
)
def test_bad_values_are_named(monkeypatch, name, value, says):
    monkeypatch.setenv(f"REDOUBT_{name}", value)
    with pytest.raises(InvalidInput, match=says):
        per_model(load_settings())


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("REDOUBT_POLCY", "REDOUBT_POLCY is no setting and is ignored: do you mean REDOUBT_POLICY?"),
        ("redoubt_polcy", "redoubt_polcy is no setting and is ignored: do you mean REDOUBT_POLICY?"),
        ("REDOUBT_SINGING_KEY", "REDOUBT_SINGING_KEY is no setting and is ignored: do you mean REDOUBT_SIGNING_KEY?"),
        ("REDOUBT_QQQ", "REDOUBT_QQQ is no setting and is ignored"),
        ("REDOUBT_CLIENT_EVIDENCE", "REDOUBT_CLIENT_EVIDENCE is gone: REDOUBT_FEW_CLIENTS took its place "
                                    "(a number of clients, not of inputs)"),
    ],
)
def test_a_variable_that_nothing_reads_is_named_with_what_was_meant(name, says):
    assert unknown_variables({name: "block", "PATH": "/bin"}) == [says]


def test_what_other_parts_read_and_kubernetes_sets_is_known():
    source = (file.read_text() for part in ("redoubt", "pipelines", "components", "serving")
              for file in (ROOT / part).rglob("*.py") if file.name != "environment.py")
    read = {name for text in source for name in re.findall(r"REDOUBT_[A-Z0-9_]*[A-Z0-9]\b", text)}
    assert {"REDOUBT_DATA", "REDOUBT_PROGRESS"} <= read
    assert unknown_variables(read) == []
    links = ["SERVICE_HOST", "SERVICE_PORT_HTTP", "SERVING_PORT", "PORT_8080_TCP_ADDR", "SERVING_PORT_8080_TCP"]
    links = [f"REDOUBT_{link}" for link in links]
    assert unknown_variables([*links, "KUBERNETES_SERVICE_HOST"]) == []
    assert len(unknown_variables(links)) == len(links)   # elsewhere somebody set them, for nothing


def test_a_misspelt_variable_is_logged_at_the_start(monkeypatch, caplog):
    monkeypatch.setenv("REDOUBT_POLCY", "block")
    monkeypatch.setattr(main, "serve", lambda settings: 0)
    monkeypatch.setattr(main, "set_up", lambda kind: None)
    assert main.main([]) == 0
    assert "do you mean REDOUBT_POLICY?" in caplog.text


def test_every_setting_is_documented():
    page = (ROOT / "docs" / "serving.md").read_text()
    for name, field in Settings.model_fields.items():
        rows = [row for row in page.splitlines() if row.startswith(f"| `REDOUBT_{name.upper()}` |")]
        assert len(rows) == 1, name
        assert field.description in rows[0]


@pytest.mark.parametrize("name", ["a", "redoubt", "Fashion-MNIST_v1.2", "7", "a" * 100])
def test_good_model_names(name):
    assert load_settings(model_name=name).model_name == name
