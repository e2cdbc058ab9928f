"""The rank of an image's own class among the logits: the one definition of top-k here.

It stands alone so that the trainer need not import the `evaluate` library, which takes seconds, and beside the metric
so that `evaluate.load` copies both.
"""

import torch


def target_ranks(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """How many classes are placed before each row's label: a row is correct at top-k if its rank is below k.

    Larger logits come first, equal ones in the order of their index: a rank does not depend on a sorting algorithm.
    A row that holds a NaN predicts nothing: its rank is K, wrong at any k.

    Args:
        logits: (B, K) floating point.
        labels: (B,) int64 in [0, K).

    Returns:
        (B,) int64 in [0, K].
    """
    labels = labels.unsqueeze(1)
    target = logits.gather(1, labels)
    index = torch.arange(logits.shape[1], device=logits.device)
    before = (logits > target) | ((logits == target) & (index < labels))
    return torch.where(logits.isnan().any(dim=1), logits.shape[1], before.sum(dim=1))
