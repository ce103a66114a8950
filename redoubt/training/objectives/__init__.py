"""What training minimises, one page each: functions from (model, x, y, attack) to one loss for each image, [N].

An objective leaves the reduction to the step, so that reweighting and whole-batch means work with every one of them.

Args of each:
    model: in training mode.
    x, y: pictures [N, C, H, W] in [0, 1] and labels [N].
    attack: `attack(x, y, rows)` returns the adversarial versions of `x[rows]` (a slice or numbers), without touching
        weight gradients; all rows by default. Its `first`, where it has one, is the number of `x[0]` in the whole
        batch, of which `x` may be a part (a micro-batch, another process's share). With `y=None` it leads away from
        the model's own prediction instead of from a label.
    lam: weight of the adversarial term, where there is one.
    smoothing: label smoothing (Szegedy et al. 2016, arXiv 1512.00567), in [0, 1).
"""

from redoubt.training.objectives.blend import blend
from redoubt.training.objectives.fast import fast
from redoubt.training.objectives.half import half
from redoubt.training.objectives.madry import pgd
from redoubt.training.objectives.mixed import mixed
from redoubt.training.objectives.standard import standard
from redoubt.training.objectives.trades import trades

OBJECTIVES = {"standard": standard, "blend": blend, "pgd": pgd, "mixed": mixed, "half": half, "trades": trades,
              "fast": fast}

__all__ = ["OBJECTIVES"]
