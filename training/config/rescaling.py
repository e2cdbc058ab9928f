"""Learning rates and EMA decay for another global batch than the one they were chosen for."""

import dataclasses
from typing import TypeVar

from training.config.ema_decay import rescaled_decay
from training.config.fields import Fields

Config = TypeVar("Config", bound=Fields)


def rescaled(config: Config, reference_batch: int) -> tuple[Config, str | None]:
    """Carry learning rates and EMA decay over from the batch they were chosen for to the batch of the run.

    The whole curve (lr, warmup_lr, min_lr) is scaled linearly, and the EMA keeps its half-life in images. The result
    has `rescale` off, so that the resolved recipe, read again, is not rescaled twice.

    Args:
        config: the run; without `rescale`, or at `reference_batch`, its numbers are left alone.
        reference_batch: images in one optimizer step for which the numbers were chosen.

    Returns:
        The new configuration, and a sentence that says what was changed, or None.
    """
    if not config.rescale or config.global_batch_size == reference_batch:
        return dataclasses.replace(config, rescale=False), None
    factor = config.global_batch_size / reference_batch
    result = dataclasses.replace(
        config,
        lr=config.lr * factor,
        warmup_lr=config.warmup_lr * factor,
        min_lr=config.min_lr * factor,
        ema_decay=rescaled_decay(config.ema_decay, config.global_batch_size, reference_batch),
        rescale=False,
    )
    sentence = (
        f"rescaled from a global batch of {reference_batch} to {config.global_batch_size}: "
        f"lr {config.lr:g} -> {result.lr:g}, ema_decay {config.ema_decay:.7g} -> {result.ema_decay:.7g}"
    )
    return result, sentence
