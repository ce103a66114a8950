"""What rehearsed attacks added to pictures, put on other pictures.

An attack costs many passes through the classifier; what it added, seen on another picture, costs none. It fools nobody
there, but a detector of pixels has to notice it all the same, and learns from such pairs what the change is, apart from
the few pictures that were attacked.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from redoubt.attacks import on_lattice
from redoubt.detection.scoring import Examples

_KEPT = 0.9   # of its length a change must keep on another picture, where black and white may cut it off


@dataclass(frozen=True, kw_only=True)
class Changes:
    """Attacks, and clean pictures to put them on.

    Attributes:
        attacked: N pictures under attack.
        real: bool [N], whether the attack did anything.
        stored: bool [N], whether it was sent in whole levels.
        origin: which of `pictures` each was made from, [N].
        pictures: clean ones, of which more may be given than were attacked.
        levels: of the lattice.
    """

    attacked: Examples
    real: Tensor
    stored: Tensor
    origin: Tensor
    pictures: Examples
    levels: int

    def pairs(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Pictures that changes made elsewhere were added to, in whole levels, and behind them the same ones without.

        Returns:
            Pictures [2 n, C, S, S], and their certainty [2 n, CERTAINTY]: of the first n what the attack had left of it
            where it was made.
        """
        real = self.real.nonzero()[:, 0]
        at = real[_drawn(n, len(real), generator, real.device)]
        x, on = self._moved(at, generator)
        return torch.cat([on_lattice(x, self.levels), on.x.float()]), torch.cat([self.attacked.sure[at], on.sure])

    def again(self, size: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Every change once on another picture, in order and `size` at a time.

        Yields:
            Pictures, in whole levels where the attack was sent so; the certainty that the attack left; and bool [size],
            whether the change is still about as long as it was.
        """
        for at in torch.arange(len(self.origin), device=self.origin.device).split(size):
            x, on = self._moved(at, generator)
            x = torch.where(self.stored[at].view(-1, 1, 1, 1), on_lattice(x, self.levels), x)
            before, after = (part.flatten(1).norm(dim=1) for part in (self._change(at), x - on.x.float()))
            yield x, self.attacked.sure[at], after >= _KEPT * before

    def _change(self, at: Tensor) -> Tensor:
        return self.attacked.x[at].float() - self.pictures.x[self.origin[at]].float()

    def _moved(self, at: Tensor, generator: torch.Generator) -> tuple[Tensor, Examples]:
        """The changes `at` on pictures drawn at random, and those pictures."""
        on = self.pictures.rows(_drawn(len(at), len(self.pictures.x), generator, at.device))
        return (on.x.float() + self._change(at)).clamp(0, 1), on


def _drawn(n: int, below: int, generator: torch.Generator, device: torch.device) -> Tensor:
    return torch.randint(below, (n,), generator=generator).to(device)
