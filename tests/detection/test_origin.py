"""Upper bounds by where an attack comes from: lower along the model's own gradient, higher from elsewhere."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from redoubt.attacks import pgd
from redoubt.detection import Detector
from redoubt.detection.bounds import ANY, FLOORS, LEVELS, OWN, SINGLE_FLOOR, SIZES, narrowed
from redoubt.detection.fit import _own_odds
from redoubt.detection.networks import DETAIL, ODDS, PIXELS, SKETCH
from redoubt.detection.reading import ELSEWHERE, MARGIN
from redoubt.detection.rehearsal import KINDS, OWN_KINDS, TELLING
from redoubt.threat import ThreatModel

N = 64


@pytest.fixture(scope="module")
def detector(digits_detector) -> Detector:
    """With bounds that can be foretold; no groups, and no lattice to round to."""
    grains = [[[-2.0, 3.0]] * 2] * len(SIZES), [[[-2.0, 1.0]] * 2] * len(SIZES)
    settings = replace(digits_detector.settings, asks=True, levels=65535, apart=[1000.0] * 2, own_odds=[0.2, 1.2],
                       quantiles=[[table] * 2 for table in grains], single=[[-0.5, 1.5]] * 2)
    return Detector(digits_detector.model, digits_detector.scorer, digits_detector.strength_net,
                    digits_detector.witness, settings)


@pytest.fixture(scope="module")
def evidence(digits, digits_model, detector) -> torch.Tensor:
    x, y = digits.tensors("test")
    verdicts = detector.assess(pgd(digits_model, x, y, ThreatModel("Linf", 0.2),
                                   generator=torch.Generator().manual_seed(1)))
    rows = verdicts.evidence[verdicts.is_adversarial][:N]
    rows[:, DETAIL:] = 0.0   # nothing in common: attacks on so few pixels have much
    return rows


@pytest.mark.parametrize(("odds", "asked", "quantile", "elsewhere"), [
    (-1.0, N, 3.0, 1.0), (0.2, N, 3.0, 1.0),     # surely along another gradient
    (0.7, N, 2.0, 0.5), (0.45, N, 2.5, 0.75),    # between
    (1.2, N, 1.0, 0.0), (4.0, N, 1.0, 0.0),      # surely along this model's
    (1.2, 32, 1.0, 0.0), (-1.0, 32, 3.0, 1.0),   # those that were not asked do not count
    (1.2, 24, 1.5, 0.0), (-1.0, 24, 3.0, 0.75), (1.2, 16, 2.0, 0.0), (-1.0, 16, 3.0, 0.5),   # few tell less
    (1.2, 15, 3.0, 0.0), (-1.0, 15, 3.0, 0.0), (1.2, 0, 3.0, 0.0),   # too few do not tell
])
def test_the_upper_bound_follows_the_models_evidence(detector, evidence, odds, asked, quantile, elsewhere):
    rows = evidence.clone()
    rows[:, ODDS] = 0.0
    rows[:asked, ODDS] = odds
    found = detector.campaign(rows)
    _, spread, _ = detector.strength_net.read(rows[:, :PIXELS].mean(0, keepdim=True), torch.tensor([float(N)]))
    lower, upper = ((spread[0, 0].square() + floor**2).sqrt().item() for floor in (FLOORS[0], FLOORS[-1]))
    extra = MARGIN + elsewhere * ELSEWHERE
    raised = extra / 2 * (quantile - 1) / 2   # the estimate of what went another way
    assert math.log(found.high / found.estimate) == pytest.approx(quantile * upper + extra - raised, rel=1e-3)
    assert math.log(found.low / found.estimate) == pytest.approx(-2 * lower - raised, rel=1e-3)   # of all kinds, always


def test_one_pattern_on_all_inputs_is_known_for_itself(detector, evidence):
    """Whatever the model says: a universal perturbation climbs its gradient too, but that of all pictures at once."""
    unasked = evidence.clone()
    unasked[:, ODDS] = 0.0
    pattern = unasked.clone()
    pattern[:, DETAIL:] = torch.nn.functional.normalize(torch.ones(SKETCH), dim=0)
    asked = pattern.clone()
    asked[:, ODDS] = 4.0
    found = detector.campaign(pattern)
    assert found.shared and not detector.campaign(unasked).shared
    assert found.high == pytest.approx(detector.campaign(unasked).high)
    assert detector.campaign(asked).high == pytest.approx(found.high)
    asked[:, DETAIL:] = 0.0
    assert detector.campaign(asked).high < 0.99 * found.high


@pytest.mark.parametrize("asked", [N, 32, 16])
@pytest.mark.parametrize("loud", [3.0, -3.0])
def test_three_of_sixty_four_move_it_by_a_step_of_the_grid_or_two(detector, evidence, loud, asked):
    """Of odds that scatter as those of real campaigns do, and lie between the marks, where they count for most."""
    spread = 1.3 * torch.randn(asked, generator=torch.Generator().manual_seed(3))
    odds = (0.7 + spread - spread.mean()).clamp(-3, 3)
    quiet = evidence.clone()
    quiet[:, ODDS] = torch.cat([odds, torch.zeros(N - asked)])
    rows = quiet.clone()
    rows[(odds - loud).abs().topk(3).indices, ODDS] = loud
    before, after = (detector.reader.origin(part[:, ODDS], False)[0] for part in (quiet, rows))
    assert 0.02 < abs(after - before) < 0.35
    steps = 1 if asked == N else 2   # twice as far where half were asked about, and no farther where fewer were
    assert abs(math.log(detector.campaign(rows).high / detector.campaign(quiet).high)) < steps * math.log(1.05)


@pytest.mark.parametrize(("n", "asked", "shared", "expected"), [
    (16, 16, False, (1.0, MARGIN)), (15, 15, False, (0.0, 0.0)), (40, 15, False, (0.0, MARGIN)),
    (40, 16, False, (0.8, MARGIN)), (64, 16, False, (0.5, MARGIN)), (32, 16, False, (1.0, MARGIN)),
    (16, 16, True, (0.0, MARGIN)), (15, 15, True, (0.0, 0.0)),
])
def test_few_inputs_tell_nothing(detector, n, asked, shared, expected):
    odds = torch.zeros(n)
    odds[:asked] = 2.0
    assert detector.reader.origin(odds, shared) == expected


def test_in_l2_origin_says_nothing(detector, evidence):
    """What the marks were set on is Linf."""
    apart = Detector(detector.model, detector.scorer, detector.strength_net, detector.witness,
                     replace(detector.settings, l2_logit=-100.0))
    found = []
    for odds in (0.0, -1.0, 4.0):
        rows = evidence.clone()
        rows[:, ODDS] = odds
        found.append(apart.campaign(rows))
    assert {one.norm for one in found} == {"L2"} and len({one.high for one in found}) == 1


def test_odds_that_inputs_were_chosen_by_say_nothing(detector, evidence):
    """Where pixels take a part for harmless and the model speaks of the others, those are the attack."""
    part = replace(detector.reader.pooled(evidence[:16, :PIXELS].mean(0), 16), harmless=True)
    rows = evidence.clone()
    rows[:16, ODDS], rows[16:, ODDS] = -0.5, 3.0
    chosen, reading, told, witnessed, _ = detector._judged(rows, torch.arange(16), part)
    assert witnessed and not reading.harmless and sorted(chosen.tolist()) == list(range(16, N))
    assert detector.reader.origin(told, False) == (0.0, MARGIN) != detector.reader.origin(rows[chosen, ODDS], False)


def test_a_group_is_judged_by_its_own_odds(digits, digits_model, detector, evidence):
    """Weak decoys whose odds are low do not make a strong attack along the gradient one from elsewhere."""
    x, y = digits.tensors("test")
    weak = detector.assess(pgd(digits_model, x, y, ThreatModel("Linf", 0.08),
                               generator=torch.Generator().manual_seed(4)))
    weak = weak.evidence[weak.is_adversarial][:40]
    weak[:, DETAIL:], weak[:, ODDS] = 0.0, -1.0
    strong = evidence[:24].clone()
    strong[:, ODDS] = 2.0
    parted = Detector(detector.model, detector.scorer, detector.strength_net, detector.witness,
                      replace(detector.settings, apart=[2.0] * 2))
    rows = torch.cat([weak, strong])
    own, best = parted.reader.strongest(rows[:, :PIXELS])
    assert len(weak) == 40 and (own >= 40).float().mean() > 0.9 and len(own) >= 16
    _, _, high = parted.reader.bounds(best.centre[0], best.spread[0], best.coarse, 0, best.n, 1.0, MARGIN)
    assert parted.campaign(rows).high == pytest.approx(high.item(), rel=1e-4)


@pytest.mark.parametrize("marks", [[0.0, 0.0], [1.0, 0.5]])
def test_where_kinds_are_not_told_apart_all_kinds_count(detector, evidence, marks):
    blind = Detector(detector.model, detector.scorer, detector.strength_net, detector.witness,
                     replace(detector.settings, own_odds=marks))
    rows = evidence.clone()
    rows[:, ODDS] = 4.0
    unasked = evidence.clone()
    unasked[:, ODDS] = 0.0
    assert blind.campaign(rows).high == pytest.approx(blind.campaign(unasked).high)


def test_one_input_by_itself_has_an_interval_of_its_own(detector, digits, digits_model):
    x, y = digits.tensors("test")
    verdicts = detector.assess(pgd(digits_model, x[:64], y[:64], ThreatModel("Linf", 0.2)))
    flagged = verdicts.is_adversarial & (verdicts.high < 0.4)   # the range ends at 0.45
    _, spread, _ = detector.reader.single(verdicts.evidence[flagged][:, :PIXELS])
    unit = (spread[:, 0].square() + SINGLE_FLOOR**2).sqrt()
    assert flagged.sum() > 16
    torch.testing.assert_close((verdicts.high / verdicts.strength)[flagged].log(), 1.5 * unit, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close((verdicts.low / verdicts.strength)[flagged].log(), -0.5 * unit, rtol=1e-3, atol=1e-4)


def test_only_the_upper_bound_is_lowered_and_never_raised():
    every = torch.tensor([[-3.0, 3.0], [-3.0, 1.0]])
    own = torch.tensor([[-1.0, 1.0], [-4.0, 2.0]])
    table = narrowed(every, own)
    assert table.shape == (2, 2, len(LEVELS)) and torch.equal(table[ANY], every)
    assert table[OWN].tolist() == [[-3.0, 1.0], [-3.0, 1.0]]


class Rehearsed:
    """What `_own_odds` asks of a rehearsal: 16 blocks of each kind, and four of each in L2, of three asked inputs."""

    def __init__(self):
        self.kind = torch.arange(len(KINDS)).repeat_interleave(20)
        self.norm = (torch.arange(len(self.kind)) % 20 >= 16).long()
        self.telling = self.kind < TELLING
        odds = torch.tensor([1.0, 2.0, 0.9, 3.0, 1.5, -0.2, 0.4, 0.1])[self.kind[self.telling]]
        odds = odds + 50 * self.norm[self.telling]   # L2 says nothing of Linf
        self.asked = odds.view(-1, 1, 1).repeat(1, 3, 1)


class Echo:
    """A witness that says what is put to it."""

    def testimony(self, measured):
        return measured[:, 0]


@pytest.mark.parametrize(("gone", "marks"), [
    ((), [0.4, 0.65]), ((2,), [0.4, 0.7]), ((6,), [0.1, 0.5]),
    (tuple(range(OWN_KINDS)), [0.0, 0.0]), (tuple(range(OWN_KINDS, TELLING)), [0.0, 0.0]),
])
def test_the_marks_lie_between_the_kinds(gone, marks):
    """Of kinds of which hardly an input is flagged nothing is said."""
    rehearsal = Rehearsed()
    usable = torch.ones(len(rehearsal.kind), 5, dtype=torch.bool)
    for kind in gone:
        usable[rehearsal.kind == kind] = False
        usable[(rehearsal.kind == kind).nonzero()[:10, 0], :3] = True   # thirty inputs
    assert _own_odds(Echo(), rehearsal, usable) == pytest.approx(marks)
