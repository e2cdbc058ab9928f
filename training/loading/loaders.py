"""From stored images to uint8 batches: decoding, the per-sample transform, and the loaders."""

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import datasets
import torch
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from training.data.columns import Split
from training.data.decoding import ImageDecodeError
from training.loading.samples import REPLACEMENT_TRIES, SampleReader, Transform
from training.loading.sampling import TrainBatchSampler, TrainingPlan, evaluation_indices
from training.loading.streaming import StreamedEvaluation, StreamedTraining, StreamPositions
from training.loading.workers import begin_worker


class ImageDataset(Dataset):
    """A stored split as samples of `SampleReader`, in which `replaced` counts the bad images that a sample stands for.

    Samples are asked for by (epoch, index), and a whole batch is fetched at once.

    Args:
        split: with the reader's two columns.
        reader: makes a sample of a row.
        seed: of the run.
        replace_bad_images: replace an image that cannot be decoded by another one, which the key chooses.
    """

    def __init__(
        self, split: datasets.Dataset, reader: SampleReader, *, seed: int = 0, replace_bad_images: bool = False
    ) -> None:
        self.split = split
        self.reader = reader
        self.seed = seed
        self.replace_bad_images = replace_bad_images

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: list[tuple[int, int]]) -> list[dict[str, Any]]:
        """Called by `DataLoader` with a batch of keys: reading rows together takes a fraction of the time.

        Raises:
            ImageDecodeError: an image cannot be decoded; with `replace_bad_images`, nor can ten others.
            LabelError: a label is out of range.
        """
        rows = self.reader.images_and_labels(self.split[[index for _, index in keys]])
        return [
            self._sample(image, label, (self.seed, epoch, index))
            for (image, label), (epoch, index) in zip(rows, keys, strict=True)
        ]

    def _sample(self, image: dict[str, Any], label: int, key: tuple[int, int, int]) -> dict[str, Any]:
        try:
            return self.reader.sample(image, label, key)
        except ImageDecodeError:
            replacement = self._replacement(key) if self.replace_bad_images else None
            if replacement is None:
                raise
            return replacement

    def _replacement(self, key: tuple[int, int, int]) -> dict[str, Any] | None:
        """A sample for a key whose own image is bad; None where all that were tried are bad, too."""
        seed, epoch, index = key
        others = random.Random(f"replacement/{seed}/{epoch}/{index}")
        for _ in range(REPLACEMENT_TRIES):
            other = others.randrange(len(self))
            [(image, label)] = self.reader.images_and_labels(self.split[[other]])
            with contextlib.suppress(ImageDecodeError):
                return self.reader.sample(image, label, (seed, epoch, other)) | {"index": index, "replaced": 1}
        return None


def build_dataset(
    split: Split,
    transform: Transform,
    *,
    columns: tuple[str, str],
    num_classes: int,
    seed: int,
    rank: int,
    num_processes: int,
    positions: StreamPositions | None = None,
    replace_bad_images: bool = False,
) -> ImageDataset | StreamedEvaluation | StreamedTraining:
    """The dataset of one rank for a stored split or a stream, for `build_train_loader` or `build_eval_loader`.

    Args:
        columns: of images and of labels.
        positions: where a stream for training begins; None for evaluation.
        replace_bad_images: replace an image that cannot be decoded by another one; for training.
    """
    reader = SampleReader(*columns, transform, num_classes)
    if isinstance(split, datasets.Dataset):
        return ImageDataset(split, reader, seed=seed, replace_bad_images=replace_bad_images)
    if positions is None:
        return StreamedEvaluation(split, reader, rank=rank, num_processes=num_processes)
    return StreamedTraining(
        split,
        reader,
        start=positions,
        seed=seed,
        rank=rank,
        num_processes=num_processes,
        replace_bad_images=replace_bad_images,
    )


def build_train_loader(
    dataset: ImageDataset | StreamedEvaluation | StreamedTraining,
    plan: TrainingPlan,
    *,
    rank: int,
    total_steps: int,
    start_step: int = 0,
    num_workers: int = 0,
) -> DataLoader:
    """Micro-batches of one rank for a whole run, as `plan.micro_batches` lists them epoch after epoch.

    One pass over the loader is the run, from optimizer step `start_step` to `total_steps`: workers start once, and
    fetch ahead across the end of an epoch. Any number of workers gives the same batches. A stream never ends: take as
    many micro-batches from it as the plan says.

    Returns:
        batches `{"pixel_values": uint8 (B, 3, S, S), "labels": int64 (B,), "index": int64 (B,), "replaced": bool}`,
        the images in channels-last memory.

    Raises:
        ValueError: a stream that ends, or a stream with a plan that keeps short batches.
    """
    if isinstance(dataset, StreamedEvaluation):
        raise ValueError("training needs a stream that does not end: give build_dataset the positions to begin at")
    if isinstance(dataset, StreamedTraining):
        if not plan.drop_last:
            raise ValueError("a stream has no last, short batch to keep: set drop_last")
        return DataLoader(
            dataset, batch_size=plan.per_device_batch_size, drop_last=True, **_loader_options(num_workers)
        )
    sampler = TrainBatchSampler(plan, seed=dataset.seed, rank=rank, total_steps=total_steps, start_step=start_step)
    return DataLoader(dataset, batch_sampler=sampler, **_loader_options(num_workers))


def build_eval_loader(
    dataset: ImageDataset | StreamedEvaluation | StreamedTraining,
    *,
    batch_size: int,
    rank: int = 0,
    num_processes: int = 1,
    num_workers: int = 0,
) -> DataLoader:
    """Batches of one rank for one exact evaluation: over all ranks each sample exactly once, the last batch short.

    A rank's loader may be empty. Its workers wait for the next evaluation instead of ending.

    Raises:
        ValueError: a stream that does not end.
    """
    if isinstance(dataset, StreamedTraining):
        raise ValueError("evaluation needs a stream that ends: give build_dataset no positions")
    options = _loader_options(num_workers) | {"persistent_workers": num_workers > 0}
    if isinstance(dataset, StreamedEvaluation):
        return DataLoader(dataset, batch_size=batch_size, **options)
    indices = evaluation_indices(len(dataset), rank, num_processes)
    return DataLoader(dataset, batch_size=batch_size, sampler=EvaluationKeys(indices), **options)


class EvaluationKeys(Sampler):
    """`sampler` of a `DataLoader`: (epoch 0, index) for each index, none of them before it is asked for."""

    def __init__(self, indices: range) -> None:
        self.indices = indices

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return ((0, index) for index in self.indices)


def collate(samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Samples to a batch; the images keep their channels-last memory, which copies each of them in one piece."""
    channels_last = [sample | {"pixel_values": sample["pixel_values"].permute(1, 2, 0)} for sample in samples]
    batch = default_collate(channels_last)
    return batch | {"pixel_values": batch["pixel_values"].permute(0, 3, 1, 2)}


def _loader_options(num_workers: int) -> dict[str, Any]:
    return {
        "collate_fn": collate,
        "num_workers": num_workers,
        "pin_memory": torch.cuda.is_available(),
        # Starting a loader draws a number; drawn from here, it leaves the global generator alone.
        "generator": torch.Generator(),
        "worker_init_fn": begin_worker if num_workers else None,
    }
