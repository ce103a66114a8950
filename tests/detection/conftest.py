"""A detector fitted on the digits once for all tests here."""

from __future__ import annotations

import pytest

from redoubt.detection import Detector, FitConfig, fit


@pytest.fixture(scope="session")
def small(digits, digits_model) -> FitConfig:
    """What such small pictures are given, for tests that alter a part of it: fifteen seconds."""
    return FitConfig.suited_to(digits_model, digits.tensors("train")[0])


@pytest.fixture(scope="session")
def digits_detector(digits, digits_model, small) -> Detector:
    return fit(digits_model, digits.tensors("detector_fit"), digits.tensors("calibration"), levels=16, config=small)
