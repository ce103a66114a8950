"""The parameters of a pipeline run, checked before anything starts."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields

from redoubt.errors import InvalidInput, one_of
from redoubt.names import SCHEMES, check_model_name, check_remote, is_torchvision
from redoubt.promotion.policy import read_policy
from redoubt.threat import NORMS, ThreatModel, load_threats, parse_epsilon

ARCHITECTURES = ("compact-cnn", "strided-cnn", "preactresnet-18", "wideresnet-28-10")
OBJECTIVES = ("blend", "fast", "half", "mixed", "pgd", "standard", "trades")
LEAST_PICTURES = 400
LEAST_TESTED = 50
SUITES = ("full", "quick", "standard")
DATASETS = ("cifar10", "cifar100", "digits", "fashion-mnist", "mnist", "photo-patches")


@dataclass(frozen=True, kw_only=True)
class RunParameters:
    """What one run of the pipeline is asked to do.

    Attributes:
        dataset: a named dataset, `folder:PATH`, `npz:PATH`, or https://, s3:// and oci:// with a checksum.
        architecture, objective: names, or `torchvision:NAME`; `standard` trains an undefended model and ignores
            the threat model.
        norm, epsilon: the threat model that the run is for, epsilon in the [0, 1] pixel range.
        also: JSON list of further [norm, epsilon] pairs that the model must cover.
        epochs: 0 takes the default for objective, architecture and data. A retraining run fine-tunes its parent's
            weights in half of them, with fewer PGD steps.
        steps: PGD steps of the attack in training.
        lam: weight of the adversarial term of `mixed` and `trades` (whose paper takes 6).
        plugins: JSON object of what is added to the objective, see `redoubt.training.Plugins`.
        seed: fixes initialisation, order and attacks.
        start: the version whose weights training begins with: a bundle's folder, models:/NAME/VERSION or
            models:/NAME@ALIAS. Empty begins with the parent's, or with random ones when there is no parent.
        from_scratch: begin with random weights, also in a retraining run.
        processes: that train together under torchrun, each on a GPU of its own where there are GPUs; 0 for as many as
            there are GPUs.
        split_seed: fixes how the data is divided; versions of one name are compared on one division.
        data_checksum: what the prepared data's checksum must be; empty for any.
        model_name, tracking_uri: where the model is registered.
        cause, parent: `manual`, or the campaign that is answered, and the champion it attacked (0 for none).
        claim: name of the Lease that a run on a cluster creates before it trains, so that a campaign is answered once;
            empty for a run that answers none.
        data_dir: where a local copy of the dataset lies; empty for the default places.
        image_size: resize pictures of a folder to this many pixels a side; 0 leaves them.
        limit, test_limit: use only so many training and test pictures; 0 uses all. The report states its n.
        curve_n: test pictures behind each point of the report's curve over epsilon.
        suite: attacks of the report: quick, standard or full (docs/evaluation.md).
        fpr: the detector's chosen false-positive rate.
        policy: the gate's policy as text (docs/promotion.md); empty takes the defaults.
    """

    dataset: str = "digits"
    architecture: str = "compact-cnn"
    objective: str = "blend"
    norm: str = "Linf"
    epsilon: float = 0.1
    also: str = "[]"
    epochs: int = 0
    steps: int = 5
    lam: float = 1.0
    plugins: str = "{}"
    seed: int = 0
    start: str = ""
    from_scratch: bool = False
    processes: int = 1
    model_name: str = "redoubt"
    tracking_uri: str = ""
    cause: str = "manual"
    parent: int = 0
    claim: str = ""
    data_dir: str = ""
    image_size: int = 0
    limit: int = 0
    split_seed: int = 0
    data_checksum: str = ""
    test_limit: int = 2000
    curve_n: int = 1000
    suite: str = "quick"
    fpr: float = 0.01
    policy: str = ""

    def __post_init__(self) -> None:
        if self.dataset.startswith(SCHEMES):
            check_remote(self.dataset)
        elif not self.dataset.startswith(("folder:", "npz:")):
            one_of(self.dataset, (*DATASETS, "folder:PATH", "npz:PATH"), "dataset")
        if not is_torchvision(self.architecture):
            one_of(self.architecture, (*ARCHITECTURES, "torchvision:NAME"), "architecture")
        one_of(self.objective, OBJECTIVES, "objective")
        one_of(self.norm, NORMS, "norm")
        one_of(self.suite, SUITES, "suite")
        object.__setattr__(self, "epsilon", parse_epsilon(self.epsilon, norm=self.norm))
        load_threats(self.also)
        _check_plugins(self.plugins)
        for name in ("epochs", "seed", "split_seed", "parent", "image_size", "limit", "test_limit",
                     "processes"):
            if getattr(self, name) < 0:
                raise InvalidInput(f"{name} must not be negative, not {getattr(self, name)}")
        for name in ("steps", "curve_n"):
            if getattr(self, name) < 1:
                raise InvalidInput(f"{name} must be at least 1, not {getattr(self, name)}")
        if not 0 < self.lam < math.inf:
            raise InvalidInput(f"lam must be a finite number above 0, not {self.lam}")
        if self.limit and self.limit < LEAST_PICTURES:
            raise InvalidInput(f"limit must be 0 for all or at least {LEAST_PICTURES}, not {self.limit}")
        if self.test_limit and self.test_limit < LEAST_TESTED:
            raise InvalidInput(f"test_limit must be 0 for all or at least {LEAST_TESTED}, not {self.test_limit}: fewer "
                               "pictures say nothing of a model")
        if self.image_size and not self.dataset.startswith(("folder:", *SCHEMES)):
            raise InvalidInput(f"image_size resizes the pictures of a folder: those of {self.dataset} have their size")
        if max(self.seed, self.split_seed) >= 2**31:
            raise InvalidInput(f"seeds must be below {2**31}")
        if self.start and self.from_scratch:
            raise InvalidInput(f"from_scratch and start {self.start!r} contradict each other: take one")
        check_model_name(self.model_name)
        if not 0 < self.fpr <= 0.2:
            raise InvalidInput(f"fpr must lie in (0, 0.2], not {self.fpr}")
        read_policy(self.policy)

    def to_json(self) -> dict:
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict) -> RunParameters:
        """Read what `to_json` wrote.

        Raises:
            InvalidInput: for a key that is no parameter.
        """
        unknown = set(values) - {field.name for field in fields(cls)}
        if unknown:
            raise InvalidInput(f"unknown run parameters: {', '.join(sorted(unknown))}")
        return cls(**values)


def retraining(manifest: dict, threat: ThreatModel, *, parent: int, cause: str, **where) -> RunParameters:
    """The run that answers a campaign, checked; see `redoubt.retraining.run_parameters`."""
    from redoubt.retraining import run_parameters

    return RunParameters.from_json(run_parameters(manifest, threat, parent=parent, cause=cause, **where))


def _check_plugins(text: str) -> None:
    if text != "{}":   # only then is it worth importing torch
        from redoubt.training.plugins import load_plugins

        load_plugins(text)
