"""
Training images per second from a shuffled stream beside the same Parquet files stored, through the whole loader.

    python -m benchmarks.streaming --output benchmarks/results/streaming.json      # a few minutes

- here: the trainer's stream, its shards and blocks shuffled, of eight files.
- stored: the same files as a stored split, which is shuffled by index.
- datasets: the order of `IterableDataset.shuffle` with a buffer of as many images, and the same samples.

They take turns as in `benchmarks.input`.
"""

import argparse
import itertools
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import torch
from torch.utils.data import DataLoader, IterableDataset

from benchmarks.input import PREFETCHED, batch_turn, figures, take_turns, write_photos
from training.data.sources import Splits, load_splits
from training.loading.loaders import build_dataset, build_train_loader, collate
from training.loading.samples import SampleReader
from training.loading.sampling import TrainingPlan
from training.loading.streaming import BLOCK_ROWS, StreamPositions
from training.loading.workers import begin_worker
from training.prepare import prepare
from training.system.environment import environment
from training.transforms.augmentation import TrainTransform

IMAGE_SIZE = 192
SHARDS = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=3.0, help="of a turn")
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--num_workers", type=int, default=2)
    parser.add_argument("--output", type=Path, help="JSON file, such as benchmarks/results/streaming.json")
    options = parser.parse_args()
    datasets.disable_progress_bars()
    torch.set_num_threads(1)

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_photos(folder / "photos", options.images)
        command = ["--dataset", folder / "photos", "--output", folder / "parquet", "--shorter_side", 10_000]
        prepare.main([*map(str, command), "--shard_size", str(-(-options.images // SHARDS))])
        readers = {
            "here": our_batches(folder / "parquet", options, streaming=True),
            "stored": our_batches(folder / "parquet", options, streaming=False),
            "datasets": batches_of_datasets(folder / "parquet", options),
        }
        turns = {
            name: batch_turn(batches, PREFETCHED * options.num_workers, options.batch_size)
            for name, batches in readers.items()
        }
        [by_round] = take_turns([turns], options)

    names = ("rounds", "seconds", "images", "batch_size", "num_workers")
    report = {
        "environment": environment(),
        **{name: getattr(options, name) for name in names},
        "image_size": IMAGE_SIZE,
        **figures(by_round),
    }
    print(json.dumps({name: report[name] for name in ("images_per_s", "ratio_to")}))
    if options.output:
        options.output.write_text(json.dumps(report, indent=2) + "\n")


def our_batches(parquet: Path, options: argparse.Namespace, *, streaming: bool) -> Iterator[dict[str, torch.Tensor]]:
    splits = load_splits(str(parquet), streaming=False)
    plan = TrainingPlan(len(splits.train), options.batch_size, options.batch_size, drop_last=True)
    if streaming:
        (parquet / "README.md").write_text(card(len(splits.train), len(splits.validation)))
        splits = load_splits(str(parquet), streaming=True)
    dataset = build_dataset(
        splits.train,
        TrainTransform(IMAGE_SIZE),
        columns=(splits.image_column, splits.label_column),
        num_classes=len(splits.class_names),
        seed=0,
        rank=0,
        num_processes=1,
        positions=StreamPositions(options.num_workers, 0, 0, None) if streaming else None,
    )
    return iter(build_train_loader(dataset, plan, rank=0, total_steps=10**9, num_workers=options.num_workers))


def card(train: int, validation: int) -> str:
    """The sizes of the splits, as the Hub states them."""
    sizes = "".join(
        f"  - name: {name}\n    num_bytes: 1\n    num_examples: {count}\n"
        for name, count in (("train", train), ("validation", validation))
    )
    return f"---\ndataset_info:\n  splits:\n{sizes}---\n"


class ShuffledByDatasets(IterableDataset):
    """The same samples, in the order of `IterableDataset.shuffle`."""

    def __init__(self, splits: Splits) -> None:
        self.rows = splits.train.shuffle(seed=0, buffer_size=BLOCK_ROWS)
        self.reader = SampleReader(
            splits.image_column, splits.label_column, TrainTransform(IMAGE_SIZE), len(splits.class_names)
        )

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for number in itertools.count():
            for row in self.rows:
                image, label = row[self.reader.image_column], row[self.reader.label_column]
                yield self.reader.sample(image, label, (0, number, 0))


def batches_of_datasets(parquet: Path, options: argparse.Namespace) -> Iterator[dict[str, torch.Tensor]]:
    loader = DataLoader(
        ShuffledByDatasets(load_splits(str(parquet), streaming=True)),
        batch_size=options.batch_size,
        num_workers=options.num_workers,
        collate_fn=collate,
        worker_init_fn=begin_worker,
    )
    return iter(loader)


if __name__ == "__main__":
    main()
