"""Label smoothing as the original has it, and cross-entropy against soft targets."""

import torch
from torch import Tensor
from torch.nn import functional as F


def smoothed_targets(labels: Tensor, num_classes: int, smoothing: float) -> Tensor:
    """Target probabilities in MindSpore's form: 1 - s for the label, s / (K - 1) for each of the other K - 1 classes.

    torch's `label_smoothing` spreads s over all K classes; it gives the same targets for s K / (K - 1).

    Args:
        labels: (B,) integers from 0 to num_classes - 1.
        smoothing: s, at least 0 and below 1; 0 gives one-hot targets.

    Returns:
        (B, num_classes) float32, each row of sum 1.

    Raises:
        ValueError: smoothing out of range, or fewer than two classes.
    """
    if not 0 <= smoothing < 1:
        raise ValueError(f"smoothing must be at least 0 and below 1, got {smoothing}")
    if num_classes < 2:
        raise ValueError(f"num_classes must be at least 2, got {num_classes}")
    shape = (len(labels), num_classes)
    targets = torch.full(shape, smoothing / (num_classes - 1), dtype=torch.float32, device=labels.device)
    return targets.scatter_(1, labels.long().unsqueeze(1), 1 - smoothing)


def soft_cross_entropy(logits: Tensor, targets: Tensor, reduction: str = "sum") -> Tensor:
    """Cross-entropy between target probabilities and logits, in float32 whatever the precision of the logits.

    Args:
        logits: (B, K).
        targets: (B, K), each row of sum 1.
        reduction: "sum" or "mean" over the batch, or "none" for (B,).

    Raises:
        ValueError: another reduction.
    """
    return F.cross_entropy(logits.float(), targets.float(), reduction=reduction)
