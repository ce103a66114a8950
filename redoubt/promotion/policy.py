"""What the gate demands, as one small YAML file. Every key has a default; docs/promotion.md explains each."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field, fields
from itertools import pairwise
from pathlib import Path

import yaml

from redoubt.errors import InvalidInput
from redoubt.threat import NORMS, parse_epsilon

MODES = ("automatic", "ask")
Curve = tuple[tuple[float, float], ...]
# What robustness may cost on clean pictures, as accuracy, by the epsilon that a version covers. The value at 0 is what
# any two versions may differ by.
_CLEAN_ALLOWANCE: dict[str, Curve] = {
    "Linf": ((0.0, 0.03), (0.1, 0.1), (0.3, 0.24)),
    "L2": ((0.0, 0.03), (1.0, 0.11), (3.0, 0.2)),
}


@dataclass(frozen=True, kw_only=True)
class Policy:
    """What the gate demands of a version. Accuracies and what is allowed of them are fractions of 1.

    Attributes:
        promotion: `automatic` makes a version that passes the champion; `ask` leaves it waiting for a person.
        level: of the paired test on the requested threat, the chance that a version which is no better passes.
        worse_level: the chance that a version which is no worse is refused by the tests on the other threats; they
            share it.
        clean_allowance: for each norm points [epsilon, accuracy], straight lines between them and level beyond the
            last. A challenger may lose the first value, and what the curve rises between what the champion covers and
            what it covers itself.
        contained_allowance: accuracy that may be lost under a threat model that a larger one of the set contains.
        bootstrap_accuracy: clean accuracy that the first version of a name must show; 0 asks for more than chance.
        fpr_slack: the detector's false-positive rate on the gate split may be this many times the chosen one.
        detection: of the pictures attacked at the requested threat, the share that the detector must flag.
        strength_error: the estimated epsilon may lie off the true one by this fraction.
        sanity: `required` refuses a version whose report has no sanity checks, `present` judges those that are there.
    """

    promotion: str = "automatic"
    level: float = 0.05
    worse_level: float = 0.02
    clean_allowance: dict[str, Curve] = field(default_factory=lambda: dict(_CLEAN_ALLOWANCE))
    contained_allowance: float = 0.03
    bootstrap_accuracy: float = 0.0
    fpr_slack: float = 3.0
    detection: float = 0.2
    strength_error: float = 0.3
    sanity: str = "present"

    def __post_init__(self) -> None:
        _choice("promotion", self.promotion, MODES)
        _choice("sanity", self.sanity, ("present", "required"))
        for name in ("level", "worse_level"):
            _number(name, getattr(self, name), 0.0, 0.5, "above 0 and at most 0.5", open_below=True)
        for name in ("contained_allowance", "detection"):
            _number(name, getattr(self, name), 0.0, 1.0, "between 0 and 1")
        _number("bootstrap_accuracy", self.bootstrap_accuracy, 0.0, 0.999, "at least 0 and below 1")
        _number("fpr_slack", self.fpr_slack, 1.0, 100.0, "between 1 and 100")
        _number("strength_error", self.strength_error, 0.0, 10.0, "above 0 and at most 10", open_below=True)
        object.__setattr__(self, "clean_allowance", _curves(self.clean_allowance))

    def text(self) -> str:
        """The whole policy on one line that `read_policy` reads: how it travels with a run."""
        return json.dumps(asdict(self), sort_keys=True)

    def allowed(self, norm: str, epsilon: float) -> float:
        """The clean-allowance curve of `norm` at `epsilon`."""
        points = self.clean_allowance[norm]
        for (left, low), (right, high) in pairwise(points):
            if epsilon <= right:
                return low + (high - low) * (epsilon - left) / (right - left)
        return points[-1][1]


def load_policy(file: Path | str | None) -> Policy:
    """The policy in a file; the defaults without one.

    Raises:
        InvalidInput: naming the file, the key and what would be right.
    """
    if not file:
        return Policy()
    try:
        text = Path(file).expanduser().read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"policy {file} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    try:
        return read_policy(text)
    except InvalidInput as error:
        raise InvalidInput(f"policy {file}: {error}") from None


def read_policy(text: str) -> Policy:
    """The policy that a YAML text gives; keys that it leaves out have their defaults.

    Raises:
        InvalidInput: naming the key and what would be right.
    """
    try:
        values = yaml.load(text, Loader=_Strict)
    except (yaml.YAMLError, RecursionError) as error:
        raise InvalidInput(f"it is not YAML: {' '.join(str(error).split())[:200]}") from None
    if values is None:
        return Policy()
    if not isinstance(values, dict):
        raise InvalidInput(f"it must hold lines `key: value`, not {str(values)[:60]!r}")
    known = [field.name for field in fields(Policy)]
    unknown = [str(key) for key in values if key not in known]
    if unknown:
        raise InvalidInput(f"unknown key {', '.join(sorted(unknown))}: keys are {', '.join(known)}")
    return Policy(**values)


class _Strict(yaml.SafeLoader):
    """Plain values only, as SafeLoader, and no key twice: YAML would take the last one without a word."""

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key, _ in node.value:
            name = key.value
            if name in seen:
                raise yaml.YAMLError(f"key {name} stands there twice (line {key.start_mark.line + 1})")
            seen.add(name)
        return super().construct_mapping(node, deep)


def _choice(name: str, value, valid: tuple[str, ...]) -> None:
    if value not in valid:
        raise InvalidInput(f"{name} must be {' or '.join(valid)}, not {value!r}")


def _number(name: str, value, low: float, high: float, words: str, *, open_below: bool = False) -> float:
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not good or not low <= value <= high or (open_below and value == low):
        raise InvalidInput(f"{name} must be a number {words}, not {value!r}")
    return float(value)


def _curves(given) -> dict[str, Curve]:
    if not isinstance(given, dict) or any(norm not in NORMS for norm in given):
        raise InvalidInput(f"clean_allowance must give points for {' or '.join(NORMS)}, such as "
                           f"{{Linf: [[0, 0.03], [0.1, 0.1]]}}, not {given!r}")
    return _CLEAN_ALLOWANCE | {norm: _curve(f"clean_allowance.{norm}", points) for norm, points in given.items()}


def _curve(name: str, points) -> Curve:
    """Points in rising order of epsilon, the first at 0; the accuracy never falls along it."""
    if not isinstance(points, list | tuple) or not points or any(
            not isinstance(point, list | tuple) or len(point) != 2 for point in points):
        raise InvalidInput(f"{name} must be a list of points [epsilon, accuracy], not {points!r}")
    norm = name.rpartition(".")[2]
    curve = []
    for epsilon, accuracy in points:
        try:
            at = 0.0 if epsilon == 0 and not isinstance(epsilon, bool) else parse_epsilon(epsilon, norm=norm)
        except InvalidInput as error:
            raise InvalidInput(f"{name}: {error}") from None
        curve.append((at, _number(f"{name} at {at:g}", accuracy, 0.0, 1.0, "between 0 and 1")))
    if curve[0][0] != 0:
        raise InvalidInput(f"{name} must begin at epsilon 0, not {curve[0][0]:g}")
    for (left, low), (right, high) in pairwise(curve):
        if right <= left or high < low:
            raise InvalidInput(f"{name} must rise: [{right:g}, {high:g}] comes after [{left:g}, {low:g}]")
    return tuple(curve)
