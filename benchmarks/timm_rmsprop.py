"""timm's optimizer of the published recipe, for comparisons."""

import timm.optim
import torch
from torch import nn

from training.config.train_config import TrainConfig


def timm_rmsprop(network: nn.Module, published: TrainConfig, lr: float, **options: bool) -> torch.optim.Optimizer:
    """RMSpropTF with the published values, in the parameter groups of timm's own factory.

    Args:
        options: of timm's class, such as `foreach`.
    """
    return timm.optim.create_optimizer_v2(
        network,
        "rmsproptf",
        lr=lr,
        momentum=published.momentum,
        eps=published.optimizer_eps,
        weight_decay=published.weight_decay,
        alpha=published.rho,
        **options,
    )
