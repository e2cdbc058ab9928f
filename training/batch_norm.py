"""BatchNorm's running statistics, averaged over the processes that each saw their own share of the images."""

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


@torch.no_grad()
def average_batch_norm_statistics(model: nn.Module) -> None:
    """Replaces every running mean and variance by its mean over the ranks, in place and with one collective.

    To be called on every rank, before evaluating or saving. With one process nothing happens.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return
    statistics = [
        buffer
        for module in model.modules()
        if isinstance(module, _BatchNorm) and module.track_running_stats
        for buffer in (module.running_mean, module.running_var)
    ]
    if not statistics:
        return
    flat = torch.cat(statistics)
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for buffer, mean in zip(statistics, flat.split([len(buffer) for buffer in statistics]), strict=True):
        buffer.copy_(mean)
