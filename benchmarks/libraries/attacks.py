"""Attacks a champion with torchattacks and foolbox, in an interpreter that has them.

Reads `case.pt` in the folder given (architecture, weights, pictures, labels, levels, epsilon, seed) and writes each
attack's pictures to `NAME.pt` there, in whole levels; what is there already is left.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from redoubt.attacks import on_lattice
from redoubt.models import Architecture, build

STEPS = 10   # of iterated attacks, each of a quarter of epsilon; foolbox has its own
Make = Callable[[nn.Module, Tensor, Tensor, float], Tensor]   # model, pictures, labels, epsilon


def _torchattacks(name: str, **options) -> Make:
    """An attack of torchattacks; options that are functions are asked what epsilon makes of them."""
    def make(model, x, y, epsilon):
        import torchattacks

        given = {key: value(epsilon) if callable(value) else value for key, value in options.items()}
        if name in ("APGDT", "FAB"):
            given["n_classes"] = model(x[:1]).shape[1]
        return getattr(torchattacks, name)(model, **given)(x, y)

    return make


def _foolbox(name: str, *, nearest: bool = False, **options) -> Make:
    """An attack of foolbox with its own defaults."""
    def make(model, x, y, epsilon):
        import foolbox

        attack = getattr(foolbox.attacks, name)(**options)
        bounded = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
        return attack(bounded, x, y, epsilons=None if nearest else epsilon)[1]

    return make


def _same(epsilon: float) -> float:
    return epsilon


def _iterated(name: str, **options) -> Make:
    return _torchattacks(name, eps=_same, alpha=lambda epsilon: epsilon / 4, steps=STEPS, **options)


# Bounded by epsilon in Linf.
LINF: dict[str, Make] = {
    "FGSM": _torchattacks("FGSM", eps=_same),
    "R+FGSM": _iterated("RFGSM"),
    "FFGSM": _torchattacks("FFGSM", eps=_same, alpha=lambda epsilon: 1.25 * epsilon),
    "BIM": _iterated("BIM"),
    "PGD": _iterated("PGD"),
    "PGD of foolbox": _foolbox("LinfPGD"),
    "Adam-PGD of foolbox": _foolbox("LinfAdamPGD"),
    "EOT-PGD": _iterated("EOTPGD"),
    "TRADES-PGD": _iterated("TPGD"),
    "U-PGD": _iterated("UPGD"),
    "PGD on noisy copies": _iterated("PGDRS", noise_sd=0.1),
    "Jitter": _iterated("Jitter"),
    "MI-FGSM": _iterated("MIFGSM"),
    "NI-FGSM": _iterated("NIFGSM"),
    "SI-NI-FGSM": _iterated("SINIFGSM"),
    "VMI-FGSM": _iterated("VMIFGSM"),
    "VNI-FGSM": _iterated("VNIFGSM"),
    "DI-FGSM": _iterated("DIFGSM"),
    "TI-FGSM": _iterated("TIFGSM"),
    "PI-FGSM": _torchattacks("PIFGSM", max_epsilon=_same),
    "PI-FGSM++": _torchattacks("PIFGSMPP", max_epsilon=_same),
    "APGD": _torchattacks("APGD", eps=_same, steps=20),
    "APGD-T": _torchattacks("APGDT", eps=_same, steps=20),
    "Square": _torchattacks("Square", eps=_same, n_queries=500),
    "SPSA": _torchattacks("SPSA", eps=_same, lr=lambda epsilon: epsilon / 4, nb_iter=8),
}
# The nearest that fools in Linf, with epsilon as its end where it has one.
NEAREST: dict[str, Make] = {
    "FAB": _torchattacks("FAB", eps=_same),
    "FMN of foolbox": _foolbox("LInfFMNAttack", nearest=True, steps=50),
    "DeepFool of foolbox": _foolbox("LinfDeepFoolAttack", nearest=True),
}
# In other norms, the nearest that fools or nearly.
OTHERS: dict[str, Make] = {
    "CW": _torchattacks("CW"),
    "DeepFool": _torchattacks("DeepFool"),
    "DDN of foolbox": _foolbox("DDNAttack", nearest=True, steps=50),
    "EAD": _torchattacks("EADL1", max_iterations=50, binary_search_steps=5),
    "Pixle": _torchattacks("Pixle"),
}
ALL = LINF | NEAREST | OTHERS


def main(folder: Path) -> None:
    """Make what `case.pt` asks for."""
    case = torch.load(folder / "case.pt", weights_only=True)
    model = build(Architecture(**case["architecture"]))
    model.load_state_dict(case["weights"])
    model.eval().requires_grad_(False)
    for name in case["attacks"]:
        file = folder / f"{name}.pt"
        if file.is_file():
            continue
        torch.manual_seed(case["seed"])
        np.random.seed(case["seed"])
        start = time.perf_counter()
        try:
            x_adv = ALL[name](model, case["x"], case["y"], case["epsilon"]).detach().float()
        except Exception as error:   # one attack's fault is not the others': its pictures will be missing
            print(f"{name}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            continue
        x_adv = on_lattice(x_adv.clamp(0, 1), case["levels"])
        torch.save((x_adv * case["levels"]).round().to(torch.uint8), file.with_suffix(".new"))
        file.with_suffix(".new").replace(file)
        print(f"{name}: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)


if __name__ == "__main__":
    warnings.filterwarnings("ignore")   # theirs
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
