"""Model evidence: whether a picture's small detail does to the classifier what chance would not.

Pixels tell that a picture was changed; only the classifier can tell what for. An attack's changes follow the gradient
and move the output; noise of the same size and texture does neither. The gradient is taken at a smoothed copy, where
most of an attack is undone and it points near to where the attacker's pointed.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from redoubt.detection.benign import blur

MEASURES = 33       # numbers in `measures`
BOUND = 3.0         # no single input speaks louder than this, as a logarithm of odds
SHARE = 0.3         # of a campaign that a hidden attack is assumed to make up when its inputs are betted on
RISK = 1e-2         # of taking a harmless campaign for an attack, where pixels speak for an attack
RISK_AGAINST = 1e-5   # the same where pixels speak for a harmless change: then more is asked of the model's evidence
_BATCH = 128        # inputs of either sort in a step of learning
_LOOK, _PRESS = 100, 1.5   # steps between two looks at what each harmless change wins, and the power its weight goes by


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
    """`measures` of an input to the logarithm of the odds that it was attacked rather than changed at random."""

    def __init__(self, hidden: int = 48):
        super().__init__()
        self.register_buffer("mean", torch.zeros(MEASURES))
        self.register_buffer("scale", torch.ones(MEASURES))
        self.register_buffer("bias", torch.zeros(()))
        self.register_buffer("further", torch.zeros(()))
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


@torch.no_grad()
def measures(model: nn.Module, x: Tensor) -> Tensor:
    """What a picture's detail does to the classifier, against what it would do elsewhere or with other signs.

    Costs twenty forward passes and three backward passes, most of them in one batch. The classifier is left as it is.

    Args:
        model: in eval mode, from pictures to logits.
        x: float [N, C, S, S] in [0, 1].

    Returns:
        [N, MEASURES]; every number is free of the scale of logits and finite.
    """
    if len(x) == 0:
        return x.new_zeros(0, MEASURES)
    logits, once = model(x), blur(x)
    first, twice = logits.argmax(1), blur(once)
    smooths = (once, twice, blur(blur(blur(blur(twice)))))   # squares and waves outlast a little smoothing
    smoothed, gradients, seconds = (
        part.split(len(x)) for part in _at_smoothed(model, torch.cat(smooths), first.repeat(len(smooths))))
    tried = [trial for smooth in smooths for trial in _elsewhere(x, smooth)] + _shaken(x, x - once)
    answers = model(torch.cat(tried).clamp(0, 1)).split(len(x))   # one pass: few inputs at a time are dear
    rows = _texture(x - once)
    for i, smooth in enumerate(smooths):
        rows += _detail(x - smooth, gradients[i], logits, smoothed[i], seconds[i], answers[4 * i : 4 * i + 4])
    rows += _nearby(logits, answers[4 * len(smooths) :])
    return torch.stack(rows, 1).nan_to_num(0.0, 0.0, 0.0).clamp(-20, 20)


def measured(model: nn.Module, x: Tensor) -> Tensor:
    """`measures` of any number of pictures, in parts: each picture is tried in sixteen ways, all of a part at once."""
    return torch.cat([measures(model, part) for part in x.split(32)])


def _elsewhere(x: Tensor, smooth: Tensor) -> list[Tensor]:
    """The smoothed picture with the detail that it lost, twice under other signs and twice at other places."""
    detail = x - smooth
    third, fourth = max(1, x.shape[-1] // 3), max(1, x.shape[-1] // 4)
    flipped = [smooth + detail * _signs(detail, seed) for seed in (0, 1)]
    return flipped + [smooth + turn * detail.roll((turn * third, fourth), (2, 3)) for turn in (1, -1)]


def _shaken(x: Tensor, detail: Tensor) -> list[Tensor]:
    """The picture under random changes as large as the detail, either way, and under changes twice as large."""
    size = detail.abs().flatten(1).mean(1).view(-1, 1, 1, 1)
    return [x + turn * times * size * _signs(x, 2) for times in (1, 2) for turn in (1, -1)]


def _detail(
    detail: Tensor, gradient: Tensor, logits: Tensor, smoothed: Tensor, second: Tensor, answers: Sequence[Tensor]
) -> list[Tensor]:
    """How the detail lost by smoothing lies to the gradient there, and what it does to the margin of the answer.

    Args:
        smoothed, second: the smoothed picture's logits, and the best class there but the answer.
        answers: logits of what `_elsewhere` gives.
    """
    first = logits.argmax(1)
    unit, own = logits.std(1).clamp_min(1e-6), _margin(logits, first, second)
    margins = [_margin(answer, first, second) for answer in answers]
    flat = detail / (blur(detail.abs()) + 2 / 255)   # edges count no more than a perturbation of a plain area
    pointed = gradient.sign()
    pointed = pointed - blur(pointed)
    aligned = _cosine(flat, pointed)
    return [
        aligned, aligned.abs(), _cosine(detail - blur(detail), pointed), _cosine(detail, gradient),
        (own - _margin(smoothed, first, second)) / unit, (own - sum(margins[:2]) / 2) / unit,
        (own - sum(margins[2:]) / 2) / unit, (smoothed.argmax(1) != first).float(),
    ]


def _nearby(logits: Tensor, answers: Sequence[Tensor]) -> list[Tensor]:
    """How sure the answer is, and how it stands random changes: `answers` are logits of what `_shaken` gives."""
    best = logits.topk(2, 1)
    first, second = best.indices.unbind(1)
    unit, own = logits.std(1).clamp_min(1e-6), best.values[:, 0] - best.values[:, 1]
    out = [own / unit]
    for both in (answers[:2], answers[2:]):
        out.append((sum(_margin(answer, first, second) for answer in both) / 2 - own) / unit)
        out.append(sum((answer.argmax(1) != first).float() for answer in both) / 2)
    return out


def _texture(detail: Tensor) -> list[Tensor]:
    """Size of the detail, and whether it runs in rows, in columns or in patches: what noise must be compared at."""
    power = detail.square().flatten(1).mean(1).clamp_min(1e-9)
    size = detail.shape[-1]
    rows, columns = (detail.mean(axis).square().flatten(1).mean(1) * size / power for axis in (3, 2))
    near = (detail[..., 1:] * detail[..., :-1]).flatten(1).mean(1) / power
    return [power.log() / 2, rows.clamp_max(20).log1p(), columns.clamp_max(20).log1p(), near]


def _margin(logits: Tensor, first: Tensor, second: Tensor) -> Tensor:
    return (logits.gather(1, first[:, None]) - logits.gather(1, second[:, None]))[:, 0]


def _at_smoothed(model: nn.Module, smooth: Tensor, first: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of the smoothed copy, the gradient there of class `first` over the best other one, and that other one."""
    # A caller may be in inference mode, whose tensors no gradient may meet: outside it a clone is an ordinary one.
    with torch.inference_mode(False), torch.enable_grad():
        smooth, first = smooth.clone().requires_grad_(), first.clone()
        logits = model(smooth)
        second = logits.detach().scatter(1, first[:, None], -math.inf).argmax(1)
        gradient = torch.autograd.grad(_margin(logits, first, second).sum(), smooth)[0]
    return logits.detach(), gradient, second


def _signs(like: Tensor, seed: int) -> Tensor:
    """The same pattern of signs for every picture, so that an answer does not depend on the batch."""
    drawn = torch.rand(like.shape[1:], generator=torch.Generator().manual_seed(seed)) < 0.5
    return drawn.to(like) * 2 - 1


def _cosine(one: Tensor, other: Tensor) -> Tensor:
    return F.cosine_similarity(one.flatten(1), other.flatten(1), eps=1e-12)


def fit_witness(attacked: Tensor, changed: dict, *, seed: int, steps: int = 1500) -> Witness:
    """Learn the odds of an attack.

    What the worst harmless change wins is taken off every input's odds in the end (`calibrate_witness`). So the kinds
    and amounts that win most are seen most often, as in group distributionally robust optimisation (Sagawa et al. 2020,
    arXiv 1911.08731).

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
        odds = net(torch.cat([attacked[rows.to(attacked.device)], harmless[others.to(attacked.device)]]))
        loss = F.binary_cross_entropy_with_logits(odds, label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return net.eval().requires_grad_(False)


@torch.no_grad()
def calibrate_witness(net: Witness, held_out: dict[tuple, Tensor], noise: tuple[str, ...]) -> None:
    """Set the biases with which no harmless change, of whatever kind and amount, wins a bet on average.

    Args:
        held_out: `measures` [n, MEASURES] of flagged harmless pictures that `fit_witness` did not see, by kind and
            what else tells them apart, such as the amount; those with fewer than 16 are left out.
        noise: the kinds that pixels alone may take for an attack; `bias` answers the worst of them. `further` is what
            the other kinds ask for beyond it; those look harmless to the pixels.
    """
    found = {key: net(part).exp().mean().log().item() for key, part in held_out.items() if len(part) >= 16}
    worst = max([0.0, *(value for (kind, *_), value in found.items() if kind in noise)])
    net.bias.fill_(worst)
    net.further.fill_(max([worst, *found.values()]) - worst)


def bet(log_odds: Tensor) -> Tensor:
    """Logarithm of the wealth after betting on each input that `SHARE` of the campaign is an attack: [n] -> scalar.

    Started with 1, and under harmless changes never expected to grow, wealth exceeds 1 / risk with a probability of at
    most `risk` (Ville 1939); inputs without evidence, 0, leave it as it is.
    """
    return torch.log1p(SHARE * (log_odds.exp() - 1)).sum()
