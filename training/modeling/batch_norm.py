"""BatchNorm's running statistics, which each process gathers from its own share of the images."""

import math
from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from modeling_tinynet import TinyNetConfig
from training.errors import RunError


def check_batch_size(size: int, config: TinyNetConfig, *, synchronized: bool) -> None:
    """Refuse a micro-batch without a variance: of one image, where the network ends with one value a channel.

    Raises:
        RunError: it is one, and its statistics are not those of all processes.
    """
    one_value = 2 * math.prod(config.strides)  # the stem halves the image, too
    if size == 1 and config.image_size == one_value and not synchronized:
        raise RunError(
            f"per_device_batch_size 1 at {config.image_size} pixels leaves BatchNorm a single value of each channel, "
            f"which has no variance: take per_device_batch_size 2 or more, or image_size {one_value + 1} or more"
        )


@torch.no_grad()
def average_batch_norm_statistics(model: nn.Module) -> None:
    """Replaces every running mean and variance by its mean over the ranks, in place and with one collective.

    To be called on every rank, before evaluating. With one process nothing happens.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return
    flat = batch_norm_statistics([model])
    if len(flat):
        dist.all_reduce(flat)
        set_batch_norm_statistics([model], flat / dist.get_world_size())


def batch_norm_statistics(models: Iterable[nn.Module]) -> Tensor:
    """All running means and variances of the models, one after the other, as a vector: a copy."""
    statistics = _statistics(models)
    return torch.cat(statistics) if statistics else torch.empty(0)


@torch.no_grad()
def set_batch_norm_statistics(models: Iterable[nn.Module], values: Tensor) -> None:
    """Put back what `batch_norm_statistics` returned, from any device."""
    statistics = _statistics(models)
    for buffer, value in zip(statistics, values.split([len(buffer) for buffer in statistics]), strict=True):
        buffer.copy_(value)


def _statistics(models: Iterable[nn.Module]) -> list[Tensor]:
    return [
        buffer
        for model in models
        for module in model.modules()
        if isinstance(module, _BatchNorm) and module.track_running_stats
        for buffer in (module.running_mean, module.running_var)
        if buffer is not None
    ]
