"""What makes a run the run that it is: settings and data, which its checkpoints hold and a resume compares."""

from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import broadcast_object_list

from training.config.train_config import TrainConfig
from training.data.fingerprint import FILE_SIZES, data_fingerprint, file_sizes
from training.data.sources import Splits, num_samples
from training.system.environment import machine


@dataclass(frozen=True)
class RunIdentity:
    """JSON values, as `training.run.resume` compares them."""

    settings: dict[str, Any]  # what decides about the result
    execution: dict[str, Any]  # what may differ from start to start
    data: dict[str, Any]  # what the dataset is


def identify(
    config: TrainConfig, splits: Splits, device: torch.device, *, rank: int, num_processes: int
) -> RunIdentity:
    """The identity of the run of `config` on `splits`; to be called on every rank, each of which needs its own copy of
    the data."""
    data: dict[str, Any] = {
        "num_train": num_samples(splits.train),
        "num_validation": num_samples(splits.validation),
    }
    if not config.streaming:
        for name, split in (("train", splits.train), ("validation", splits.validation)):
            data[f"{name}_fingerprint"] = data_fingerprint(split, splits.image_column, splits.label_column)
            sizes = file_sizes(split, splits.image_column) if rank == 0 else None  # a look at every file, once
            data[name + FILE_SIZES] = broadcast_object_list([sizes])[0]
    return RunIdentity(
        settings=config.settings() | {"class_names": splits.class_names},
        execution=config.execution() | {"num_processes": num_processes} | machine(device),
        data=data,
    )
