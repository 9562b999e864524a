"""The weighted loss of Eq. 1 (Sec. 3)."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def weighted_cross_entropy(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Return the pixel-wise softmax cross-entropy, weighted by w(x) (Eq. 1).

    ``-sum w(x) log p_label(x) / sum w(x)`` of float logits (N, classes, H, W), int64 labels and
    float weights (N, H, W); a weight 0 leaves a pixel out, and where all are 0 so is the loss.

    Notes
    -----
    Eq. 1 as printed lacks the minus sign. Not in the paper: the division by the sum of the weights
    (the authors' later code divides so). It keeps the learning rate's meaning whatever w0 is.
    """
    negative_log = F.cross_entropy(logits.float(), labels, reduction="none")  # (N, H, W)
    total = weights.sum()
    return (weights * negative_log).sum() / total.clamp(min=1e-12)
