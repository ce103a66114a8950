"""Redoubt's domain: threat models, attacks, training, evaluation, detection, promotion.

Tensors in, tensors out. Nothing here imports kfp, fastapi or kubernetes.
"""

__version__ = "0.1.0"
