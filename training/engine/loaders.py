"""The loaders of a run. Workers make uint8 images; what can be done for a whole batch is done on the device."""

import os
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader

from modeling_tinynet import TinyNetConfig
from training.config.train_config import TrainConfig, default_num_workers
from training.data.sources import Splits
from training.loading.loaders import build_dataset, build_eval_loader, build_train_loader
from training.loading.sampling import TrainingPlan
from training.loading.streaming import StreamPositions
from training.loading.workers import batches_in_time
from training.transforms.augmentation import EvalTransform, TrainTransform


@dataclass(frozen=True)
class Loaders:
    """Of one rank."""

    train: DataLoader  # all micro-batches from the start step to the last
    evaluation: DataLoader
    positions: StreamPositions | None  # where the workers are in a stream; None for a stored dataset
    num_workers: int
    timeout_s: int

    def train_batches(self) -> Generator[dict[str, Tensor], None, None]:
        """One pass over `train`, which starts its workers. Of a stream, each micro-batch is noted in `positions`."""
        batches = batches_in_time(self.train, self.timeout_s)
        return self.positions.followed(batches) if self.positions else batches

    def eval_batches(self) -> Iterator[dict[str, Tensor]]:
        """One pass over `evaluation`, whose workers stay."""
        return batches_in_time(self.evaluation, self.timeout_s)


def build_loaders(
    config: TrainConfig,
    splits: Splits,
    plan: TrainingPlan,
    network_config: TinyNetConfig,
    rank: int,
    start_step: int = 0,
    stream: Tensor | None = None,
) -> Loaders:
    """Loaders of the run of `config`; no worker starts yet.

    Args:
        network_config: for the sizes of its images.
        rank: of this process among those of `plan`.
        start_step: optimizer steps done.
        stream: positions of all ranks at the checkpoint, see `StreamPositions`; None at the start of a run.
    """
    num_workers = config.num_workers
    if num_workers is None:
        num_workers = default_num_workers(int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
    positions = None
    if config.streaming:
        before, epoch = plan.micro_batches_before(start_step), start_step // plan.steps_per_epoch
        positions = StreamPositions(
            num_workers, before, epoch, saved=stream, rank=rank, num_processes=plan.num_processes
        )
    reading: dict[str, Any] = {
        "columns": (splits.image_column, splits.label_column),
        "num_classes": len(splits.class_names),
        "seed": config.seed,
        "rank": rank,
        "num_processes": plan.num_processes,
    }
    train_dataset = build_dataset(
        splits.train,
        TrainTransform(network_config.image_size, **config.sample_transform()),
        positions=positions,
        replace_bad_images=config.on_bad_image != "stop",
        **reading,
    )
    eval_transform = EvalTransform(network_config.image_size, network_config.resize_size)
    eval_dataset = build_dataset(splits.validation, eval_transform, **reading)
    total_steps = config.epochs * plan.steps_per_epoch
    train_loader = build_train_loader(
        train_dataset, plan, rank=rank, total_steps=total_steps, start_step=start_step, num_workers=num_workers
    )
    eval_loader = build_eval_loader(
        eval_dataset,
        batch_size=config.per_device_batch_size,
        rank=rank,
        num_processes=plan.num_processes,
        num_workers=num_workers,
    )
    return Loaders(train_loader, eval_loader, positions, num_workers, config.timeout_s)
