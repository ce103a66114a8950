"""Redoubt's domain: threat models, attacks, training, evaluation, detection, promotion.

Tensors in, tensors out. Nothing here imports kfp, fastapi or kubernetes.
"""

import os

# Threads that wait by spinning take the core from whoever they wait for, and threads that sleep at once wake up late:
# so they spin for a moment, then sleep. A training step takes 40 ms so on two free cores, 57 ms without the moment,
# 37 ms with endless spinning, which is ruinous beside other work. Read when torch is loaded, so set before.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

__version__ = "0.1.0"
