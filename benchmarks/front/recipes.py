"""The recipes that `benchmarks.front` compares: what is minimised, on which network, for how long."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

from redoubt.threat import ThreatModel
from redoubt.training import Plugins, TrainConfig

THREAT = ThreatModel("Linf", 0.1)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One training run.

    Attributes:
        name: what the table and the plot call it.
        network: an architecture id.
        epochs: passes over the training split; settings: whatever else differs from TrainConfig's defaults.
    """

    name: str
    objective: str
    epochs: int
    network: str = "compact-cnn"
    plugins: Plugins = field(default_factory=Plugins)
    settings: dict = field(default_factory=dict)

    def config(self, seed: int) -> TrainConfig:
        threats = () if self.objective == "standard" else (THREAT,)
        return TrainConfig(objective=self.objective, threats=threats, epochs=self.epochs, seed=seed,
                           plugins=self.plugins, **self.settings)

    def additions(self) -> str:
        """Plug-ins and settings that are not the default, for the table."""
        values = self.plugins.to_json() | self.settings
        return " ".join(f"{name}={value}" for name, value in values.items()) or "-"

    def key(self) -> dict:
        return asdict(self)



# Plain Adam on the small network, no averaging: what a first attempt looks like.
NAIVE = {"average": 0.0, "learning_rate": 1e-3, "weight_decay": 0.0}
CHEAP = {"steps": 2, "batch_size": 64, "looks": 2}    # few steps of PGD for each of many steps of the optimizer
LONG = CHEAP | {"looks": 5, "average": 0.998}

RECIPES = (
    Recipe(name="naive", objective="pgd", epochs=5, settings=NAIVE),
    Recipe(name="default", objective="blend", epochs=4),
    Recipe(name="pgd-2", objective="pgd", network="strided-cnn", epochs=2, settings=CHEAP),
    Recipe(name="pgd-4", objective="pgd", network="strided-cnn", epochs=4, settings=CHEAP),
    Recipe(name="pgd-10", objective="pgd", network="strided-cnn", epochs=10, settings=LONG),
    Recipe(name="trades-4", objective="trades", network="strided-cnn", epochs=4, settings=CHEAP | {"lam": 3.0}),
    Recipe(name="fast-3", objective="fast", network="strided-cnn", epochs=3, settings={"looks": 3}),
    Recipe(name="pgd-4-large-batch", objective="pgd", network="strided-cnn", epochs=4,
           settings={"steps": 3, "looks": 2}),
    Recipe(name="blend-4", objective="blend", network="strided-cnn", epochs=4, settings=CHEAP),
    Recipe(name="mixed-4", objective="mixed", network="strided-cnn", epochs=4, settings=CHEAP),
    Recipe(name="pgd-10-awp", objective="pgd", network="strided-cnn", epochs=10, settings=LONG,
           plugins=Plugins(weight_perturbation=0.005)),
    Recipe(name="pgd-10-smooth", objective="pgd", network="strided-cnn", epochs=10, settings=LONG,
           plugins=Plugins(label_smoothing=0.1)),
    Recipe(name="standard", objective="standard", epochs=2),
)

QUICK = (
    Recipe(name="standard", objective="standard", epochs=1),
    Recipe(name="pgd", objective="pgd", network="strided-cnn", epochs=1, settings={"steps": 2}),
)
