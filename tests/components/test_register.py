"""What a version is searched for."""

import json
from types import SimpleNamespace

import pytest

from components.register.step import facts
from redoubt.promotion.page import describe
from redoubt.report.facts import figures_to_quote, outweighs
from redoubt.threat import ThreatModel
from redoubt.version import Version

LINF, L2 = ThreatModel("Linf", 0.115), ThreatModel("L2", 1.0)


def bundle(*threats, norm="Linf"):
    return SimpleNamespace(
        threats=threats, architecture=SimpleNamespace(name="compact-cnn"),
        manifest={"objective": "blend", "parameters": {"norm": norm, "epsilon": 0.1},
                  "data": {"dataset": "digits", "checksum": "c" * 64}})


def report(*rows):
    return {"clean_accuracy": 0.84, "suite": "standard", "n": 500, "robust": [
        {"label": "PGD-20", "norm": t.norm, "epsilon": t.epsilon, "accuracy": a} for t, a in rows]}


def test_epsilon_and_accuracy_are_those_of_what_was_asked_for():
    tags = facts(bundle(L2, LINF), report((L2, 0.6), (LINF, 0.7)), "c-7", 3)
    assert (tags["epsilon"], tags["norm"], tags["robust_accuracy"]) == ("0.115", "Linf", "0.7000")
    assert (tags["cause"], tags["parent_version"], tags["suite"]) == ("c-7", "3", "standard")
    assert json.loads(tags["robust_accuracies"]) == {"PGD-20 L2 1": 0.6, "PGD-20 Linf 0.115": 0.7}
    asked_l2 = facts(bundle(L2, LINF, norm="L2"), report((L2, 0.6), (LINF, 0.7)), "manual", 0)
    assert (asked_l2["epsilon"], asked_l2["robust_accuracy"]) == ("1", "0.6000")
    assert "parent_version" not in asked_l2


def test_the_figure_to_quote_is_what_withstood_every_attack_of_what_was_asked_for():
    rows = {"worst_case": [{"norm": t.norm, "epsilon": t.epsilon, "accuracy": a} for t, a in ((L2, 0.3), (LINF, 0.65))]}
    found = report((L2, 0.6), (LINF, 0.7)) | rows
    assert figures_to_quote(found, LINF)["robust_accuracy"] == "0.6500"
    assert figures_to_quote(found, None)["robust_accuracy"] == "0.3000"
    assert facts(bundle(L2, LINF), found, "manual", 0)["robust_accuracy"] == "0.6500"
    assert facts(bundle(L2, LINF), found, "manual", 0)["evaluated_images"] == "500"


@pytest.mark.parametrize("new, old, better", [
    (("standard", 100), ("quick", 9000), True), (("quick", 9000), ("standard", 100), False),
    (("full", 10), ("standard", 9000), True), (("quick", 100), ("quick", 99), True),
    (("quick", 99), ("quick", 100), False), (("quick", 100), ("quick", 100), True),
    (("quick", 100), ("quick", None), False), (("standard", 100), ("quick", None), True),
    (("custom", 9000), ("quick", 1), False), (("quick", 1), (None, None), True),
])
def test_a_weaker_evaluation_does_not_take_the_place_of_a_stronger_one(new, old, better):
    def tags(suite, n):
        known = {"suite": suite, "robust_accuracies": "{}"} if suite else {}
        return known | ({"evaluated_images": str(n)} if n else {})

    assert outweighs(tags(*new), tags(*old)) is better


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
