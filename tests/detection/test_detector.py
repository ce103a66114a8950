"""A detector fitted on digits: it notices attacks, leaves clean inputs alone, measures strength, survives a disk."""

from __future__ import annotations

import copy
import json
import math
import sys
from dataclasses import replace
from functools import partial

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from redoubt.attacks import fgsm, on_lattice, pgd
from redoubt.detection import Detector, FitConfig, Monitor, fit, match
from redoubt.detection.bounds import FLOORS, SIZES
from redoubt.detection.networks import PIXELS, WHOLE
from redoubt.detection.scoring import conformal_threshold
from redoubt.errors import ArtifactError, InvalidInput
from redoubt.models import Architecture, build
from redoubt.threat import ThreatModel


def attacked(digits, model, name: str, epsilon: float) -> torch.Tensor:
    x, y = digits.tensors("test")
    threat = ThreatModel("Linf", epsilon)
    generator = torch.Generator().manual_seed(1)
    x_adv = fgsm(model, x, y, threat) if name == "fgsm" else pgd(model, x, y, threat, generator=generator)
    return on_lattice(x_adv, 16)


def test_clean_inputs_pass_and_raise_no_alarm(digits, digits_detector):
    flagged = digits_detector.assess(digits.tensors("test")[0]).is_adversarial
    assert flagged.float().mean() <= digits_detector.null_rate
    assert not Monitor(digits_detector.null_rate).update(flagged.tolist() * 5)


@pytest.mark.parametrize("name", ["fgsm", "pgd"])
@pytest.mark.parametrize("epsilon", [0.15, 0.2, 0.3])
def test_attacks_raise_an_alarm_and_are_matched(digits, digits_model, digits_detector, name, epsilon):
    verdicts = digits_detector.assess(attacked(digits, digits_model, name, epsilon))
    monitor = Monitor(digits_detector.null_rate)
    assert any(monitor.update(bool(flag)) for flag in verdicts.is_adversarial[:30])
    strength = digits_detector.campaign(verdicts.evidence[verdicts.is_adversarial][:64])
    assert strength.norm == "Linf" and not strength.harmless
    assert strength.low <= strength.estimate <= strength.high
    # Half a lattice step is a fifth of the smallest epsilon here: the match cannot be closer.
    assert 1 <= match(strength, ceiling=0.6) / epsilon <= 1.5


def test_a_stronger_attack_is_measured_as_stronger(digits, digits_model, digits_detector):
    def measured(epsilon):
        return digits_detector.campaign(digits_detector.assess(attacked(digits, digits_model, "pgd", epsilon)).evidence)

    assert measured(0.12).estimate < measured(0.2).estimate < measured(0.3).estimate


def test_some_false_positives_move_the_estimate_little(digits, digits_model, digits_detector):
    x_adv = attacked(digits, digits_model, "pgd", 0.2)
    evidence = digits_detector.assess(x_adv).evidence[:54]
    clean = digits_detector.assess(digits.tensors("test")[0]).evidence[:10]
    pure, mixed = digits_detector.campaign(evidence), digits_detector.campaign(torch.cat([evidence, clean]))
    assert mixed.estimate == pytest.approx(pure.estimate, rel=0.2)


def test_verdicts_are_rows_whatever_the_batch(digits, digits_detector):
    x = digits.tensors("test")[0][:20]
    whole = digits_detector.assess(x)
    single = [digits_detector.assess(one.unsqueeze(0)) for one in x]
    for name in ("score", "probability", "is_adversarial", "strength", "low", "high", "evidence"):
        rows = torch.cat([getattr(one, name) for one in single])
        assert rows.shape == getattr(whole, name).shape
        torch.testing.assert_close(rows, getattr(whole, name), rtol=1e-4, atol=1e-5)
    assert whole.evidence.shape[1] < 100
    assert ((whole.score > 0.5) == whole.is_adversarial).all()
    assert (whole.low <= whole.strength).all() and (whole.strength <= whole.high).all()
    assert digits_detector.assess(x[:0]).score.shape == (0,)


def test_of_pictures_in_whole_levels_the_upper_bound_is_a_whole_number_of_them(digits, digits_model, digits_detector):
    # As if the digits had 8 bits: the estimate is what it is, and pictures on that lattice are told from others.
    fine = Detector(digits_model, digits_detector.scorer, digits_detector.strength_net, digits_detector.witness,
                    replace(digits_detector.settings, levels=255))
    x_adv = attacked(digits, digits_model, "pgd", 0.2)

    def evidence(x):
        verdicts = fine.assess(x)
        return verdicts.evidence[verdicts.is_adversarial][:64]

    rows, off = evidence(on_lattice(x_adv, 255)), evidence((on_lattice(x_adv, 255) + 0.3 / 255).clamp(0, 1))
    high = fine.campaign(rows).high * 255
    assert high == pytest.approx(round(high), abs=1e-3)
    assert fine.campaign(rows).levels == 255 and fine.campaign(off).levels is None
    assert rows[:, WHOLE].all() and not off[:, WHOLE].any()
    between = fine.campaign(off).high * 255
    assert abs(between - round(between)) > 1e-3
    # A few inputs in fractions among them, sent to widen the bound, do not.
    mixed = fine.campaign(torch.cat([rows[:-6], off[-6:]])).high * 255
    assert mixed == pytest.approx(round(mixed), abs=1e-3)
    # Digits themselves have too few levels: the margin stands for what was set.
    coarse = digits_detector.campaign(digits_detector.assess(on_lattice(x_adv, 16)).evidence[:64])
    assert abs(coarse.high * 16 - round(coarse.high * 16)) > 1e-3 and coarse.levels is None


def test_bounds_are_wider_where_the_heads_disagree(digits_model, digits_detector, digits):
    verdicts = digits_detector.assess(attacked(digits, digits_model, "pgd", 0.2))
    rows = verdicts.evidence[verdicts.is_adversarial][:64]
    torn = copy.deepcopy(digits_detector)
    last = torn.strength_net.heads[-1].bias   # [folds, 1, outputs], of which the first is ln(epsilon) in Linf
    with torch.no_grad():
        last[0, 0, 0] += 0.5
        last[1, 0, 0] -= 0.5
    before, after = digits_detector.campaign(rows), torn.campaign(rows)
    assert after.estimate == pytest.approx(before.estimate, rel=0.01)
    assert after.low < 0.95 * before.low and after.high > 1.05 * before.high


def test_bounds_are_the_stated_quantiles_of_the_stated_spread(digits_model, digits_detector, digits):
    table = [[[[[-2.0, 3.0]] * 2] * len(SIZES)] * 2] * 2
    plain = Detector(digits_model, digits_detector.scorer, digits_detector.strength_net, digits_detector.witness,
                     replace(digits_detector.settings, levels=65535, quantiles=table, apart=[1000.0] * 2))   # no groups
    verdicts = plain.assess(attacked(digits, digits_model, "pgd", 0.2))
    rows = verdicts.evidence[verdicts.is_adversarial][:64]
    found = plain.campaign(rows)
    centre, spread, _ = plain.strength_net(rows[:, :PIXELS].mean(0, keepdim=True), torch.tensor([float(len(rows))]))
    own = spread[:, 0, 0].square().mean() + centre[:, 0, 0].var(unbiased=False)
    below, above = ((own + floor**2).sqrt().item() for floor in FLOORS)
    assert found.n == len(rows) and not found.harmless
    assert found.estimate == pytest.approx(centre[:, 0, 0].mean().exp().item(), rel=1e-4)
    assert found.low / found.estimate == pytest.approx(math.exp(-2 * below), rel=1e-3)
    assert found.high / found.estimate == pytest.approx(math.exp(3 * above), rel=1e-3)


def test_save_and_load_give_the_same_answers(digits, digits_model, digits_detector, tmp_path):
    digits_detector.save(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["detector.json", "detector.safetensors"]
    loaded = Detector.load(tmp_path, digits_model)
    x = digits.tensors("test")[0][:64]
    before, after = digits_detector.assess(x), loaded.assess(x)
    torch.testing.assert_close(before.evidence, after.evidence, rtol=0, atol=0)
    assert digits_detector.campaign(before.evidence) == loaded.campaign(after.evidence)
    assert loaded.null_rate == digits_detector.null_rate and loaded.settings == digits_detector.settings


def _drop(folder):
    (folder / "detector.safetensors").unlink()


def _garble(folder):
    (folder / "detector.json").write_text("{")


def _old(folder):
    card = json.loads((folder / "detector.json").read_text())
    (folder / "detector.json").write_text(json.dumps(card | {"format": 0}))


def _short(folder):
    file = folder / "detector.safetensors"
    file.write_bytes(file.read_bytes()[:1000])


def _of_which(name, part, folder):
    card = json.loads((folder / "detector.json").read_text())
    (folder / "detector.json").write_text(json.dumps(card | {name: card[name][part]}))


def _times(factor, name, folder):
    file = folder / "detector.safetensors"
    save_file({key: value * (factor if key == name else 1) for key, value in load_file(file).items()}, file)


@pytest.mark.parametrize("damage", [
    _drop, _garble, _old, _short,
    pytest.param(partial(_times, math.nan, "scorer.doubt"), id="a doubt that is no number"),
    pytest.param(partial(_times, math.inf, "scorer.doubt"), id="no doubt at all"),
    pytest.param(partial(_times, math.inf, "strength.heads.0.weight"), id="endless weights"),
    pytest.param(partial(_of_which, "quantiles", 0), id="one table without the axis"),
    pytest.param(partial(_of_which, "quantiles", slice(1)), id="one table"),
    pytest.param(partial(_of_which, "single", slice(1)), id="one grain of single inputs"),
    pytest.param(partial(_of_which, "own_odds", slice(1)), id="one mark"),
])
def test_damaged_detectors_are_refused(digits_model, digits_detector, tmp_path, damage):
    digits_detector.save(tmp_path)
    damage(tmp_path)
    with pytest.raises(ArtifactError, match="fit"):
        Detector.load(tmp_path, digits_model)


def test_fitting_is_repeatable_and_leaves_the_model_alone(digits, digits_model):
    model = copy.deepcopy(digits_model).train()
    before = copy.deepcopy(model.state_dict())
    config, steps = FitConfig(blocks=80, score_steps=20, strength_steps=20), []
    data = [digits.tensors("detector_fit", 40), digits.tensors("calibration", 40)]
    one = fit(model, *data, levels=16, seed=3, config=config, progress=steps.append)
    torch.manual_seed(99)   # the global generator has no say
    two = fit(model, *data, levels=16, seed=3, config=config)
    x = digits.tensors("test", 30)[0]
    torch.testing.assert_close(one.assess(x).evidence, two.assess(x).evidence, rtol=0, atol=0)
    assert one.settings.threshold == two.settings.threshold
    assert model.training and all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert all(weight.requires_grad and weight.grad is None for weight in model.parameters())
    assert [row["step"] for row in steps] == ["surrogates", "rehearsal", "scorer", "strength and evidence"]


@pytest.mark.parametrize(("moved", "drawn"), [(0, 0), (2, 0), (1, 9)])
def test_colour_and_odd_sizes_fit(moved, drawn):
    torch.manual_seed(0)
    model = build(Architecture(name="compact-cnn", num_classes=2, channels=3, size=11, mean=(0.5,) * 3, std=(0.2,) * 3))
    x, y = torch.rand(40, 3, 11, 11), torch.arange(40) % 2
    detector = fit(model.eval(), (x, y), (torch.rand(32, 3, 11, 11), y[:32]), levels=255,
                   config=FitConfig(blocks=80, block_size=8, score_steps=20, strength_steps=10, moved=moved,
                                    drawn=drawn))
    assert detector.campaign(detector.assess(x).evidence).n == 40
    with pytest.raises(InvalidInput, match="3"):
        detector.assess(x[:, :1])


@pytest.mark.parametrize(("side", "least", "most"), [(32, 1500, 1500), (96, 225, 375), (224, 45, 90)])
def test_large_pictures_get_few_blocks_of_either_sort(side, least, most):
    model = build(Architecture(name="compact-cnn", num_classes=2, channels=3, size=8, mean=(0.5,) * 3, std=(0.2,) * 3))
    x = torch.zeros(1, 3, side, side).expand(2000, -1, -1, -1)
    colour, grey = FitConfig.suited_to(model, x), FitConfig.suited_to(model, x[:, :1])
    assert least <= colour.drawn <= most
    assert colour.drawn / colour.blocks == pytest.approx(1500 / 1800, rel=0.05)
    assert grey.drawn / grey.blocks == pytest.approx(600 / 1800, rel=0.05)
    assert not any(FitConfig.suited_to(model, some).drawn for some in (x[:500], x[:500, :1]))   # few pictures


@pytest.mark.parametrize("count", [500, 5000])
def test_tiny_pictures_get_less_than_others_do(count):
    model = build(Architecture(name="compact-cnn", num_classes=2, channels=1, size=8, mean=(0.5,), std=(0.2,)))
    tiny, other = (FitConfig.suited_to(model, torch.zeros(1, 1, side, side).expand(count, -1, -1, -1))
                   for side in (15, 16))
    assert all(getattr(tiny, name) < getattr(other, name) for name in ("blocks", "score_steps", "strength_steps"))
    assert tiny.drawn == 0


def test_the_interval_of_single_inputs_is_set_on_calibration_pictures(digits, digits_model, small, monkeypatch):
    fitting, seen = sys.modules["redoubt.detection.fit"], []
    inner = fitting._single

    def single(told, fresh, logits, threshold):
        flagged = (logits.view(fresh.real.shape) > threshold) & fresh.real
        few = inner(told, fresh, torch.full_like(logits, threshold - 1), threshold)
        assert few == told.quantiles[0, 0, 0].tolist()   # nothing to set it on: a campaign's bounds
        found = inner(told, fresh, logits, threshold)
        seen.extend([fresh, flagged, found])
        return found

    monkeypatch.setattr(fitting, "_single", single)
    x = digits.tensors("calibration")
    detector = fit(digits_model, digits.tensors("detector_fit"), x, levels=16, config=small)
    fresh, flagged, found = seen
    assert fresh.rows.max() < len(x[0]) and detector.settings.single == found
    # Inputs of one attack err alike, so attacks are many and small.
    assert fresh.real.shape[1] <= 4 and (fresh.norm == 0).sum() >= 80
    rows = flagged & (fresh.telling & (fresh.norm == 0)).unsqueeze(1)
    verdicts = detector.assess(fresh.attacked.x.float())
    true = fresh.log_epsilon.exp().unsqueeze(1).expand_as(rows)[rows]
    low, high = (part.view(rows.shape)[rows] for part in (verdicts.low, verdicts.high))
    room = 0.5 / 16 + 1e-4   # half a level that few levels get on either side
    assert rows.sum() > 32 and 0.88 < ((low + room <= true) & (true <= high - room)).float().mean() < 0.96


def test_the_last_kinds_teach_neither_strength_nor_what_an_attack_does_to_the_model(digits, digits_model, monkeypatch):
    class Taught(Exception):
        pass

    def learned(*given, **_):
        raise Taught(*given)

    monkeypatch.setattr(sys.modules["redoubt.detection.fit"], "learn_strength", learned)
    with pytest.raises(Taught) as taught:
        fit(digits_model, digits.tensors("detector_fit"), digits.tensors("calibration"), levels=16,
            config=FitConfig(blocks=160, score_steps=60, strength_steps=5))
    *_, rehearsal, logits, usable, _, _ = taught.value.args
    assert rehearsal.real[~rehearsal.telling].any() and (logits[~rehearsal.telling] > 0).any()
    assert usable[rehearsal.telling].any() and not usable[~rehearsal.telling].any()


def test_fit_refuses_what_it_cannot_use(digits, digits_model):
    data = digits.tensors("detector_fit"), digits.tensors("calibration")
    for bad in ({"fpr": 0}, {"fpr": 0.6}, {"levels": 0}):
        with pytest.raises(InvalidInput):
            fit(digits_model, *data, **{"levels": 16, **bad})
    with pytest.raises(InvalidInput, match="16"):
        fit(digits_model, digits.tensors("detector_fit", 10), data[1], levels=16)
    with pytest.raises(InvalidInput, match="blocks"):
        FitConfig(blocks=3)
    for name in ("moved", "drawn"):
        with pytest.raises(InvalidInput, match=name):
            FitConfig(**{name: -1})


@pytest.mark.parametrize("l2", [(1e-4, 2e-4), (0.3, 0.4)])
def test_pictures_on_which_no_attack_in_linf_shows_are_refused(l2):
    """Attacks of a hair: nothing could learn how strong they are, and attacks in L2 that show do not make up for it."""
    torch.manual_seed(0)
    model, x, y = nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), torch.rand(200, 1, 8, 8), torch.randint(3, (200,))
    x = 0.4 + 0.2 * x   # in this much noise a hair is lost
    config = FitConfig(blocks=80, block_size=8, score_steps=60, strength_steps=5, linf=(0.001, 0.002), l2=l2)
    with pytest.raises(InvalidInput, match=r"epsilon 0.001 to 0.002, the detector tells [0-7] from .* than these 100"):
        fit(model.eval(), (x[:100], y[:100]), (x[100:], y[100:]), levels=255, config=config)


@pytest.mark.parametrize("bad", [torch.zeros(0, 64), torch.zeros(5, 3), torch.full((5, 64), float("nan"))],
                         ids=["none", "narrow", "nan"])
def test_campaign_refuses_bad_evidence(digits_detector, bad):
    with pytest.raises(InvalidInput, match="evidence"):
        digits_detector.campaign(bad)


@pytest.mark.parametrize(("n", "fpr"), [(1000, 0.01), (187, 0.01), (50, 0.01), (2000, 0.05)])
def test_threshold_and_null_rate_keep_their_promise(n, fpr):
    # Uniform scores: the true rate at a threshold t is 1 - t, whatever was drawn.
    generator = torch.Generator().manual_seed(n)
    rates, bounds = [], []
    for _ in range(400):
        threshold, bound = conformal_threshold(torch.rand(n, generator=generator), fpr)
        rates.append(1 - threshold)
        bounds.append(bound)
    assert sum(rates) / 400 <= max(fpr, 1 / (n + 1)) * 1.1
    assert sum(rate > bound for rate, bound in zip(rates, bounds, strict=True)) <= 12   # 1 % of 400, and chance
    assert bounds[0] > fpr
