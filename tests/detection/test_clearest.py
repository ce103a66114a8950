"""Where most inputs carry one pattern, those that hardly show it are not read with the others."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from redoubt.attacks import on_lattice, pgd
from redoubt.detection import Detector, reading
from redoubt.detection.networks import DETAIL, ODDS, PIXELS, SKETCH
from redoubt.threat import ThreatModel

N = 64


@pytest.fixture(scope="module")
def evidence(digits, digits_model, digits_detector) -> torch.Tensor:
    x, y = digits.tensors("test")
    x_adv = pgd(digits_model, x, y, ThreatModel("Linf", 0.2), generator=torch.Generator().manual_seed(1))
    verdicts = digits_detector.assess(on_lattice(x_adv, 16))
    rows = verdicts.evidence[verdicts.is_adversarial][:N]
    rows[:, DETAIL:] = 0.0   # nothing in common
    return rows


@pytest.fixture(scope="module")
def spread(digits_detector, evidence) -> torch.Tensor:
    found = digits_detector.reader.single(evidence[:, :PIXELS])[1][:, 0].detach()
    assert len(found) == N and len(found.unique()) == N
    return found


@pytest.mark.parametrize(("carry", "surer", "kept"), [
    (N, N, N), (N, 48, 48), (N, 20, 32),      # half at least
    (40, 0, 32), (20, 0, 44), (0, 0, N),      # who does not carry the pattern stays
])
def test_what_is_read_least_surely_is_left_out(
    digits_detector, evidence, spread, monkeypatch, carry, surer, kept
):
    order = spread.sort().values
    monkeypatch.setattr(reading, "UNCLEAR", 9.0 if surer == N else order[surer].item())
    sharing, pixels = torch.arange(N) < carry, evidence[:, :PIXELS]
    whole = digits_detector.reader.pooled(pixels.mean(0), N)
    found = digits_detector.reader.clearest(pixels, whole, sharing)
    left = spread.masked_fill(~sharing, 0.0).argsort()[:kept]
    expected = digits_detector.reader.pooled(pixels[left].mean(0), kept)
    assert found.n == kept and set((~sharing).nonzero()[:, 0].tolist()) <= set(left.tolist())
    torch.testing.assert_close(found.centre, expected.centre)
    torch.testing.assert_close(found.spread, expected.spread)
    assert (found.norm, found.harmless, found.logit) == (whole.norm, whole.harmless, whole.logit)


def test_only_where_most_carry_one_pattern(digits_detector, evidence, monkeypatch):
    asking = Detector(digits_detector.model, digits_detector.scorer, digits_detector.strength_net,
                      digits_detector.witness, replace(digits_detector.settings, asks=True, apart=[1000.0] * 2))
    pattern = evidence.clone()
    pattern[:, ODDS] = 0.0
    found = {}
    for carry in (0, 30, N):
        rows = pattern.clone()
        rows[:carry, DETAIL:] = torch.nn.functional.normalize(torch.ones(SKETCH), dim=0)
        for cut in (9.0, 0.0):
            monkeypatch.setattr(reading, "UNCLEAR", cut)
            found[carry, cut] = asking.campaign(rows)
    assert [found[carry, 9.0].shared for carry in (0, 30, N)] == [False, False, True]
    assert found[0, 9.0] == found[0, 0.0] and found[30, 9.0] == found[30, 0.0]
    assert found[N, 9.0].estimate != pytest.approx(found[N, 0.0].estimate, rel=1e-4) and found[N, 0.0].n == N
