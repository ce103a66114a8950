"""Checkpoints: one safetensors file with its JSON in the header, replaced atomically. No pickle."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from redoubt.errors import ArtifactError
from redoubt.training.state import State


class Keeper:
    """Writes a run's state every so often, and takes a killed run up again.

    Whenever the process is killed, the file holds one whole state: the last that was written. A run that is taken up
    from it makes the same steps as one that was never interrupted; on a CPU, bit for bit.
    """

    def __init__(self, file: Path, state: State, data: tuple[Tensor, Tensor], *, every: float):
        self.file, self.state, self.every = Path(file), state, every
        self.run = fingerprint(state, data)
        self.written = time.monotonic()

    def resume(self) -> bool:
        """Restore the state from the file, if there is one.

        Raises:
            ArtifactError: when it cannot be read, or belongs to a run with other settings, data or first weights.
        """
        if not self.file.exists():
            return False
        try:
            with safe_open(self.file, "pt") as content:
                values = json.loads(content.metadata()["state"])
                if values.pop("run") != self.run:
                    raise ArtifactError(f"{self.file} belongs to a run with other settings, data or first weights: "
                                        "delete it, or give this run another file")
                self.state.restore({name: content.get_tensor(name) for name in content.keys()}, values)  # noqa: SIM118
        except (SafetensorError, OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
            raise ArtifactError(f"{self.file} is no checkpoint that can be read ({error}): delete it") from None
        return True

    def due(self) -> bool:
        return time.monotonic() - self.written >= self.every

    def write(self) -> None:
        """Put the state on disk: a new file beside the old, flushed to the disk, then renamed over it."""
        content = save(self.state.tensors(), {"state": json.dumps(self.state.values() | {"run": self.run})})
        self.file.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.file.with_name(f"{self.file.name}.{os.getpid()}.new")
        for left in set(self.file.parent.glob(f"{glob.escape(self.file.name)}.*.new")) - {temporary}:
            left.unlink(missing_ok=True)   # of a process that was killed while it wrote
        with temporary.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(self.file)
        folder = os.open(self.file.parent, os.O_RDONLY)
        try:
            os.fsync(folder)   # the rename itself must survive a power cut, too
        finally:
            os.close(folder)
        self.written = time.monotonic()


def fingerprint(state: State, data: tuple[Tensor, Tensor]) -> str:
    """What makes a run this run: its settings, its data and its first weights, as a sha256."""
    digest = hashlib.sha256(json.dumps(asdict(state.config), sort_keys=True, default=str).encode())
    for tensor in (*data, *state.model.state_dict().values()):
        digest.update(str(tuple(tensor.shape)).encode())
        digest.update(np.ascontiguousarray(tensor.detach().cpu().numpy()).data)
    return digest.hexdigest()
