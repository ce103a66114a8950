"""Training: what is minimised (`objectives`), what is added (`plugins`), settings (`config`) and the loop (`loop`)."""

from redoubt.training.config import TrainConfig, default_epochs, fine_tuning
from redoubt.training.loop import TrainResult, train
from redoubt.training.objectives import OBJECTIVES
from redoubt.training.plugins import Plugins, load_plugins

__all__ = ["OBJECTIVES", "Plugins", "TrainConfig", "TrainResult", "default_epochs", "fine_tuning", "load_plugins",
           "train"]
