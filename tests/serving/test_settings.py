from pathlib import Path

import pytest

from redoubt.errors import InvalidInput
from serving.settings import Settings, load_settings


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
        ("RETRAIN_COMMAND", "python -m x", "JSON list"),
        *(("MODEL_NAME", name, "REDOUBT_MODEL_NAME=.*a letter or digit first")
          for name in ("a/b", "a:b", "..", ".hidden", "-x", "a b", "né", "a\n", "a" * 101)),
    ],
)
def test_bad_values_are_named(monkeypatch, name, value, says):
    monkeypatch.setenv(f"REDOUBT_{name}", value)
    with pytest.raises(InvalidInput, match=says):
        load_settings()


def test_every_setting_is_documented():
    page = (Path(__file__).resolve().parents[2] / "docs" / "serving.md").read_text()
    for name, field in Settings.model_fields.items():
        rows = [row for row in page.splitlines() if row.startswith(f"| `REDOUBT_{name.upper()}` |")]
        assert len(rows) == 1, name
        assert field.description in rows[0]


@pytest.mark.parametrize("name", ["a", "redoubt", "Fashion-MNIST_v1.2", "7", "a" * 100])
def test_good_model_names(name):
    assert load_settings(model_name=name).model_name == name
