"""The losses of the first steps from a fixed seed are those of the golden file, whatever is rebuilt round them.

After a deliberate change: REDOUBT_UPDATE_GOLDEN=1 make test, and say in the commit why the curve moved.
"""

import json
import os
from pathlib import Path

import pytest
import torch

from redoubt.models import Architecture, build
from redoubt.threat import ThreatModel
from redoubt.training import OBJECTIVES, Plugins, TrainConfig
from redoubt.training.distributed import World
from redoubt.training.state import State
from redoubt.training.step import Stepper

GOLDEN = Path(__file__).parent.parent / "golden" / "losses.json"
STEPS = 12
LINF, L2 = ThreatModel("Linf", 0.2), ThreatModel("L2", 1.0)   # strong: what the attack does must show
ALL = Plugins(label_smoothing=0.1, warmup=0.5, reweight=2.0, weight_perturbation=0.01, flip=True, crop=1)
CASES = {name: {"objective": name, "threats": () if name == "standard" else (LINF, L2)} for name in sorted(OBJECTIVES)}
CASES["blend, every plug-in"] = {"objective": "blend", "threats": (LINF,), "plugins": ALL}


def losses(digits, settings) -> list[float]:
    torch.manual_seed(0)
    model = build(Architecture(name="compact-cnn", num_classes=10, channels=1, size=8, mean=(0.3,), std=(0.4,)))
    config = TrainConfig(batch_size=64, steps=3, seed=5, learning_rate=1e-2, precision="float32", **settings)
    state = State(model, config, STEPS)
    stepper = Stepper(state, digits.pixels("train", 64 * STEPS), STEPS, None, World(),
                      torch.autocast("cpu", torch.bfloat16, enabled=False), digits.levels)
    order, found = state.shuffled(64 * STEPS), []
    for i in range(STEPS):
        found += stepper.step(order[64 * i : 64 * (i + 1)])
        state.advance()
    return found


@pytest.mark.parametrize("name", CASES)
def test_losses_are_the_golden_ones(digits, name):
    """Within what processors differ by: an attack's signs tip on the last bit of a gradient."""
    found = losses(digits, CASES[name])
    if os.environ.get("REDOUBT_UPDATE_GOLDEN"):
        golden = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
        GOLDEN.write_text(json.dumps(golden | {name: [round(loss, 6) for loss in found]}, indent=1) + "\n")
    assert found == pytest.approx(json.loads(GOLDEN.read_text())[name], rel=1e-3)
