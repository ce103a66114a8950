"""Where things lie on this machine: one folder, REDOUBT_HOME, by default `.redoubt` in the working directory."""

from __future__ import annotations

import os
import time
from pathlib import Path

from redoubt.errors import InvalidInput

SCHEMES = ("http://", "https://", "sqlite:///", "postgresql", "mysql", "mssql")


def home_folder(home: Path | None = None, *, make: bool = True) -> Path:
    """The home folder, absolute; made when missing unless `make` is false.

    Raises:
        InvalidInput: when it cannot be made.
    """
    folder = (home or Path(os.environ.get("REDOUBT_HOME") or ".redoubt")).expanduser().absolute()
    try:
        if make:
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidInput(f"{folder} cannot be the home folder: {error.strerror}") from None
    return folder


def local_dataset(dataset: str) -> str:
    """A dataset's name with its path made absolute, so that a later run finds it from any working directory.

    Raises:
        InvalidInput: when nothing is there.
    """
    kind, colon, path = dataset.partition(":")
    if not colon or kind not in ("folder", "npz"):
        return dataset
    absolute = Path(path).expanduser().absolute()
    if not path or not (absolute.is_dir() if kind == "folder" else absolute.is_file()):
        raise InvalidInput(f"{dataset}: no such {'folder' if kind == 'folder' else 'file'}")
    return f"{kind}:{absolute}"


def tracking_uri(home: Path, given: str = "") -> str:
    """MLflow's address: as given, else REDOUBT_TRACKING_URI or MLFLOW_TRACKING_URI, else SQLite in the home folder."""
    chosen = given or os.environ.get("REDOUBT_TRACKING_URI") or os.environ.get("MLFLOW_TRACKING_URI")
    if chosen and not chosen.startswith(SCHEMES):
        raise InvalidInput(f"tracking URI {chosen!r}: it must begin with one of {', '.join(SCHEMES)}")
    return chosen or f"sqlite:///{home / 'mlflow.db'}"


def sqlite_file(uri: str) -> Path | None:
    """The file behind a SQLite address, absolute; None for another kind, and for one in memory."""
    path = uri.removeprefix("sqlite:///").partition("?")[0]
    return Path(path).absolute() if uri.startswith("sqlite:///") and path not in ("", ":memory:") else None


def check_there(uri: str) -> str:
    """A registry's address, for those who only read: SQLite would make a new one at a mistyped address.

    Raises:
        InvalidInput: naming the file that is missing.
    """
    file = sqlite_file(uri)
    if file is not None and not file.is_file():
        raise InvalidInput(f"no registry at {uri}: there is no file {file}")
    return uri


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
