"""Where things lie on this machine: one folder, REDOUBT_HOME, by default `.redoubt` in the working directory."""

from __future__ import annotations

import os
import time
from pathlib import Path


def home_folder(home: Path | None = None) -> Path:
    """The home folder, absolute, made when missing."""
    folder = (home or Path(os.environ.get("REDOUBT_HOME") or ".redoubt")).expanduser().absolute()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def tracking_uri(home: Path, given: str = "") -> str:
    """MLflow's address: as given, else REDOUBT_TRACKING_URI or MLFLOW_TRACKING_URI, else SQLite in the home folder."""
    chosen = given or os.environ.get("REDOUBT_TRACKING_URI") or os.environ.get("MLFLOW_TRACKING_URI")
    return chosen or f"sqlite:///{home / 'mlflow.db'}"


def new_folder(parent: Path, name: str) -> Path:
    """A fresh folder under `parent`, named after `name` and the time, unique also within one second."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    for suffix in ("", *(f"-{i}" for i in range(2, 1000))):
        folder = parent / f"{name}-{stamp}{suffix}"
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            continue
    raise FileExistsError(f"{parent} is full of runs named {name}-{stamp}")
