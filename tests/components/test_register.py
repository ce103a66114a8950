"""What a version is searched for."""

import json
from types import SimpleNamespace

import pytest

from components.register.step import facts
from redoubt.promotion.page import describe
from redoubt.threat import ThreatModel
from redoubt.version import Version

LINF, L2 = ThreatModel("Linf", 0.115), ThreatModel("L2", 1.0)


def bundle(*threats, norm="Linf"):
    return SimpleNamespace(
        threats=threats, architecture=SimpleNamespace(name="compact-cnn"),
        manifest={"objective": "blend", "parameters": {"norm": norm, "epsilon": 0.1},
                  "data": {"dataset": "digits", "checksum": "c" * 64}})


def report(*rows):
    return {"clean_accuracy": 0.84, "suite": "standard", "robust": [
        {"label": "PGD-20", "norm": t.norm, "epsilon": t.epsilon, "accuracy": a} for t, a in rows]}


def test_epsilon_and_accuracy_are_those_of_what_was_asked_for():
    tags = facts(bundle(L2, LINF), report((L2, 0.6), (LINF, 0.7)), "c-7", 3)
    assert (tags["epsilon"], tags["norm"], tags["robust_accuracy"]) == ("0.115", "Linf", "0.7000")
    assert (tags["cause"], tags["parent_version"], tags["suite"]) == ("c-7", "3", "standard")
    assert json.loads(tags["robust_accuracies"]) == {"PGD-20 L2 1": 0.6, "PGD-20 Linf 0.115": 0.7}
    asked_l2 = facts(bundle(L2, LINF, norm="L2"), report((L2, 0.6), (LINF, 0.7)), "manual", 0)
    assert (asked_l2["epsilon"], asked_l2["robust_accuracy"]) == ("1", "0.6000")
    assert "parent_version" not in asked_l2


def test_an_undefended_version_covers_nothing():
    tags = facts(bundle(), report((LINF, 0.05)), "manual", 0)
    assert (tags["epsilon"], tags["norm"], tags["robust_accuracy"]) == ("0", "none", "0.0500")


@pytest.mark.parametrize("name", ["7 | 8", "<script>alert(1)</script>"])
def test_a_class_name_is_no_markup_on_mlflows_page(name):
    record = {"attack": "PGD-20", "n": 0, "reason": name, "rules": [
        {"rule": "inputs and classes", "value": name, "limit": "the champion's", "verdict": "fail"}]}
    version = Version(name="m", number=1, run_id="r", source="s", created=None,
                      tags={"decision": json.dumps(record), "gate": "refused"})
    page = describe(version)
    assert page.startswith("**refused**")
    assert "<script>" not in page
    assert page.splitlines()[-1].count(" | ") == 3, "four cells"
