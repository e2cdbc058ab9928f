"""Exact evaluation: every validation image counted once, in integers, for several models in one pass over the data."""

import contextlib
from collections.abc import Callable, Iterable, Iterator

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from training.evaluation.metrics import EvaluationResult
from training.evaluation.top_k_accuracy.target_ranks import target_ranks


def evaluate(
    models: dict[str, nn.Module],
    loader: Iterable[dict[str, torch.Tensor]],
    *,
    preprocess: Callable[[torch.Tensor], torch.Tensor],
    num_samples: int,
    num_classes: int,
    confusion: bool = False,
    progress: Callable[[int], object] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> dict[str, EvaluationResult] | None:
    """Evaluates unwrapped models on this rank's share of the images and adds up the counts of all ranks.

    The forward passes communicate nothing, so ranks may hold different numbers of batches, or none. The models run in
    eval mode and get their modes back. Mixed precision is the caller's `autocast` around this call.

    Args:
        models: name -> model whose output has `.logits` (B, K).
        loader: batches {"pixel_values": (B, 3, S, S) uint8, "labels": (B,) int64 in [0, K)} of this rank.
        preprocess: moves pixel values to the models' device and normalizes them.
        num_samples: images in the whole validation set.
        num_classes: K.
        confusion: count the K x K confusion matrix too.
        progress: called with the number of images after each batch, such as `bar.update` of tqdm.
        should_stop: asked before each batch; once it says yes, on any rank, no rank gets a result.

    Returns:
        results by name, the same on every rank; None where `should_stop` ended it.

    Raises:
        ValueError: a model's logits have another width than K.
        RuntimeError: the ranks together saw more or fewer images than `num_samples`.
    """
    device = next(next(iter(models.values())).parameters()).device
    no_integers = torch.empty(0, dtype=torch.int64)
    labels = [no_integers]
    # Rank of the label, predicted class and loss of each image. They stay on the device, so that no batch waits for a
    # transfer back; the empty first row is for a rank that has no batch at all.
    empty = (no_integers.to(device), no_integers.to(device), torch.empty(0, device=device))
    records = {name: [empty] for name in models}
    stopped = False
    with torch.inference_mode(), _eval_mode(models.values()):
        for batch in loader:
            if stopped := should_stop():
                break
            pixel_values = preprocess(batch["pixel_values"])
            targets = batch["labels"].to(device, non_blocking=True)
            for name, model in models.items():
                logits = model(pixel_values).logits.float()
                if logits.shape[1] != num_classes:
                    raise ValueError(f"{name} gives {logits.shape[1]} logits for a dataset of {num_classes} classes")
                losses = F.cross_entropy(logits, targets, reduction="none")
                records[name].append((target_ranks(logits, targets), logits.argmax(dim=1), losses))
            labels.append(batch["labels"])
            if progress is not None:
                progress(len(targets))

    if _sum_over_ranks(torch.tensor(int(stopped)), device):
        return None
    counts, loss_sums = [], []
    for rows in records.values():
        ranks, predictions, losses = (torch.cat(column).cpu() for column in zip(*rows, strict=True))
        counts.append(_count(ranks, predictions, torch.cat(labels), num_classes, confusion))
        loss_sums.append(losses.double().sum())
    totals = _sum_over_ranks(torch.stack(counts), device)
    loss_totals = _sum_over_ranks(torch.stack(loss_sums), device)
    n = int(totals[0, 0])
    if n != num_samples:
        raise RuntimeError(f"evaluation counted {n} images of a dataset of {num_samples}: each must be seen once")
    return {
        name: _result(row, loss_sum.item(), num_classes)
        for name, row, loss_sum in zip(models, totals, loss_totals, strict=True)
    }


def _count(
    ranks: torch.Tensor, predictions: torch.Tensor, labels: torch.Tensor, num_classes: int, confusion: bool
) -> torch.Tensor:
    """One model's counts in one vector: n, top-1, top-5, then by class the correct ones, the images and the
    predictions, then the confusion matrix."""
    correct, valid = ranks < 1, ranks < num_classes  # a NaN gives the rank K
    counts = [
        torch.tensor([len(ranks), correct.sum(), (ranks < min(5, num_classes)).sum()]),
        torch.bincount(labels[correct], minlength=num_classes),
        torch.bincount(labels, minlength=num_classes),
        torch.bincount(predictions[valid], minlength=num_classes),
    ]
    if confusion:
        counts.append(torch.bincount(labels[valid] * num_classes + predictions[valid], minlength=num_classes**2))
    return torch.cat(counts)


def _result(counts: torch.Tensor, loss_sum: float, num_classes: int) -> EvaluationResult:
    n, top_1_correct, top_5_correct = counts[:3].tolist()
    class_correct, class_total, class_predicted = counts[3 : 3 + 3 * num_classes].reshape(3, num_classes).tolist()
    matrix = counts[3 + 3 * num_classes :].reshape(-1, num_classes).tolist()
    by_class = (class_correct, class_total, class_predicted)
    return EvaluationResult(n, top_1_correct, top_5_correct, loss_sum, *by_class, matrix or None)


@contextlib.contextmanager
def _eval_mode(models: Iterable[nn.Module]) -> Iterator[None]:
    """Eval mode inside; afterwards every module has its own mode back, frozen BatchNorm layers too."""
    models = list(models)
    training = {module: module.training for model in models for module in model.modules()}
    try:
        for model in models:
            model.eval()
        yield
    finally:
        for module, mode in training.items():
            module.training = mode


def _sum_over_ranks(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Adds a CPU tensor up over the ranks, through the device that their process group needs."""
    if not (dist.is_available() and dist.is_initialized()):
        return tensor
    tensor = tensor.to(device)
    dist.all_reduce(tensor)
    return tensor.cpu()
