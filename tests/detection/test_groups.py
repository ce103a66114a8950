"""The strongest group of a campaign: found when it is there, and only then."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from benchmarks.common import Report
from benchmarks.steering import grouped
from redoubt.attacks import fgsm, on_lattice, pgd
from redoubt.detection import Detector, decide, match
from redoubt.detection.benign import benign
from redoubt.detection.group_calibration import NEVER, _largest_excess, calibrate_groups
from redoubt.detection.groups import excess, least, nested, upper_means
from redoubt.detection.networks import PIXELS
from redoubt.detection.strength import HARMLESS, Rehearsed
from redoubt.threat import ThreatModel

WEAK, STRONG = 0.12, 0.35
HALF = 0.5 / 16   # of a level: 0.35 is sent as 0.375


@pytest.fixture(scope="module")
def seen(digits, digits_model, digits_detector):
    """Evidence of flagged inputs by (attack, epsilon)."""
    x, y = digits.tensors("test")
    out = {}
    for name in ("fgsm", "pgd"):
        for epsilon in (WEAK, 0.2, STRONG):
            threat, generator = ThreatModel("Linf", epsilon), torch.Generator().manual_seed(1)
            x_adv = fgsm(digits_model, x, y, threat)
            if name == "pgd":
                x_adv = pgd(digits_model, x, y, threat, generator=generator)
            verdicts = digits_detector.assess(on_lattice(x_adv, 16))
            out[name, epsilon] = verdicts.evidence[verdicts.is_adversarial]
    return out


def pooled(detector: Detector, evidence: torch.Tensor) -> float:
    """The estimate of the plain mean, without any group."""
    reading = detector.reader.pooled(evidence[:, :PIXELS].mean(0), len(evidence))
    return reading.centre[reading.norm].exp().item()


def altered(detector: Detector, **settings) -> Detector:
    """The detector with other settings."""
    return Detector(detector.model, detector.scorer, detector.strength_net, detector.witness,
                    replace(detector.settings, **settings))


@pytest.mark.parametrize(("n", "strong"), [(64, 32), (64, 16), (80, 16), (160, 32), (200, 100)])
@pytest.mark.parametrize("decoy", ["fgsm", "pgd"])
def test_weak_decoys_hide_no_strong_attack(digits_detector, seen, decoy, n, strong):
    evidence = torch.cat([seen[decoy, WEAK][: n - strong], seen["pgd", STRONG][:strong]])
    evidence = evidence[torch.randperm(n, generator=torch.Generator().manual_seed(n))]
    strength = digits_detector.campaign(evidence)
    assert strength.norm == "Linf" and strength.n == n
    assert 0.25 < strength.low < STRONG + HALF and match(strength, ceiling=0.6) >= STRONG
    # A champion that covers the decoys is asked to learn the rest.
    assert decide(strength, (ThreatModel("Linf", 0.2),), ceiling=0.6).retrain


@pytest.mark.parametrize("name", ["fgsm", "pgd"])
@pytest.mark.parametrize("epsilon", [WEAK, 0.2, STRONG])
def test_one_attack_is_read_as_a_whole(digits_detector, seen, name, epsilon):
    generator = torch.Generator().manual_seed(4)
    for n in (64, 128, 200):
        for _ in range(5):
            rows = torch.randperm(len(seen[name, epsilon]), generator=generator)[:n]
            evidence = seen[name, epsilon][rows]
            assert digits_detector.campaign(evidence).estimate == pytest.approx(pooled(digits_detector, evidence))


@pytest.mark.parametrize("strong", [2, 4, 6, 7])
def test_a_handful_is_no_group(digits_detector, seen, strong):
    evidence = torch.cat([seen["pgd", WEAK][: 64 - strong], seen["pgd", STRONG][:strong]])
    assert digits_detector.campaign(evidence).high < 0.2
    few = torch.cat([seen["pgd", WEAK][:15], seen["pgd", STRONG][:16]])   # too few for two groups: the mean
    assert digits_detector.campaign(few).estimate == pytest.approx(pooled(digits_detector, few))


@pytest.mark.parametrize("strong", [12, 14, 20])
def test_decoys_inside_a_group_are_not_read_with_it(digits_detector, seen, strong):
    """A group has at least 16 inputs: here four or two of these are decoys."""
    attack = seen["pgd", STRONG][:strong]
    strength = digits_detector.campaign(torch.cat([seen["fgsm", WEAK][: 64 - strong], attack]))
    assert strength.estimate == pytest.approx(pooled(digits_detector, attack), rel=0.002)


@pytest.mark.parametrize("decoy", ["fgsm", "pgd"])
@pytest.mark.parametrize("strong", [28, 32, 36, 40])
def test_halves_of_a_campaign_are_told_apart(digits_detector, seen, decoy, strong):
    """A mean over both reads much as the stronger half does: that is held against the other."""
    found = []
    for seed in range(10):
        generator = torch.Generator().manual_seed(seed)
        parts = [part[torch.randperm(len(part), generator=generator)[:count]]
                 for part, count in ((seen[decoy, 0.2], 64 - strong), (seen["pgd", STRONG], strong))]
        rows, _ = digits_detector.reader.strongest(torch.cat(parts)[:, :PIXELS])
        found.append(((rows >= 64 - strong).sum() / strong).item() if len(rows) <= strong + 3 else 0.0)
    assert min(found) > 0.75 and sum(found) > 9.5


def test_a_group_that_leaves_little_is_held_against_the_whole(digits_detector, seen, monkeypatch):
    """Of 64 inputs 22 and more speak for themselves; of fewer the lowest of one kind would."""
    held = []
    monkeypatch.setattr("redoubt.detection.reading.excess", lambda group, base, *_: held.append(base) or torch.zeros(1))
    for strong in (42, 43):
        evidence = torch.cat([seen["fgsm", WEAK][: 64 - strong], seen["pgd", STRONG][:strong]])[:, :PIXELS]
        rest, whole = (digits_detector.reader.pooled(part.mean(0), len(part)).centre[:1]
                       for part in (evidence[: 64 - strong], evidence))
        held.clear()
        digits_detector.reader.strongest(evidence)
        torch.testing.assert_close(held[0], rest if strong == 42 else whole)


def test_a_group_keeps_its_norm_when_decoys_leave_it(digits_detector, seen):
    detector = altered(digits_detector, l2_logit=-100.0, apart=digits_detector.settings.apart[:1] * 2)
    evidence = torch.cat([seen["fgsm", WEAK][:52], seen["pgd", STRONG][:12]])
    rows, reading = detector.reader.strongest(evidence[:, :PIXELS])
    assert len(rows) == 12 and reading.norm == 1   # of 12 inputs by themselves none would be told


def test_what_is_left_of_a_group_is_more_than_false_alarms(digits_detector, seen):
    """Of 80 inputs 12 are 15 %: with four decoys they make 16, which by its size would do."""
    evidence = torch.cat([seen["fgsm", WEAK][:68], seen["pgd", STRONG][:12]])
    assert len(digits_detector.reader.strongest(evidence[:, :PIXELS])[0]) == 80


@pytest.fixture(scope="module")
def noisy(digits, digits_detector):
    """Evidence of flagged pictures under noise."""
    sent = torch.cat([benign("gaussian", digits.tensors("test")[0], levels=16, amount=0.6,
                             generator=torch.Generator().manual_seed(seed)) for seed in (5, 6)])
    verdicts = digits_detector.assess(sent)
    return verdicts.evidence[verdicts.is_adversarial]


def test_harmless_pictures_hide_no_attack(digits_detector, noisy, seen):
    # So few rehearsed blocks vouch for no bound but a wide one; usual ones are taken here.
    detector = altered(digits_detector, attack_logit=-4.0, harmless_logit=-3.0)
    mixed = torch.cat([noisy, seen["pgd", STRONG][:16]])
    assert len(noisy) >= 16 and detector.campaign(noisy).harmless
    assert detector.reader.pooled(mixed[:, :PIXELS].mean(0), len(mixed)).harmless   # as a whole they would hide it
    strength = detector.campaign(mixed)
    assert not strength.harmless and strength.low > 0.2 and strength.n == len(mixed)


def test_a_strong_group_is_found_behind_decoys_and_harmless_pictures(digits_detector, noisy, seen):
    """First the attack among the harmless, then the group in it: rows of rows."""
    detector, strong = altered(digits_detector, attack_logit=-3.0, harmless_logit=-2.0), 24
    evidence = torch.cat([noisy, seen["fgsm", WEAK][:20], seen["pgd", STRONG][:strong]])
    order = torch.randperm(len(evidence), generator=torch.Generator().manual_seed(3))
    assert detector.reader.pooled(evidence[:, :PIXELS].mean(0), len(evidence)).harmless
    rows, reading = detector.reader.strongest(evidence[order][:, :PIXELS])
    assert len(rows) >= 16 and order[rows].min() >= len(evidence) - strong
    assert reading.centre[0].exp().item() == pytest.approx(0.375, rel=0.1)


def test_bounds_of_groups_are_learned(digits_detector):
    assert digits_detector.settings.attack_logit <= 0
    linf, l2 = digits_detector.settings.apart
    assert 0 < linf < 100 and (0 < l2 < 100 or l2 == NEVER)   # so few are flagged in L2 that there may be no group


def test_a_norm_that_was_not_rehearsed_has_no_groups(digits_detector):
    net, generator = digits_detector.strength_net, torch.Generator().manual_seed(0)
    inputs = torch.randn(40, 16, len(net.mean) + 1, generator=generator)
    blocks = Rehearsed(inputs=inputs, usable=torch.ones(40, 16, dtype=torch.bool), log_epsilon=torch.zeros(40),
                       norm=torch.arange(40) % 2 * HARMLESS, kind=torch.zeros(40), coarse=torch.zeros(40))
    apart, _ = calibrate_groups(net, blocks, inputs[0], levels=16, seed=0)
    assert 0 <= apart[0] < NEVER and apart[1] == NEVER


def test_what_parts_show_by_chance_does_not_hang_on_the_order(digits_detector, seen):
    """In service inputs come in any order; what they scatter must go with them."""
    rows = torch.cat([seen["fgsm", WEAK][:8], seen["pgd", STRONG][:8]])[:, :PIXELS].unsqueeze(0)
    mixed = rows[:, torch.randperm(16, generator=torch.Generator().manual_seed(0))]
    found = [_largest_excess(digits_detector.strength_net, part, torch.zeros(1, dtype=torch.long), 16)
             for part in (rows, mixed)]
    assert found[0].item() > 1
    torch.testing.assert_close(*found)


def test_candidates_part_where_the_gap_is():
    key = torch.tensor([[9.0, 8.9, 8.8, 8.7, 1.3, 1.2, 1.1, 1.0], [5.0, 4.9, 1.4, 1.3, 1.2, 1.1, 1.05, 1.0]])
    sizes = nested(key, 2)
    assert sizes[0].tolist() == [4, 2]
    assert sizes[1].tolist() == [2, 2]
    assert nested(key, 8)[0].tolist() == [8, 8]    # no part is that large
    assert nested(key, 3)[0].tolist() == [4, 3]    # the two at 5 are too few


def test_means_and_least():
    rows = torch.arange(12.0).view(1, 6, 2)
    torch.testing.assert_close(upper_means(rows, [torch.tensor([2])])[0], torch.tensor([[1.0, 2.0]]))
    assert [least(n) for n in (20, 64, 100, 512)] == [16, 16, 18, 93]


def test_hard_to_read_inputs_do_not_excuse_a_group():
    single = torch.tensor([[1.0, 1.0, 1.0, 0.0, 0.0, 0.0]])
    scatter = torch.tensor([[0.9, 0.9, 0.9, 0.2, 0.2, 0.2]])
    found = excess(torch.tensor([1.0]), torch.tensor([0.4]), single, scatter, torch.tensor([3]))
    assert found.item() == pytest.approx(0.6 / (1.5 * 0.2))


def test_excess_is_in_units_of_the_group_and_none_where_the_group_is_mixed():
    single = torch.tensor([[1.0, 0.9, 0.8, 0.1, 0.0, -0.1, -0.1]]).repeat(4, 1)
    scatter = torch.tensor([[0.1, 0.1, 0.1, 0.5, 0.5, 0.5, 0.5]]).repeat(4, 1)
    group, whole, size = torch.tensor([0.9, 0.7, 0.9, 0.6]), torch.tensor(0.4).repeat(4), torch.tensor([3, 3, 4, 5])
    # By the lesser of mean and median; one weak input of four is suffered, two of five are not.
    expected = [(0.9 - 0.4) / 0.1, (0.7 - 0.4) / 0.1, (0.8 - 0.4) / 0.1, 0.0]
    torch.testing.assert_close(excess(group, whole, single, scatter, size), torch.tensor(expected))
    # Half as far above the whole as the mean is near enough.
    near, far = (excess(group[:1], whole[:1], torch.tensor([[0.9, 0.9, 0.4 + part, 0.0]]), scatter[:1, :4], size[:1])
                 for part in (0.26, 0.24))
    assert near > 0 and far == 0


@pytest.mark.parametrize("blind", [False, True])
def test_the_benchmark_names_groups_that_are_not_answered(digits_detector, seen, blind):
    detector = altered(digits_detector, apart=[NEVER, NEVER]) if blind else digits_detector
    parts = {"PGD-20": seen["pgd", STRONG], "FGSM": seen["fgsm", WEAK]}
    scene = SimpleNamespace(loaded=SimpleNamespace(detector=detector), flagged=lambda name, epsilon, part: parts[name])
    report = Report(SimpleNamespace(seed=0, quick=True, json=None, check=True), "groups")
    grouped(report, scene, 3)
    assert any(line.startswith("14 of 64 inputs at 0.2 among others at 0.05: ") for line in report.shortfalls) is blind
    assert blind or not report.shortfalls
