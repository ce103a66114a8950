"""What a drill may be asked for."""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.parameters import RunParameters
from redoubt.attacks import ATTACKS
from redoubt.errors import InvalidInput, one_of
from redoubt.threat import ThreatModel

# Strong enough that the undefended model fails; what the drill takes when nobody says.
DEFAULT_EPSILON = {"digits": 0.2, "fashion-mnist": 0.1}


@dataclass(frozen=True, kw_only=True)
class DrillOptions:
    """One drill.

    Attributes:
        dataset, data_dir: as for a run.
        attack: a name from `redoubt.attacks`, used white-box.
        norm, epsilon: the attacker's threat model, known to the drill alone; epsilon 0 takes the dataset's default.
        seed: of everything.
        oracle: whether to train, afterwards, a model with the true epsilon to compare with.
        requests: how many the same attacker sends after the swap.
        limit: use only so many training pictures (0: all), for quick trials.
    """

    dataset: str = "digits"
    data_dir: str = ""
    attack: str = "pgd"
    norm: str = "Linf"
    epsilon: float = 0.0
    seed: int = 0
    oracle: bool = True
    requests: int = 5000
    limit: int = 0

    def __post_init__(self) -> None:
        one_of(self.attack, ATTACKS, "attack")
        if not self.epsilon:
            object.__setattr__(self, "epsilon", DEFAULT_EPSILON.get(self.dataset, 0.1))
        if self.requests < 0:
            raise InvalidInput(f"requests must not be negative, not {self.requests}")
        self.run_parameters("blend")   # checks the rest

    @property
    def threat(self) -> ThreatModel:
        return ThreatModel(self.norm, self.epsilon)

    def run_parameters(self, objective: str, **more) -> RunParameters:
        """Parameters of a pipeline run on this drill's data."""
        return RunParameters(dataset=self.dataset, data_dir=self.data_dir, objective=objective, norm=self.norm,
                             epsilon=self.epsilon, seed=self.seed, split_seed=self.seed, limit=self.limit,
                             **more)
