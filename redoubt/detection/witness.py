"""Model evidence: whether a picture's small detail does to the classifier what chance would not.

Pixels tell that a picture was changed; only the classifier can tell what for. An attack's changes follow the gradient
and move the output; noise of the same size and texture does neither. The gradient is taken at a smoothed copy, where
most of an attack is undone and it points near to where the attacker's pointed.
"""

from __future__ import annotations

import threading

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from redoubt.detection.measures import MEASURES
from redoubt.detection.networks import SKETCH
from redoubt.detection.pattern import COMMON

BOUND = 3.0         # no single input speaks louder than this, as a logarithm of odds
SHARE = 0.3         # of a campaign that a hidden attack is assumed to make up when its inputs are betted on
RISK = 1e-2         # of taking a harmless campaign for an attack, where pixels speak for an attack
RISK_AGAINST = 1e-5   # the same where pixels speak for a harmless change: then more is asked of the model's evidence
_BATCH = 128        # inputs of either sort in a step of learning
_LOOK, _PRESS = 100, 1.5   # steps between two looks at what each harmless change wins, and the power its weight goes by
_SHAKEN, _HIDDEN = 0.6, 0.2   # noise on each measure, in standard deviations, and the share of them hidden, in learning


class Budget:
    """Bounds what a flood of flagged inputs may cost: how many of them the model is asked about.

    Every input seen earns `share` of a question, up to `most` in reserve: clean traffic always has enough, a flood
    spends the reserve, which is what a first judgement needs, and then pays its way. A spent reserve rests until it
    holds `clump` questions, so that few batches are slow and most are not. Safe to use from every thread.
    """

    def __init__(self, *, first: int = 16, most: int = 64, share: float = 1 / 16, clump: int = 8):
        self._left, self._most, self._share, self._clump = float(first), float(most), share, clump
        self._resting, self._lock = False, threading.Lock()

    def take(self, seen: int, wanted: int) -> int:
        """How many of `wanted` questions may be asked, of `seen` inputs."""
        with self._lock:
            self._left = min(self._left + seen * self._share, self._most)
            self._resting = self._resting and self._left < self._clump
            granted = 0 if self._resting else min(int(self._left), wanted)
            self._left -= granted
            self._resting = self._resting or self._left < 1
            return granted


class Witness(nn.Module):
    """`measures` of an input to the logarithm of the odds that it was attacked rather than changed at random.

    Buffers:
        mean, scale: of the measures that it learned from, [MEASURES].
        bias: what is taken off every input's odds; `calibrate_witness` sets this and the next two.
        further: what is taken off besides where pixels speak for a harmless change.
        pattern: what is taken off besides where the input shares a pattern with others.
        usual: directions that the details of clean pictures have in common, [COMMON, SKETCH].
    """

    def __init__(self, hidden: int = 48):
        super().__init__()
        self.register_buffer("mean", torch.zeros(MEASURES))
        self.register_buffer("scale", torch.ones(MEASURES))
        self.register_buffer("bias", torch.zeros(()))
        self.register_buffer("further", torch.zeros(()))
        self.register_buffer("pattern", torch.zeros(()))
        self.register_buffer("usual", torch.zeros(COMMON, SKETCH))
        self.layers = nn.Sequential(nn.Linear(MEASURES, hidden), nn.Tanh(), nn.Linear(hidden, hidden), nn.Tanh(),
                                    nn.Linear(hidden, 1))
        nn.init.zeros_(self.layers[-1].weight)   # untrained it says nothing
        nn.init.zeros_(self.layers[-1].bias)

    def forward(self, measured: Tensor) -> Tensor:
        """[N, MEASURES] -> [N], before any bias that calibration found."""
        odds = self.layers(((measured - self.mean) / self.scale).clamp(-4, 4))[:, 0]
        return BOUND * torch.tanh(odds / BOUND)

    def testimony(self, measured: Tensor) -> Tensor:
        """The same, less the bias."""
        return self(measured) - self.bias

    def detail(self, sketches: Tensor) -> Tensor:
        """Sketches [N, SKETCH], less the directions that clean pictures have in common."""
        return sketches - sketches @ self.usual.T @ self.usual


def fit_witness(attacked: Tensor, changed: dict, *, seed: int, steps: int = 1500) -> Witness:
    """Learn the odds of an attack.

    What the worst harmless change wins is taken off every input's odds in the end (`calibrate_witness`). So the kinds
    and amounts that win most are seen most often, as in group distributionally robust optimisation (Sagawa et al. 2020,
    arXiv 1911.08731). A few thousand pictures are soon known by heart: each measure is seen with noise, or not at all.

    Args:
        attacked: `measures` of flagged attacks, [A, MEASURES].
        changed: the same of flagged harmless changes, by kind and what else tells them apart.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = Witness().to(attacked.device)
    groups = [part for part in changed.values() if len(part)]
    harmless, sizes = torch.cat(groups), torch.tensor([len(part) for part in groups], device=attacked.device)
    net.mean.copy_(torch.cat([attacked, harmless]).mean(0))
    net.scale.copy_(torch.cat([attacked, harmless]).std(0) + 1e-3)
    optimizer = torch.optim.AdamW(net.parameters(), lr=5e-3, weight_decay=0.2, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=steps)
    generator = torch.Generator().manual_seed(seed)
    label = torch.cat([torch.ones(_BATCH), torch.zeros(_BATCH)]).to(attacked.device)
    weight = torch.ones(len(harmless))
    for step in range(steps):
        if step % _LOOK == _LOOK - 1:
            with torch.no_grad():
                won = torch.stack([part.exp().mean() for part in net(harmless).split(sizes.tolist())])
            weight = won.pow(_PRESS).repeat_interleave(sizes).cpu()
        rows = torch.randint(len(attacked), (_BATCH,), generator=generator)
        others = torch.multinomial(weight, _BATCH, True, generator=generator)
        seen = torch.cat([attacked[rows.to(attacked.device)], harmless[others.to(attacked.device)]])
        noise, hidden = torch.randn(seen.shape, generator=generator), torch.rand(seen.shape, generator=generator)
        seen = seen + _SHAKEN * net.scale * noise.to(seen.device)
        seen = torch.where(hidden.to(seen.device) < _HIDDEN, net.mean, seen)
        loss = F.binary_cross_entropy_with_logits(net(seen), label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return net.eval().requires_grad_(False)


def bet(log_odds: Tensor) -> Tensor:
    """Logarithm of the wealth after betting on each input that `SHARE` of the campaign is an attack: [n] -> scalar.

    Started with 1, and under harmless changes never expected to grow, wealth exceeds 1 / risk with a probability of at
    most `risk` (Ville 1939); inputs without evidence, 0, leave it as it is.
    """
    return torch.log1p(SHARE * (log_odds.exp() - 1)).sum()


def midmean(odds: Tensor) -> float:
    """The mean of the middle half of log odds, [n] with n >= 1: a few loud inputs do not move it."""
    cut = len(odds) // 4
    return odds.sort().values[cut : len(odds) - cut].mean().item()
