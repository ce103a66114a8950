"""Redoubt's domain: threat models, attacks, training, evaluation, detection, promotion.

Tensors in, tensors out. Nothing here imports kfp, fastapi or kubernetes.
"""

import os

# Threads that wait by spinning take the core from whoever they wait for. Read when torch is loaded, so set before.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "0.1.0"
