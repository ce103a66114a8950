"""Fixtures that several rooms' tests share: the prepared digits, and small models trained on them once a session."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch

from redoubt.data import Prepared, load_source, prepare
from redoubt.detection import FitConfig, fit
from redoubt.models import Architecture, Classifier, build
from redoubt.registry import Registry
from redoubt.threat import ThreatModel
from redoubt.training import TrainConfig, train

torch.set_num_threads(1)
os.environ.pop("COLUMNS", None)   # a worker of pytest-xdist gets it from a window that our commands do not have

FASHION = Path("/usr/share/datasets/fashion-mnist")


def pytest_collection_modifyitems(items):
    if FASHION.is_dir():
        return
    missing = pytest.mark.skip(reason=f"no Fashion-MNIST in {FASHION}: install Debian's dataset-fashion-mnist")
    for item in items:
        if item.get_closest_marker("fashion"):
            item.add_marker(missing)


@pytest.fixture(scope="session")
def digits(tmp_path_factory) -> Prepared:
    """The embedded digits, prepared with seed 0. Read only: tests that alter files make their own copy."""
    return prepare(load_source("digits"), tmp_path_factory.mktemp("digits") / "data", seed=0)


@pytest.fixture(scope="session")
def train_digits(digits):
    """A function (objective, threats=(), epochs=..., seed=..., **settings) -> a compact CNN trained on the digits."""

    def run(objective: str = "standard", threats=(), *, epochs: int = 12, seed: int = 0, **settings) -> Classifier:
        torch.manual_seed(seed)
        model = build(
            Architecture(
                name="compact-cnn", num_classes=10, channels=1, size=8,
                mean=digits.metadata["mean"], std=digits.metadata["std"],
            )
        )
        config = TrainConfig(
            objective=objective, threats=threats, epochs=epochs, batch_size=64, seed=seed, average=0.9, **settings
        )
        return train(model, digits.tensors("train"), digits.tensors("validation"), config).model

    return run


@pytest.fixture(scope="session")
def digits_model(train_digits) -> Classifier:
    """An undefended digits model in eval mode. Do not alter it: copy it first."""
    return train_digits("standard")


@pytest.fixture(scope="session")
def robust_digits_model(train_digits) -> Classifier:
    """A digits model trained with PGD at Linf 0.1, in eval mode. Do not alter it: copy it first."""
    return train_digits("pgd", (ThreatModel("Linf", 0.1),), epochs=20, learning_rate=5e-3)


@pytest.fixture(scope="session")
def mlflow_tables(tmp_path_factory) -> Path:
    """MLflow's tables with nothing in them: to make them takes a second, to copy them nothing."""
    file = tmp_path_factory.mktemp("tables") / "mlflow.db"
    Registry(f"sqlite:///{file}", "m").champion()
    return file


@pytest.fixture
def registry(tmp_path, mlflow_tables) -> Registry:
    """An empty registry of a model `m`, in `tmp_path`/mlflow.db."""
    file = shutil.copy(mlflow_tables, tmp_path / "mlflow.db")
    return Registry(f"sqlite:///{file}", "m")


@pytest.fixture(scope="session")
def detector_folder(digits: Prepared, digits_model, tmp_path_factory) -> Path:
    """The real detector of the undefended digits model, saved; rehearsed on less than usual, to be quick."""
    folder = tmp_path_factory.mktemp("detector")
    detector = fit(
        digits_model, digits.tensors("detector_fit"), digits.tensors("calibration"), levels=16, seed=0,
        config=FitConfig(blocks=96, strength_steps=150, score_steps=200),
    )
    detector.save(folder)
    return folder
