"""The network of a run on its device."""

import torch

from modeling_tinynet import TinyNetForImageClassification
from training.config.train_config import TrainConfig
from training.modeling.batch_norm import check_batch_size
from training.modeling.build import build_model, model_config


def build_network(
    config: TrainConfig, class_names: list[str], device: torch.device, *, num_processes: int = 1
) -> tuple[TinyNetForImageClassification, str]:
    """The network that `config` asks for, on `device` and in its memory format.

    Args:
        class_names: of the dataset, in the order of the labels.
        num_processes: that train together.

    Returns:
        (network, one line on what was kept of saved weights).

    Raises:
        ModelError: there is no such model, or it cannot be loaded.
        RunError: a field has a value no network can be built from, or a micro-batch is too small for BatchNorm.
    """
    network_config = model_config(config.model, class_names, **config.network())
    synchronized = config.sync_batch_norm and num_processes > 1
    check_batch_size(config.per_device_batch_size, network_config, synchronized=synchronized)
    network, head = build_model(config.model, network_config, seed=config.seed)
    if config.sync_batch_norm:
        network = torch.nn.SyncBatchNorm.convert_sync_batchnorm(network)
    memory_format = torch.channels_last if config.channels_last else torch.contiguous_format
    return network.to(device, memory_format=memory_format), head
