"""What an evaluation has finished, kept in a folder, so that one that was killed goes on instead of beginning again.

Each part is a JSON file, written in one move. Parts lie under a key made of everything that decides the figures: model,
pictures, labels, settings and the versions of what computes them. Another model or another seed finds nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn


class Store:
    """Finished parts under `folder`/`key`; with `folder` None nothing is kept."""

    def __init__(self, folder: Path | str | None, key: str):
        self.folder = None if folder is None else Path(folder) / key[:24]

    def path(self, name: str) -> Path | None:
        """Where the part called `name` lies, for those that keep a state of their own."""
        if self.folder is None:
            return None
        return self.folder / f"{re.sub(r'[^A-Za-z0-9.-]+', '-', name)}.json"

    def recall(self, name: str, compute: Callable[[], dict]) -> dict:
        """The part called `name`: read if it is there, else computed and kept."""
        path = self.path(name)
        found = read(path)
        if found is None:
            found = compute()
            write(path, found)
        return found


def forget(folder: Path | str | None, *, idle: float = 0.0) -> None:
    """Remove every store below `folder`: the whole is finished and written elsewhere. Other files stay.

    Args:
        idle: leave those that were written to within so many seconds, which others may be at work on.
    """
    for part in Path(folder).glob("*") if folder else ():
        if not re.fullmatch(r"[0-9a-f]{24}", part.name):
            continue
        files = list(part.glob("*.json*"))
        if idle and max((_written(file) for file in (part, *files)), default=0.0) > time.time() - idle:
            continue
        for file in files:
            file.unlink(missing_ok=True)
        with contextlib.suppress(OSError):   # something else lies in it
            part.rmdir()


def _written(file: Path) -> float:
    with contextlib.suppress(OSError):   # another one has removed it
        return file.stat().st_mtime
    return 0.0


def read(path: Path | None) -> dict | None:
    """A part as it was written; None when there is none that can be read."""
    with contextlib.suppress(OSError, ValueError):
        return json.loads(path.read_text()) if path else None
    return None


def write(path: Path | None, value: dict) -> None:
    """Write a part so that a reader, or a power cut, meets the old one or the new one, never a piece."""
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".new")
    with temporary.open("w") as file:
        json.dump(value, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def fingerprint(model: nn.Module, x: Tensor, y: Tensor, **settings) -> str:
    """A sha256 of all that decides an evaluation's figures."""
    digest = hashlib.sha256(f"{type(model).__qualname__} {torch.__version__} {x.device.type}".encode())
    digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
    for name, tensor in (*model.state_dict().items(), ("x", x), ("y", y)):
        tensor = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def pack(right: Tensor) -> str:
    """A bool vector as a string of 0 and 1."""
    return "".join("1" if value else "0" for value in right.tolist())


def unpack(text: str) -> Tensor:
    """What `pack` wrote, bool [N]."""
    return torch.tensor([letter == "1" for letter in text], dtype=torch.bool)
