"""The order of the samples in an epoch, and which of them are held out: pure functions of their seeds."""

import numpy as np


def epoch_permutation(num_samples: int, seed: int, epoch: int) -> np.ndarray:
    """The order in which an epoch visits the samples: int64 of shape (num_samples,).

    Sorts the raw output of a Philox generator keyed by (seed, epoch). NumPy promises that output to stay the same
    between versions and platforms, which it does not for `Generator.permutation`.

    Raises:
        ValueError: `seed` or `epoch` is negative.
    """
    if seed < 0 or epoch < 0:
        raise ValueError(f"seed and epoch must not be negative, got {seed} and {epoch}")
    key = np.random.SeedSequence(seed, spawn_key=(epoch,))
    return np.argsort(np.random.Philox(key).random_raw(num_samples), kind="stable")


def stratified_holdout(labels: np.ndarray, fraction: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Split sample indices into (kept, held out), both sorted.

    From each class `fraction` of the samples is held out, rounded, but at least one and never all; a class with a
    single sample keeps it.

    Args:
        labels: integers of shape (num_samples,).
        fraction: between 0 and 1, both excluded.
        seed: decides which samples are held out.

    Raises:
        ValueError: `fraction` is out of range.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"the held-out fraction must lie between 0 and 1, got {fraction}")
    order = epoch_permutation(len(labels), seed, 0)
    by_class = order[np.argsort(labels[order], kind="stable")]
    held_out = []
    start = 0
    for count in np.unique(labels, return_counts=True)[1].tolist():
        share = min(max(1, round(count * fraction)), count - 1)
        held_out.append(by_class[start : start + share])
        start += count
    held = np.sort(np.concatenate(held_out)) if held_out else np.empty(0, dtype=np.int64)
    return np.setdiff1d(np.arange(len(labels)), held, assume_unique=True), held
