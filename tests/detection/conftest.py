"""A detector fitted on the digits once for all tests here."""

from __future__ import annotations

import pytest

from redoubt.detection import Detector, FitConfig, fit


@pytest.fixture(scope="session")
def small() -> FitConfig:
    """What `FitConfig.suited_to` gives so few pictures, for tests that alter a part of it: twenty seconds."""
    return FitConfig(blocks=900, strength_steps=1200, score_steps=800)


@pytest.fixture(scope="session")
def digits_detector(digits, digits_model, small) -> Detector:
    return fit(digits_model, digits.tensors("detector_fit"), digits.tensors("calibration"), levels=16, config=small)
