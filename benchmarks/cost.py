"""What detection costs beside the classifier: time for an input, and weights in memory.

Random weights (what was learned costs nothing) on random pictures. As on clean traffic the detector looks at one in
five again and flags one in a hundred, or it does both with all of them, as in a flood; flagged ones are put to the
classifier within serving's budget. The classifier's answer is handed to the detector, as serving does. Classifier alone
and both together take turns; printed is the median of the rounds' ratios. Asked for: at most 1.5 x on clean traffic for
PreActResNet-18, and less than twice the weights.
"""

from __future__ import annotations

import math
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from benchmarks.common import Report, arguments, table
from benchmarks.serving.servers import random_version
from redoubt.detection import Budget, Detector
from redoubt.detection.scoring import DOUBTED, score

HEADER = ("architecture", "picture", "batch", "n", "classifier ms", "clean traffic", "flood", "weights MB",
          "detector MB")
CASES = {"compact-cnn": (1, 28), "preactresnet-18": (3, 32)}
MOST = 1.5


def seconds(detector: Detector, x: Tensor, batch: int, watched: bool) -> float:
    """For each input of x, in batches."""
    began = time.perf_counter()
    for part in x.split(batch):
        probabilities = detector.model(part).softmax(1)
        if watched:
            detector.assess(part, probabilities)
    return (time.perf_counter() - began) / len(x)


def megabytes(*modules: torch.nn.Module) -> float:
    return sum(value.nbytes for module in modules for value in module.state_dict().values()) / 1e6


def _between(scores: Tensor, share: float) -> float:
    """A line that the share of the scores exceeds."""
    ordered = torch.cat([scores.sort(descending=True).values, scores.min()[None] - 1])
    at = round(share * len(scores))
    return (ordered[at - 1 : at + 1].mean()).item()


@torch.no_grad()
def case(report: Report, name: str, batch: int, rounds: int, n: int) -> list:
    channels, size = CASES[name]
    with tempfile.TemporaryDirectory() as folder:
        bundle = random_version(Path(folder), name, channels, size, report.given.seed)
        detector = Detector.load(folder, bundle.model())
    x = torch.rand(n, channels, size, size, generator=torch.Generator().manual_seed(report.given.seed))
    detector.scorer.doubt.fill_(math.inf)
    first, ratios = score(detector.scorer, detector.model, x), {}
    for traffic, share, doubted in (("clean", 0.01, DOUBTED), ("flood", 1.0, 1.0)):
        detector.scorer.doubt.fill_(_between(first, doubted))
        scores = score(detector.scorer, detector.model, x)
        object.__setattr__(detector.settings, "threshold", _between(scores, share))
        flagged = int(detector.assess(x).is_adversarial.sum())
        assert flagged == round(share * n), f"{flagged} of {n} flagged"
        detector.budget, pairs = Budget(), []
        for _ in range(rounds + 1):
            pairs.append((seconds(detector, x, batch, True), seconds(detector, x, batch, False)))
        ratios[traffic] = median(both / alone for both, alone in pairs[1:])
    alone = median(alone for _, alone in pairs[1:])
    report.figures.setdefault("cost", []).append(
        {"architecture": name, "batch": batch, "n": n, "seconds": alone, **ratios})
    report.require(name != "preactresnet-18" or ratios["clean"] <= MOST,
                   f"{name}, batch {batch}: {ratios['clean']:.2f} x on clean traffic, at most {MOST} is asked for")
    weights = megabytes(detector.model), megabytes(detector.scorer, detector.strength_net, detector.witness)
    report.require(name != "preactresnet-18" or weights[1] < weights[0], f"{name}: the detector doubles the weights")
    return [name, f"{channels}x{size}x{size}", batch, n, 1000 * alone, f"{ratios['clean']:.2f} x",
            f"{ratios['flood']:.2f} x", *weights]


def main() -> int:
    given = arguments(__doc__)
    report = Report(given, "Cost of detection")
    rounds, rows = (2 if given.quick else 5), []
    for name in CASES:
        for batch in (1, 32):
            rows.append(case(report, name, batch, rounds, 100 if given.quick else 300))
    report.say(table(HEADER, rows))
    return report.close()


if __name__ == "__main__":
    sys.exit(main())
