"""AutoAttack (Croce & Hein 2020, arXiv 2003.01690) and its parts through pyautoattack, resumable batch by batch.

The attacks are pyautoattack's own. What is ours is the order of work round them: the same images meet the same attack
in the same batches from the same seed as in its `run_standard_evaluation`, so that the figures are the same, but after
each batch the state is on disk in one move. Its own state file cannot be read back (version 0.2.0 writes a set as
text), and would begin an interrupted attack anew in other batches, which changes the random starts.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from redoubt.errors import InvalidInput
from redoubt.evaluation.accuracy import predict
from redoubt.evaluation.store import fingerprint, pack, read, unpack, write
from redoubt.threat import ThreatModel

BATCH = 250   # pyautoattack's own
Progress = Callable[[dict], None]


@dataclass(frozen=True, kw_only=True)
class AutoAttackResult:
    """What AutoAttack left.

    Attributes:
        stood: bool [N] on the CPU, right clean and after every part.
        after: the accuracy that is left after each part, in the order of the parts; `clean` comes first.
        seconds: computing time, an interrupted run's included.
    """

    stood: Tensor
    after: dict[str, float]
    seconds: float


def is_installed() -> bool:
    """Whether pyautoattack can be imported."""
    return find_spec("pyautoattack") is not None


def require() -> None:
    """Raise InvalidInput with the remedy when pyautoattack is missing."""
    if not is_installed():
        raise InvalidInput("AutoAttack and Square need pyautoattack: pip install 'redoubt[pipelines]'; "
                           "the suite `quick` does without")


def parts(classes: int) -> tuple[str, ...]:
    """AutoAttack's parts for so many classes.

    The targeted DLR loss takes four logits and DLR three: with three classes APGD with the plain DLR loss stands in,
    with two classes nothing does, and cross-entropy, FAB and Square remain.
    """
    if classes >= 4:
        return ("apgd-ce", "apgd-t", "fab-t", "square")
    return ("apgd-ce", "apgd-dlr", "fab-t", "square") if classes == 3 else ("apgd-ce", "fab-t", "square")


def label(classes: int) -> str:
    """The name under which the figure is given: it says so when parts were left out."""
    return "AutoAttack" if classes >= 4 else f"AutoAttack ({classes} classes: {', '.join(parts(classes))})"


def autoattack(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    *,
    seed: int = 0,
    batch_size: int = BATCH,
    state: Path | None = None,
    progress: Progress | None = None,
) -> AutoAttackResult:
    """Attack every image with AutoAttack's standard version.

    Args:
        model: in eval mode; x and y lie on its device.
        seed: every part begins every batch with it, as in pyautoattack.
        state: a file that is written after every batch and taken up when it belongs to this model, data and seed.
        progress: called after each batch with {part, batch, of, accuracy}.

    Raises:
        InvalidInput: when pyautoattack is not installed.
    """
    require()
    with torch.no_grad():
        n_classes = model(x[:1]).shape[1]
    names, start = parts(n_classes), time.perf_counter()
    key = fingerprint(model, x, y, threat=str(threat), epsilon=threat.epsilon, seed=seed, batch=batch_size,
                      parts=names, library=_version())
    at = read(state)
    if at is None or at.get("key") != key:
        right = predict(model, x, batch_size).argmax(1) == y
        at = {"key": key, "part": 0, "batch": 0, "before": pack(right), "stood": pack(right), "seconds": 0.0,
              "after": {"clean": float(right.float().mean())}}
    before = at["seconds"]
    attacks = _attacks(model, threat, n_classes, seed, x.device)
    while at["part"] < len(names):
        at = _batch(model, x, y, attacks, names, batch_size, at)
        at["seconds"] = before + time.perf_counter() - start
        write(state, at)
        if progress:
            progress({"part": at["last"], "batch": at["done"], "of": at["of"], "accuracy": _share(at["stood"])})
    return AutoAttackResult(stood=unpack(at["stood"]), after=at["after"], seconds=at["seconds"])


def _batch(model, x, y, attacks, names, size: int, at: dict) -> dict:
    """One batch of one part: the images that stood when the part began, in chunks; returns the state after it."""
    name, standing = names[at["part"]], unpack(at["before"]).nonzero()[:, 0]
    rows = standing[at["batch"] * size : (at["batch"] + 1) * size]
    stood, of = unpack(at["stood"]), max(1, -(-len(standing) // size))
    if len(rows):
        here = rows.to(x.device)
        with torch.random.fork_rng(), torch.no_grad():
            x_adv = attacks[name](x[here].clone(), y[here].clone())
            stood[rows] = (model(x_adv).argmax(1) == y[here]).cpu()
    ended = at["batch"] + 1 >= of
    after = at["after"] | ({name: float(stood.float().mean())} if ended else {})
    return at | {
        "part": at["part"] + ended, "batch": 0 if ended else at["batch"] + 1, "stood": pack(stood), "after": after,
        "before": pack(stood) if ended else at["before"], "last": name, "done": at["batch"] + 1, "of": of,
    }


def _attacks(model, threat: ThreatModel, n_classes: int, seed: int, device) -> dict[str, Callable]:
    """Each part as a function (x, y) -> adversarial inputs, with the standard version's settings."""
    from pyautoattack import AutoAttack

    whole = AutoAttack(model, norm=threat.norm, eps=threat.epsilon, seed=seed, version="standard", device=device)
    whole.apgd_targeted.n_target_classes = whole.fab.n_target_classes = min(9, n_classes - 1)

    def apgd(loss: str) -> Callable:
        def attack(x, y):
            whole.apgd.loss, whole.apgd.seed = loss, seed
            return whole.apgd.perturb(x, y)
        return attack

    def targeted_fab(x, y):
        whole.fab.targeted, whole.fab.seed = True, seed
        return whole.fab.perturb(x, y)

    return {"apgd-ce": apgd("ce"), "apgd-dlr": apgd("dlr"), "apgd-t": whole.apgd_targeted.perturb,
            "fab-t": targeted_fab, "square": whole.square.perturb}


def withstands_square(
    model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, *, queries: int = 5000, seed: int = 0,
    batch_size: int = BATCH,
) -> Tensor:
    """Whether each image is right clean and after Square (Andriushchenko et al. 2020, arXiv 1912.00049), which asks the
    model for its answers alone and uses no gradient: bool [N], on the CPU.

    Raises:
        InvalidInput: when pyautoattack is not installed.
    """
    require()
    from pyautoattack.square import SquareAttack

    attack = SquareAttack(model, n_queries=queries, eps=threat.epsilon, norm=threat.norm, n_restarts=1, seed=seed,
                          device=x.device, resc_schedule=queries < 5000)
    stood = []
    with torch.random.fork_rng(), torch.no_grad():
        for start in range(0, len(x), batch_size):
            part, labels = x[start : start + batch_size], y[start : start + batch_size]
            right = model(part).argmax(1) == labels
            if right.any():
                x_adv = attack.perturb(part[right].clone(), labels[right].clone())
                right[right.clone()] = model(x_adv).argmax(1) == labels[right]
            stood.append(right.cpu())
    return torch.cat(stood) if stood else torch.zeros(0, dtype=torch.bool)


def _share(text: str) -> float:
    return text.count("1") / len(text)


def _version() -> str:
    try:
        return version("pyautoattack")
    except PackageNotFoundError:
        return "unknown"
