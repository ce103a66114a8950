"""The training pictures: whole bytes where they came as such, on the device when they fit, floats only in a batch."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor


class Pictures:
    """What the steps draw their batches from.

    On a GPU the pictures lie in its memory if they take less than half of what is free, so that a batch is cut without
    the host. Else they stay in the host's memory, and a warning says so: each batch is then copied.

    Args:
        data: pictures [N, C, H, W], uint8 or floats in [0, 1], and labels [N].
        levels: what a uint8 pixel is divided by.
        device: where the steps compute.
    """

    def __init__(self, data: tuple[Tensor, Tensor], levels: int, device: torch.device):
        self.levels, self.device = levels, device
        self.x, self.y = data[0], data[1].to(device)
        if device.type != "cuda":
            return
        room = torch.cuda.mem_get_info(device)[0] / 2
        if self.x.nbytes <= room:
            self.x = self.x.to(device)
        else:
            warnings.warn(f"the training pictures take {self.x.nbytes / 2**30:.1f} GiB, half the GPU's free memory is "
                          f"{room / 2**30:.1f} GiB: they stay in the host's memory, and every batch is copied",
                          stacklevel=2)

    def __len__(self) -> int:
        return len(self.x)

    def place(self, rows: Tensor) -> Tensor:
        """Picture numbers where the pictures lie: once for an epoch, rather than a copy for each batch."""
        return rows.to(self.x.device)

    def batch(self, rows: Tensor) -> Tensor:
        """The pictures numbered `rows` ([N], from `place`) as floats [N, C, H, W] on the device."""
        x = self.x[rows]
        if x.device != self.device:
            x = x.pin_memory().to(self.device, non_blocking=True)
        if x.dtype == torch.uint8:
            x = x.float() / self.levels
        return x.contiguous(memory_format=torch.channels_last) if self.device.type == "cuda" else x

    def labels(self, rows: Tensor) -> Tensor:
        """The labels of `rows`, [N], on the device."""
        return self.y[rows.to(self.device, non_blocking=True)]

    def broken(self, rows: Tensor) -> list[int]:
        """Those of `rows` whose pictures hold a value that is not finite."""
        return [row for row in rows.tolist() if self.x.is_floating_point() and not self.x[row].isfinite().all()]
