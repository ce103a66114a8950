"""Noticing attacks without labels, and measuring them: detector, monitor, matching."""

from redoubt.detection.detector import Detector
from redoubt.detection.fit import FitConfig, fit
from redoubt.detection.matching import Decision, decide, match
from redoubt.detection.monitor import Monitor, RecentInputs, all_clear, digests
from redoubt.detection.verdicts import Strength, Verdicts
from redoubt.detection.witness import Budget

__all__ = [
    "Budget", "Decision", "Detector", "FitConfig", "Monitor", "RecentInputs", "Strength", "Verdicts", "all_clear",
    "decide", "digests", "fit", "match",
]
