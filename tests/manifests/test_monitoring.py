"""Alerts and dashboard ask for metrics that the server has, and every alert has its page."""

import json
import re

import pytest
import yaml
from manifests_support import MANIFESTS, of_kind

ROOT = MANIFESTS.parent
FOLDER = MANIFESTS / "components" / "monitoring"
METRIC = re.compile(r"\bredoubt_[a-z_]+\b")


def alerts() -> list[dict]:
    rule = yaml.safe_load((FOLDER / "alerts.yaml").read_text())
    return [alert for group in rule["spec"]["groups"] for alert in group["rules"]]


def expressions() -> dict[str, str]:
    board = json.loads((FOLDER / "dashboard.json").read_text())
    found = {alert["alert"]: alert["expr"] for alert in alerts()}
    for panel in board["panels"]:
        found |= {f"{panel['title']} {target['refId']}": target["expr"] for target in panel["targets"]}
    return found


def exported() -> set[str]:
    """Every name that the server's metrics may have, from its source."""
    file = ROOT / "serving" / "telemetry" / "metrics.py"
    if not file.exists():
        pytest.skip("the server has no metrics yet")
    text, names = file.read_text(), set()
    for kind, name in re.findall(r'(Counter|Histogram|Gauge)\(\s*"(redoubt_\w+)"', text):
        suffixes = {"Counter": ["_total"], "Histogram": ["_bucket", "_sum", "_count"], "Gauge": [""]}[kind]
        names |= {name + suffix for suffix in suffixes}
    names |= set(re.findall(r'GaugeMetricFamily\(\s*"(redoubt_\w+)"', text))
    return names | {f"redoubt_{name}" for name in re.findall(r'^\s*\("(\w+)", "', text, flags=re.MULTILINE)}


def test_every_metric_that_is_asked_for_exists():
    known = exported()
    for where, expression in expressions().items():
        for name in METRIC.findall(expression):
            assert name in known, f"{where}: {name}"


def test_what_alerts_wait_for_is_counted_from_zero():
    """A series that begins at 1 has not increased: the first campaign that went unanswered would raise no alert."""
    from serving.telemetry.metrics import Metrics, render

    text = render({"m": Metrics(lambda: {})}).decode()
    waited = {match for alert in alerts()
              for match in re.findall(r'increase\((redoubt_\w+)(?:\{outcome="([\w-]+)"\})?\[', alert["expr"])}
    assert len(waited) >= 5
    for name, outcome in waited:
        labels = f',outcome="{outcome}"' if outcome else ""
        assert f'{name}{{model="m"{labels}}} 0.0' in text, (name, outcome)


def test_alerts_say_what_and_where_to_read_on():
    pages = (ROOT / "docs" / "operations.md").read_text()
    for alert in alerts():
        assert alert["labels"]["severity"] in ("critical", "warning")
        assert alert["annotations"]["summary"]
        assert alert["annotations"]["runbook"] == f"docs/operations.md#{alert['alert'].lower()}"
        assert re.search(rf"^### {alert['alert']}$", pages, flags=re.MULTILINE), alert["alert"]
    names = [alert["alert"] for alert in alerts()]
    assert len(names) == len(set(names))


def test_brackets_of_every_expression_close():
    for where, expression in expressions().items():
        for left, right in ("()", "[]", "{}"):
            assert expression.count(left) == expression.count(right), where


def test_the_dashboard_travels_in_a_config_map_that_grafana_finds():
    found = of_kind("overlays/monitoring", "ConfigMap")["redoubt-dashboard"]
    assert found["metadata"]["labels"]["grafana_dashboard"] == "1"
    board = json.loads(found["data"]["redoubt.json"])
    assert board["uid"] == "redoubt" and len(board["panels"]) > 10
    places = [tuple(panel["gridPos"].values()) for panel in board["panels"]]
    assert len(places) == len(set(places))


def test_prometheus_scrapes_the_port_that_the_service_has():
    monitor = of_kind("overlays/monitoring", "ServiceMonitor")["redoubt-serving"]["spec"]
    service = of_kind("overlays/monitoring", "Service")["redoubt-serving"]
    assert monitor["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    (endpoint,) = monitor["endpoints"]
    assert endpoint["port"] in [port["name"] for port in service["spec"]["ports"]]
    assert endpoint["path"] == "/metrics"


def test_prometheus_of_the_helm_chart_takes_scrapes_and_alerts():
    """It selects by the label `release`, and leaves aside what has none without a word."""
    for kind in ("ServiceMonitor", "PrometheusRule"):
        one, = of_kind("overlays/monitoring", kind).values()
        assert one["metadata"]["labels"]["release"] == "kube-prometheus-stack", kind
