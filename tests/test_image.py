"""What the Dockerfile says of a container's surroundings."""

import re
from pathlib import Path

DOCKERFILE = (Path(__file__).parents[1] / "Dockerfile").read_text()


def test_a_pod_that_asks_for_no_gpu_sees_none():
    """NVIDIA's runtime goes by this variable, and the device plugin sets it only for those who ask."""
    instructions = re.sub(r"^#.*\n", "", DOCKERFILE, flags=re.MULTILINE)
    assert "NVIDIA_VISIBLE_DEVICES" not in instructions
