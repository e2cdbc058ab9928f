"""Writes a copy of a dataset as Parquet, with images made smaller once instead of in every epoch.

python -m training.prepare --dataset photos --output photos-256 --shorter_side 256

A small network trains faster than its images can be decoded; most of them are far larger than what it looks at.
"""

import argparse
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from torch.utils.data import DataLoader
from tqdm import tqdm

from training.command import CommandParser
from training.config.arguments import add_data_flags, add_num_workers_flag, data_config, whole_number
from training.data.columns import read_column
from training.data.fingerprint import FILE_SIZES, data_fingerprint, file_sizes
from training.data.sources import Splits, load_splits
from training.loading.encoded_images import EncodedImages
from training.loading.workers import begin_worker
from training.prepare.prepared_copy import PreparedCopy, PrepareError, Shard, plan_shards, require_apart
from training.prepare.shrinking import ShrunkenImage, shrunken_images
from training.reporting.console import format_duration, format_speed
from training.system.environment import environment

BATCH = 16  # images that a worker makes at once
EPILOG = """\
what it changes:
  Training images whose shorter side is longer than --shorter_side are resized once (bicubic, antialiased) and stored
  as JPEG; none is enlarged. Random crops are then cut from these, so that small ones have less detail. EXIF
  orientation is applied, and whatever is no plain JPEG becomes one. Small plain JPEGs are copied byte for byte.
  Validation images are copied byte for byte, so that the accuracy is that of the published evaluation;
  --resize_validation makes them smaller too: less to store and to decode, and an accuracy of its own.

An interrupted copy continues with the same command. It is called OUTPUT.partial until it is complete and verified:
labels one by one, and the sha256 of each shard, which stand in OUTPUT/prepared.json.

exit code:
  0    the copy is there
  2    a flag is wrong, an image cannot be decoded, or the copy cannot be written; one sentence says why
  130  Ctrl-C

examples:
  python -m training.prepare --dataset photos --output photos-256 --shorter_side 256
  python -m training.prepare --dataset ILSVRC/imagenet-1k --output in1k-160 --shorter_side 160 --num_workers 16
  accelerate launch train.py --recipe configuration/tinynet_e.yaml --dataset in1k-160
"""


def build_parser() -> CommandParser:
    parser = CommandParser(
        prog="python -m training.prepare",
        description=__doc__.splitlines()[0],
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_data_flags(parser)
    copy = parser.add_argument_group("the copy")
    copy.add_argument(
        "--output", type=Path, required=True, metavar="FOLDER", help="a new folder, outside of the dataset"
    )
    copy.add_argument(
        "--shorter_side", type=whole_number(1), default=256, metavar="N", help="in pixels (default: %(default)s)"
    )
    copy.add_argument(
        "--quality", type=whole_number(1), default=95, metavar="N", help="of JPEG, 1 to 100 (default: %(default)s)"
    )
    copy.add_argument("--resize_validation", action="store_true", help="make validation images smaller too")
    copy.add_argument(
        "--on_bad_image",
        choices=("stop", "skip"),
        default="stop",
        help="an image that cannot be decoded: stop, or leave it out (default: %(default)s)",
    )
    copy.add_argument(
        "--shard_size", type=whole_number(1), default=2000, metavar="N", help="images in a file (default: 2000)"
    )
    running = parser.add_argument_group("running")
    add_num_workers_flag(running)
    return parser


def main(argv: Sequence[str]) -> None:
    """Make the copy, or continue with it.

    Raises:
        DataError, PrepareError, OSError: see `load_splits`, `require_apart` and `prepare`.
    """
    parser = build_parser()
    options = parser.parse_args(argv)
    if options.quality > 100:
        parser.error(f"argument --quality: must be a whole number from 1 to 100, got {options.quality}")
    config = data_config(parser, options)
    require_apart(config.dataset, options.output)
    splits = load_splits(config.dataset, **config.source())
    print(splits.description, flush=True)  # or workers, which are forks, print it too
    prepare(splits, config.dataset, options)


def prepare(splits: Splits, dataset: str, options: argparse.Namespace) -> None:
    """Make the copy of both splits, or continue with it, and say what it is.

    Raises:
        PrepareError, OSError: see `PreparedCopy`; or an image cannot be decoded.
    """
    started_at = time.perf_counter()
    names = ("shorter_side", "quality", "resize_validation", "on_bad_image", "shard_size")
    identity = {
        **{name: getattr(options, name) for name in names},
        "columns": [splits.image_column, splits.label_column],
        "class_names": splits.class_names,
        **{
            f"{name}_fingerprint": data_fingerprint(split, splits.image_column, splits.label_column)
            for name, split in splits.by_name.items()
        },
        **{name + FILE_SIZES: file_sizes(split, splits.image_column) for name, split in splits.by_name.items()},
    }
    labels = {name: read_column(split, splits.label_column).to_numpy() for name, split in splits.by_name.items()}
    plans = {name: plan_shards(name, len(split), options.shard_size) for name, split in splits.by_name.items()}
    copy = PreparedCopy(options.output, identity)
    was_complete = copy.is_complete
    if not was_complete:
        made = _write_shards(copy, splits, labels, plans, options)
    in_copy = copy.verify([shard for plan in plans.values() for shard in plan], labels, splits.label_column)
    seconds = time.perf_counter() - started_at
    if not was_complete:
        copy.finish(_facts(copy, splits, dataset, in_copy))
        rate = f"{format_speed(made / seconds)} images/s, {format_duration(seconds)}"
        print(f"{made:,} images at {rate} with {options.num_workers} processes")
    print(_summary(copy, options))


def _write_shards(
    copy: PreparedCopy,
    splits: Splits,
    labels: dict[str, np.ndarray],
    plans: dict[str, list[Shard]],
    options: argparse.Namespace,
) -> int:
    """Write the shards that are not there yet; returns the number of their images."""
    features = datasets.Features(
        {
            splits.image_column: datasets.Image(),
            splits.label_column: datasets.ClassLabel(names=splits.class_names),
        }
    )
    missing = {name: [shard for shard in plan if not copy.has(shard)] for name, plan in plans.items()}
    made = sum(shard.stop - shard.start for shards in missing.values() for shard in shards)
    total = sum(map(len, labels.values()))
    with tqdm(total=total, initial=total - made, desc="prepare", unit=" images", dynamic_ncols=True) as bar:
        for name, split in splits.by_name.items():
            is_resized = name == "train" or options.resize_validation
            shorter_side = options.shorter_side if is_resized else None
            images = shrunken_images(
                split, splits.image_column, name, shorter_side=shorter_side, quality=options.quality
            )
            batches = _batches(images, missing[name], options.num_workers)
            for shard in missing[name]:
                copy.add(
                    shard, _images_of(shard, batches, options, bar), labels[name][shard.start : shard.stop], features
                )
    return made


def _batches(
    images: EncodedImages[ShrunkenImage], shards: list[Shard], num_workers: int
) -> Iterator[list[ShrunkenImage]]:
    """The shards' images one after the other, at most `BATCH` at a time and never of two shards."""
    batches = [
        list(range(start, min(start + BATCH, shard.stop)))
        for shard in shards
        for start in range(shard.start, shard.stop, BATCH)
    ]
    if not batches:
        return iter(())
    loader = DataLoader(
        images,
        batch_sampler=batches,
        num_workers=num_workers,
        collate_fn=list,
        worker_init_fn=begin_worker if num_workers else None,
    )
    return iter(loader)


def _images_of(
    shard: Shard, batches: Iterator[list[ShrunkenImage]], options: argparse.Namespace, bar: tqdm
) -> list[ShrunkenImage]:
    """The next shard's images.

    Raises:
        PrepareError: one of them cannot be decoded, and is not to be skipped.
    """
    images: list[ShrunkenImage] = []
    while len(images) < shard.stop - shard.start:
        batch = next(batches)
        bad = next((image.how for image in batch if image.data is None), None)
        if bad and options.on_bad_image == "stop":
            raise PrepareError(f"{bad}; --on_bad_image skip leaves such images out")
        images += batch
        bar.update(len(batch))
    return images


def _facts(copy: PreparedCopy, splits: Splits, dataset: str, labels: dict[str, np.ndarray]) -> dict[str, Any]:
    """What the manifest says beside the identity and the shards."""
    counts = {name: np.bincount(ids, minlength=len(splits.class_names)).tolist() for name, ids in labels.items()}
    return {
        "source": dataset,
        "description": splits.description,
        "environment": environment(),
        "splits": {
            name: {
                "images": len(ids),
                "by_class": dict(zip(splits.class_names, counts[name], strict=True)),
            }
            for name, ids in labels.items()
        },
    }


def _summary(copy: PreparedCopy, options: argparse.Namespace) -> str:
    """What the copy is, and what it changes."""
    shards = copy.shards.values()

    def count(fact: str, split: str | None = None) -> int:
        return sum(shard[fact] for shard in shards if split in (None, shard["split"]))

    before, after = count("source_bytes"), count("bytes")
    left_out = [facts["reason"] for shard in shards for facts in shard["left_out"]]
    lines = [
        f"{copy.output}: {count('images', 'train'):,} training and {count('images', 'validation'):,} validation "
        f"images, verified; {_megabytes(before)} -> {_megabytes(after)} ({100 * after / before:.0f} %)",
        f"{count('resized'):,} images were resized to a shorter side of {options.shorter_side} px, "
        f"{count('encoded'):,} stored as JPEG in their own size, {count('copied'):,} copied byte for byte",
        *(f"left out: {reason}" for reason in left_out[:10]),
        *([f"left out: {len(left_out):,} images in all"] if left_out else []),
        "what it changes: random crops are cut from the smaller images, so that small crops have less detail; "
        + (
            "validation images are smaller too, and the accuracy is not that of the published evaluation"
            if options.resize_validation
            else "evaluation sees the original images"
        ),
        f"to train on it: the same command with --dataset {copy.output}",
    ]
    return "\n".join(lines)


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"
