"""Training: objectives (`objectives`), their settings (`config`) and the loop (`loop`)."""

from redoubt.training.config import TrainConfig, default_epochs
from redoubt.training.loop import TrainResult, train
from redoubt.training.objectives import OBJECTIVES

__all__ = ["OBJECTIVES", "TrainConfig", "TrainResult", "default_epochs", "train"]
