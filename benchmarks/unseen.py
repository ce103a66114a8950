"""What `benchmarks.detection` needs beside a detector: champions, and attacks that no detector rehearses.

Attacks come from the Adversarial Robustness Toolbox where it has them. Everything made here is kept below
`results/detection`, keyed by the weights attacked and the attack's code, so that another detector is measured on the
very same inputs. Labels are the true ones; an input that an attack left as it was is no attack and is left out.
"""

from __future__ import annotations

import hashlib
import inspect
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from benchmarks.common import prepared
from redoubt.attacks import on_lattice, pgd
from redoubt.data import Prepared
from redoubt.models import Architecture, build
from redoubt.threat import ThreatModel
from redoubt.training import TrainConfig, train

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "results" / "detection"
EPSILONS = {"fashion-mnist": (0.03, 0.05, 0.1, 0.2), "photo-patches": (2 / 255, 4 / 255, 8 / 255, 16 / 255)}
COVERED = {"fashion-mnist": 0.1, "photo-patches": 8 / 255}   # what the robust champion is trained against
EPOCHS = {"fashion-mnist": (2, 2), "photo-patches": (10, 8)}   # undefended, robust
# Of other datasets: epsilons in grey and in colour, the second of which is the robust champion's; and epochs.
USUAL, USUAL_EPOCHS = {1: (0.1, 0.2, 0.3), 3: (4 / 255, 8 / 255, 16 / 255)}, (8, 8)
QUICK = 12_000   # pictures that a quick champion is trained on
LINF = ("apgd", "square", "momentum", "universal", "transfer")
L2 = ("cw-l2", "deepfool")
GRADIENT = ("apgd", "momentum")   # what the strictest figures are asked of


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A champion with its data.

    Attributes:
        name: of the dataset and the champion, for tables.
        model: in eval mode.
        key: digest of its weights.
        covered: the threat models that it was trained against.
        epsilons: at which it is attacked.
    """

    name: str
    dataset: str
    data: Prepared
    model: nn.Module
    key: str
    covered: tuple[ThreatModel, ...]
    epsilons: tuple[float, ...]

    @property
    def slug(self) -> str:
        """The name for files."""
        return _slug(self.name)


def subject(dataset: str, champion: str, seed: int, data: Prepared, *, quick: bool = False) -> Subject:
    """The compact CNN of a dataset, `undefended` or `robust`: trained, or read if the same was trained before.

    Args:
        quick: train it on few of the pictures, in seconds.
    """
    epsilons = EPSILONS.get(dataset, USUAL[data.metadata["shape"][0]])
    covered = (ThreatModel("Linf", COVERED.get(dataset, epsilons[1])),) if champion == "robust" else ()
    torch.manual_seed(seed)
    model, epochs = build(architecture(data)), EPOCHS.get(dataset, USUAL_EPOCHS)[bool(covered)]
    config = TrainConfig(objective="blend" if covered else "standard", threats=covered, epochs=epochs, seed=seed)
    key = digest(data.checksum, config, *([QUICK] if quick else []))
    file = RESULTS / "champions" / f"{_slug(dataset)}-{champion}-{seed}-{key}.safetensors"
    if not file.is_file():
        given = data.tensors("train", QUICK if quick else None)
        trained = train(model, given, data.tensors("validation", 1000 if quick else None), config).model
        _write(file, trained.state_dict())
    model.load_state_dict(load_file(file))
    return Subject(name=f"{dataset} {champion}", dataset=dataset, data=data, model=model.eval().requires_grad_(False),
                   key=hashlib.sha256(file.read_bytes()).hexdigest()[:16], covered=covered, epsilons=epsilons)


def architecture(data: Prepared) -> Architecture:
    """The compact CNN for this data."""
    card = data.metadata
    return Architecture(name="compact-cnn", num_classes=len(data.classes), channels=card["shape"][0],
                        size=card["shape"][1], mean=card["mean"], std=card["std"])


class Stranger(nn.Module):
    """The transferring attacker's own network: large kernels, average pooling and tanh; nothing like the champion."""

    def __init__(self, channels: int, size: int, classes: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels, 20, 5, padding=2), nn.Tanh(), nn.AvgPool2d(2),
            nn.Conv2d(20, 40, 5, padding=2), nn.Tanh(), nn.AvgPool2d(2),
            nn.Flatten(), nn.Linear(40 * (size // 4) ** 2, 96), nn.Tanh(), nn.Linear(96, classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(2 * x - 1)


def stranger(dataset: str, seed: int, data: Prepared) -> nn.Module:
    """A `Stranger` trained on the same training pictures and their labels."""
    torch.manual_seed(seed + 1000)
    model = Stranger(*data.metadata["shape"][:2], len(data.classes))
    config = TrainConfig(objective="standard", epochs=EPOCHS.get(dataset, USUAL_EPOCHS)[0], seed=seed + 1000)
    file = RESULTS / "champions" / f"{_slug(dataset)}-stranger-{seed}-{digest(data.checksum, config)}.safetensors"
    if not file.is_file():
        _write(file, train(model, data.tensors("train"), data.tensors("validation"), config).model.state_dict())
    model.load_state_dict(load_file(file))
    return model.eval().requires_grad_(False)


def adversarial(of: Subject, attack: str, epsilon: float | None, n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Attacked test pictures on the data's lattice, and which rows of the test split they were made from.

    Args:
        attack: one of `LINF`, or one of `L2`, which take no epsilon and look for the nearest that fools.
        n: the first n test pictures are attacked.

    Returns:
        Float [M, C, S, S] and row numbers [M], M <= n: what the attack changed.
    """
    code = (inspect.getsource(function) for function in (adversarial, _FUNCTIONS[attack]))   # its constants, too
    name = f"{attack}-{epsilon or 0:.4f}-{n}-{seed}-{digest(of.key, *code)}"
    file = RESULTS / "attacks" / f"{name}.safetensors"
    if not file.is_file():
        x, y = of.data.tensors("test", n)
        for seeded in (torch.manual_seed, np.random.seed, random.seed):   # the Toolbox draws from all three
            seeded(seed)
        x_adv = torch.as_tensor(_FUNCTIONS[attack](of, x, y, epsilon, seed)).float()
        x_adv = on_lattice(x_adv.clamp(0, 1), of.data.levels)
        rows = ((x_adv - x).flatten(1).abs().amax(1) > 0).nonzero()[:, 0]
        _write(file, {"x": (x_adv[rows] * of.data.levels).round().to(torch.uint8), "rows": rows})
    kept = load_file(file)
    return kept["x"].float() / of.data.levels, kept["rows"]


def _wrapped(of: Subject):
    from art.estimators.classification import PyTorchClassifier

    return PyTorchClassifier(model=of.model, loss=nn.CrossEntropyLoss(), input_shape=tuple(of.data.metadata["shape"]),
                             nb_classes=len(of.data.classes), clip_values=(0.0, 1.0), device_type="cpu")


def _apgd(of: Subject, x, y, epsilon, seed):
    from art.attacks.evasion import AutoProjectedGradientDescent

    attack = AutoProjectedGradientDescent(_wrapped(of), norm=np.inf, eps=epsilon, eps_step=2 * epsilon, max_iter=40,
                                          nb_random_init=1, batch_size=256, verbose=False)
    return attack.generate(x.numpy(), y.numpy())


def _square(of: Subject, x, y, epsilon, seed):
    from art.attacks.evasion import SquareAttack

    attack = SquareAttack(_wrapped(of), norm=np.inf, eps=epsilon, max_iter=500, nb_restarts=1, batch_size=256,
                          verbose=False)
    return attack.generate(x.numpy(), y.numpy())


def _momentum(of: Subject, x, y, epsilon, seed):
    from art.attacks.evasion import MomentumIterativeMethod

    attack = MomentumIterativeMethod(_wrapped(of), eps=epsilon, eps_step=epsilon / 10, max_iter=10, batch_size=256,
                                     verbose=False)
    return attack.generate(x.numpy(), y.numpy())


def _universal(of: Subject, x, y, epsilon, seed):
    from art.attacks.evasion import UniversalPerturbation

    attack = UniversalPerturbation(_wrapped(of), attacker="fgsm", attacker_params={"eps": epsilon / 2}, max_iter=3,
                                   eps=epsilon, norm=np.inf, batch_size=256, verbose=False)
    return attack.generate(x.numpy(), y.numpy())


def _transfer(of: Subject, x, y, epsilon, seed):
    generator = torch.Generator().manual_seed(seed)
    return pgd(stranger(of.dataset, seed, of.data), x, y, ThreatModel("Linf", epsilon), generator=generator)


def _cw_l2(of: Subject, x, y, epsilon, seed):
    from art.attacks.evasion import CarliniL2Method

    attack = CarliniL2Method(_wrapped(of), learning_rate=0.02, binary_search_steps=4, max_iter=30, initial_const=0.1,
                             batch_size=256, verbose=False)
    return attack.generate(x.numpy(), y.numpy())


def _deepfool(of: Subject, x, y, epsilon, seed):
    from art.attacks.evasion import DeepFool

    return DeepFool(_wrapped(of), max_iter=30, epsilon=0.02, batch_size=256, verbose=False).generate(x.numpy())


_FUNCTIONS: dict[str, Callable] = {
    "apgd": _apgd, "square": _square, "momentum": _momentum, "universal": _universal, "transfer": _transfer,
    "cw-l2": _cw_l2, "deepfool": _deepfool,
}


def _slug(name: str) -> str:
    """A name for files; that of a path is its last part."""
    return re.sub(r"[^\w.-]+", "-", name.rpartition("/")[2])


def digest(*parts) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:12]


def _write(file: Path, tensors: dict[str, Tensor]) -> None:
    """Whole or not at all, so that an interrupted run leaves nothing that looks finished."""
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: value.contiguous() for name, value in tensors.items()}, file.with_suffix(".new"))
    file.with_suffix(".new").replace(file)


def subjects(datasets, champions, seed: int, data_dir=None, *, quick: bool = False):
    """Each champion of each dataset in turn; a dataset that cannot be read ends the program before any is trained."""
    for dataset, data in [(dataset, prepared(dataset, data_dir)) for dataset in datasets]:
        for champion in champions:
            yield subject(dataset, champion, seed, data, quick=quick)
