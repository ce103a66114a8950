"""Calibration: whether a model is right as often as it says (Guo et al. 2017, arXiv 1706.04599)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

BINS = 15


def calibration(logits: Tensor, y: Tensor, bins: int = BINS) -> dict:
    """Expected calibration error, Brier score and the bins of the reliability diagram.

    Args:
        logits: [N, K].
        y: [N].

    Returns:
        JSON values: {ece, mean_confidence, accuracy, brier, nll, n, bins: [{low, high, n, confidence, accuracy}]}; a
        bin (low, high] without images has None for its means. ece is the mean of |accuracy - confidence| over the bins,
        weighted by their images.
    """
    probabilities = logits.double().softmax(1)
    confidence, predicted = probabilities.max(1)
    right = (predicted == y).double()
    place = (confidence * bins).ceil().long().clamp(1, bins) - 1
    rows, error = [], 0.0
    for i in range(bins):
        inside = place == i
        n = int(inside.sum())
        sure, share = (float(v[inside].mean()) if n else None for v in (confidence, right))
        error += n / len(y) * abs(share - sure) if n else 0.0
        rows.append({"low": i / bins, "high": (i + 1) / bins, "n": n, "confidence": sure, "accuracy": share})
    truth = F.one_hot(y, logits.shape[1]).double()
    return {
        "n": len(y), "ece": error, "mean_confidence": float(confidence.mean()), "accuracy": float(right.mean()),
        "brier": float((probabilities - truth).square().sum(1).mean()),
        "nll": float(torch.nan_to_num(F.cross_entropy(logits.double(), y), posinf=1e9)), "bins": rows,
    }
