"""The gate's step on real versions: what can be compared, what is recorded, who becomes champion."""

import json
import shutil
from dataclasses import replace

import pytest
import torch

from components.gate.measure import measure, pictures
from components.gate.step import run
from components.prepare_data.step import run as prepare_data
from redoubt.bundle import seal, write_bundle
from redoubt.data import Prepared, load_source, prepare
from redoubt.errors import ArtifactError
from redoubt.models import Architecture, build
from redoubt.promotion import gate
from redoubt.registry import Registry
from redoubt.threat import ThreatModel

THREAT = ThreatModel("Linf", 0.1)


def register(registry, model, folder, digits, threats=(), classes="0123456789", checksum=None):
    shutil.rmtree(folder, ignore_errors=True)
    data = {"dataset": "digits", "checksum": checksum or digits.checksum}
    bundle = write_bundle(folder, model, classes=list(classes), threats=threats, data=data)
    return registry.register(bundle, metrics={}, parameters={}, tags={})


def judge(registry, version, digits, objective="pgd", epsilon=0.1, **how):
    return run(digits.folder, model_name="m", tracking_uri=registry.tracking_uri, version=version.number,
               objective=objective, norm="Linf", epsilon=epsilon, **how)


def test_undefended_then_robust_then_nothing_better(registry, digits, digits_model, robust_digits_model, tmp_path):
    first = register(registry, digits_model, tmp_path / "b", digits)
    assert judge(registry, first, digits, "standard").promoted
    second = register(registry, robust_digits_model, tmp_path / "b", digits, [THREAT])
    decision = judge(registry, second, digits)
    assert decision.promoted, decision.reason
    assert registry.champion().number == second.number
    assert json.loads(registry.version(2).tags["decision"])["champion"] == 1
    third = register(registry, robust_digits_model, tmp_path / "b", digits, [THREAT])
    decision = judge(registry, third, digits)
    assert not decision.promoted
    assert "better" in decision.reason
    assert registry.version(3).standing == "refused"
    assert [change.version for change in registry.history()] == [1, 2]
    with registry._mlflow("look") as client:
        page = client.get_model_version("m", "3").description
    assert "**refused**" in page
    assert "**FAIL**" in page, "the rules stand in MLflow's page"
    assert registry.champion().number == second.number
    assert registry.by_alias("challenger").number == third.number


def test_an_undefended_model_does_not_replace_a_robust_one(
    registry, digits, digits_model, robust_digits_model, tmp_path
):
    registry.promote(register(registry, robust_digits_model, tmp_path / "b", digits, [THREAT]), override="a test")
    decision = judge(registry, register(registry, digits_model, tmp_path / "b", digits), digits, "standard")
    assert "champion's Linf 0.1" in decision.reason


def test_a_champion_of_another_shape_or_other_data_is_no_measure(registry, digits, digits_model, tmp_path):
    torch.manual_seed(0)
    larger = build(Architecture(name="compact-cnn", num_classes=10, channels=1, size=28, mean=(0.1,), std=(0.3,)))
    registry.promote(register(registry, larger, tmp_path / "b", digits), override="a test")
    challenger = register(registry, digits_model, tmp_path / "b", digits)
    assert "1x28x28" in judge(registry, challenger, digits, "standard").reason
    registry.promote(register(registry, digits_model, tmp_path / "b", digits, checksum="0" * 64), override="a test")
    assert "training pictures may be among the gate's" in judge(registry, challenger, digits, "standard").reason


def test_data_that_changed_since_the_parent_is_refused(tmp_path, digits):
    metadata = prepare_data(tmp_path / "a", dataset="digits", data_checksum=digits.checksum)
    assert metadata["checksum"] == digits.checksum
    with pytest.raises(ArtifactError, match="digits has changed"):
        prepare_data(tmp_path / "b", dataset="digits", split_seed=1, data_checksum=digits.checksum)
    assert Prepared.open(tmp_path / "a").metadata["request"]["split_seed"] == 0


def test_a_step_that_is_run_again_after_it_promoted_says_so_again(registry, digits, digits_model, tmp_path):
    first = register(registry, digits_model, tmp_path / "b", digits)
    decision = judge(registry, first, digits, "standard")
    again = judge(registry, first, digits, "standard")
    assert (again.promoted, again.rules) == (True, decision.rules)
    assert len(registry.history()) == 1


def test_a_step_that_dies_before_it_promoted_has_not_said_that_it_did(registry, digits, digits_model, tmp_path,
                                                                      monkeypatch):
    version = register(registry, digits_model, tmp_path / "b", digits)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Registry, "promote", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        judge(registry, version, digits, "standard")
    assert (registry.champion(), registry.version(1).standing) == (None, "passed")
    assert judge(registry, version, digits, "standard").promoted
    assert (registry.champion().number, registry.version(1).standing) == (1, "promoted")
    with registry._mlflow("look") as client:
        assert client.get_model_version("m", "1").description.startswith("**promoted**")


def test_a_policy_that_asks_leaves_it_to_a_person(registry, digits, digits_model, tmp_path):
    first = register(registry, digits_model, tmp_path / "b", digits)
    decision = judge(registry, first, digits, "standard", policy="promotion: ask")
    assert (decision.passed, decision.promoted, decision.status) == (True, False, "waiting")
    assert registry.champion() is None
    assert registry.by_alias("challenger").standing == "waiting for a person"
    assert registry.version(1).decision["policy"]["promotion"] == "ask"


def test_files_that_do_not_verify_are_a_rule(registry, digits, digits_model, tmp_path):
    version = register(registry, digits_model, tmp_path / "b", digits)
    (weights,) = tmp_path.glob("artifacts/*/artifacts/bundle/model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    decision = judge(registry, version, digits, "standard")
    assert not decision.passed
    assert decision.rules[0].rule == "artifacts, sha256 of each file"
    assert "does not match its sha256" in decision.rules[0].value
    assert registry.champion() is None


def test_a_report_that_the_manifest_does_not_list_is_none(registry, digits, digits_model, tmp_path):
    """Whoever can write to the artifact store could lay one beside the files that are verified."""
    def sanity(version):
        decision = judge(registry, version, digits, "standard", policy="sanity: required", promote=False)
        return next(line for line in decision.rules if line.rule.startswith("sanity"))

    checks = json.dumps({"checks": [{"title": "a", "verdict": "pass"}]})
    version = register(registry, digits_model, tmp_path / "b", digits)
    (weights,) = tmp_path.glob("artifacts/*/artifacts/bundle/model.safetensors")
    (weights.parent / "report.json").write_text(checks)
    assert (sanity(version).value, sanity(version).verdict) == ("none in its report", "fail")
    (tmp_path / "b" / "report.json").write_text(checks)
    listed = registry.register(seal(tmp_path / "b"), metrics={}, parameters={}, tags={})
    assert sanity(listed).verdict == "pass"


def test_a_champion_that_changes_while_the_gate_measures_is_measured_against(
    registry, digits, digits_model, robust_digits_model, tmp_path, monkeypatch
):
    """Both run the same step; the one that comes second judges again, against the first, and is refused."""
    promote = Registry.promote
    second = register(registry, robust_digits_model, tmp_path / "b", digits, [THREAT])
    first = register(registry, robust_digits_model, tmp_path / "b", digits, [THREAT])
    rival = [first]

    def overtaken(self, version, **how):
        if rival:
            registry.tag(rival[0], decision='{"passed": true, "reason": ""}')
            promote(self, rival.pop(), by="the rival")
        return promote(self, version, **how)

    monkeypatch.setattr(Registry, "promote", overtaken)
    decision = judge(registry, second, digits)
    assert (decision.promoted, registry.champion().number) == (False, first.number)
    assert registry.version(second.number).decision["champion"] == first.number


def with_twins(digits, folder, share):
    """The digits again, where training pictures stand in for a share of the gate's."""
    source = load_source("digits")
    images, (train, gate) = source.train_images.copy(), (digits.arrays(name)[0] for name in ("train", "gate"))
    place = {picture.tobytes(): row for row, picture in enumerate(images)}
    rows = [place[picture.tobytes()] for picture in gate[: round(share * len(gate))]]
    images[rows] = train[: len(rows)]
    return prepare(replace(source, train_images=images), folder, seed=0)


def test_pictures_that_were_trained_on_do_not_count(registry, digits, digits_model, tmp_path):
    data = with_twins(digits, tmp_path / "some", 0.2)
    version = register(registry, digits_model, tmp_path / "b", digits)
    decision = judge(registry, version, data, "standard", promote=False)
    line = next(line for line in decision.rules if line.rule == "gate's pictures that were trained on")
    assert (decision.n, line.value, line.verdict) == (150, "37 of 187", "pass")
    refused = judge(registry, version, with_twins(digits, tmp_path / "most", 0.6), "standard")
    assert "gate's pictures that were trained on is 112 of 187" in refused.reason
    assert (refused.n, registry.champion()) == (75, None)


def test_a_detector_is_tried_on_attacked_pictures(digits, digits_model, detector_folder, tmp_path):
    write_bundle(tmp_path / "b", digits_model, classes=list("0123456789"), threats=())
    for file in detector_folder.iterdir():
        shutil.copy(file, tmp_path / "b")
    x, y, twins = pictures(digits)
    assert twins == 0
    measured = measure(seal(tmp_path / "b"), x, y, (), levels=16, seed=0, tried=ThreatModel("Linf", 0.2))
    assert measured.false_positives < 0.1
    assert measured.probe.n == 187
    assert measured.probe.true == pytest.approx(3 / 16), "0.2 on a lattice of sixteenths"
    assert measured.probe.flagged > 100
    assert measured.probe.estimate == pytest.approx(3 / 16, rel=0.3)


def test_a_champion_may_carry_a_detector_of_another_release(digits, digits_model, detector_folder, tmp_path):
    """Who follows the advice to run the pipeline again has such a champion: the gate must get past it."""
    write_bundle(tmp_path / "b", digits_model, classes=list("0123456789"), threats=())
    for file in detector_folder.iterdir():
        shutil.copy(file, tmp_path / "b")
    card = tmp_path / "b" / "detector.json"
    card.write_text(json.dumps({**json.loads(card.read_text()), "format": 9}))
    x, y, _ = pictures(digits)
    old = seal(tmp_path / "b")
    champion = measure(old, x, y, (), levels=16, seed=0)
    assert champion.guarded and champion.probe is None
    blind = replace(champion, guarded=False)
    failed = [line.rule for line in gate.judge(blind, champion, None).rules if line.failed]
    assert "detector's false positives" in failed, "a challenger without a detector must not replace one that had one"
    with pytest.raises(ArtifactError, match="format 9"):
        measure(old, x, y, (), levels=16, seed=0, tried=ThreatModel("Linf", 0.2))
