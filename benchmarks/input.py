"""
Training images per second beside timm's loader and the transform of transformers' example, on photographs as JPEG.

    python -m benchmarks.input --output benchmarks/results/input.json --plot docs/input.png

A quarter of an hour on two cores.

What is compared: from JPEG files, which the system's cache holds, to normalised batches, all by the published recipe:
random crop, flip, colour jitter 0.4, normalisation. All are given the same folder of photographs of ImageNet's usual
size: 500 x 375 pixels or upright, at most 120 KB.

- timm: `timm.data.create_loader` with bicubic resizing. It normalises on the device, here the processor.
- transformers: the transform of its example for image classification (bilinear), with ColorJitter, which it lacks.
- here: the trainer's own dataset, transforms and loader, with jitter and normalisation on the device, the processor.
- prepared: the same on a copy by `python -m training.prepare --shorter_side 256`.

One process: on one thread, which is what a core can do. With workers: the whole loader, the training process waiting
for it. Evaluation: timm's transform and ours, one process. And how near decoding, cropping, resizing and flipping come
to decoding alone, which is the limit of them all: encoded images in memory, one thread.

All take turns of some seconds, the order swapped at each round. Figures are medians over rounds, ratios medians of the
ratios within a round: above 1 where reading is faster here. What loader workers have made before their turn does not
count, and a turn begins when those of the one before are idle.
"""

import argparse
import contextlib
import io
import itertools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import simplejpeg
import timm.data
import torch
import torchvision.transforms as T
from PIL import Image
from torch.utils.data import DataLoader

from benchmarks.input_plot import save_plot
from modeling_tinynet import TinyNetConfig
from tests.photos import PHOTOS
from training.config.train_config import TrainConfig
from training.data.decoding import decode_rgb
from training.data.sources import Splits, load_splits
from training.loading.loaders import build_dataset, build_eval_loader, build_train_loader
from training.loading.sampling import TrainingPlan
from training.prepare import prepare
from training.system.environment import environment
from training.transforms.augmentation import EvalTransform, TrainTransform
from training.transforms.device_transforms import DeviceTransform

PUBLISHED = TrainConfig()
SETTLING_S = 1.0  # until loader workers of the turn before have filled their queues
MODELS = {192: "tinynet_a", 106: "tinynet_e"}
LONG, SHORT = 500, 375  # pixels, the commonest size of ImageNet-1k's images
QUALITIES, MOST_BYTES = (98, 96, 94, 92, 90, 85), 120_000
PREPARED_SIDE = 256
PREFETCHED = 2  # batches that each worker of torch's loader holds ready
LONG_EPOCH = 200_000  # images: nobody comes to an end of it, where loaders pause

Turn = Callable[[float], float]  # seconds to images per second
Batches = Iterator[Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=3.0, help="of a turn")
    parser.add_argument("--images", type=int, default=600)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--num_workers", type=int, nargs="*", default=[1, 2], help="beside one process")
    parser.add_argument("--image_sizes", type=int, nargs="*", default=list(MODELS), choices=MODELS)
    parser.add_argument("--output", type=Path, help="JSON file for the results, such as benchmarks/results/input.json")
    parser.add_argument("--plot", type=Path, help="PNG file for an image of them, such as docs/input.png")
    options = parser.parse_args()
    datasets.disable_progress_bars()
    torch.set_num_threads(1)

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        sizes = write_photos(folder / "photos", options.images)
        command = ["--dataset", folder / "photos", "--output", folder / "copy", "--shorter_side", PREPARED_SIDE]
        with contextlib.redirect_stdout(sys.stderr):
            prepare.main([*map(str, command), "--resize_validation"])
        groups = [group for size in options.image_sizes for group in contests(folder, size, options)]
        rates = take_turns([group["turns"] for group in groups], options)

    report = {
        "environment": environment(),
        **{name: getattr(options, name) for name in ("rounds", "seconds", "images", "batch_size")},
        "mean_image_bytes": statistics.mean(sizes),
        "prepared_side": PREPARED_SIDE,
        "results": [
            {name: value for name, value in group.items() if name != "turns"} | figures(by_round)
            for group, by_round in zip(groups, rates, strict=True)
        ],
    }
    for row in report["results"]:
        print(json.dumps({name: value for name, value in row.items() if name != "by_round"}))
    if options.output:
        options.output.write_text(json.dumps(report, indent=2) + "\n")
    if options.plot:
        save_plot(report, options.plot)


def write_photos(root: Path, count: int) -> list[int]:
    """Write `root/{train,val}/<class>/*.jpg`, windows of real photographs, and return the sizes in bytes."""
    random = np.random.default_rng(0)
    photos = {name: Image.fromarray(photo()).convert("RGB") for name, photo in PHOTOS.items()}
    sizes = []
    for number, (name, photo) in zip(range(count), itertools.cycle(photos.items())):
        data = encoded_window(photo, random)
        sizes.append(len(data))
        for split in ("train", "val"):
            path = root / split / name / f"{number:05}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    return sizes


def encoded_window(photo: Image.Image, random: np.random.Generator) -> bytes:
    """A random window in the size of ImageNet's images, as JPEG of the best quality that is not too large."""
    width, height = (LONG, SHORT) if random.random() < 0.75 else (SHORT, LONG)
    scale = min(photo.width / width, photo.height / height) * random.uniform(0.6, 1)
    window_width, window_height = int(width * scale), int(height * scale)
    left = random.integers(photo.width - window_width + 1)
    top = random.integers(photo.height - window_height + 1)
    box = (left, top, left + window_width, top + window_height)
    window = photo.resize((width, height), Image.Resampling.BICUBIC, box=box)
    for quality in QUALITIES:
        file = io.BytesIO()
        window.save(file, "JPEG", quality=quality)
        if file.tell() <= MOST_BYTES:
            break
    return file.getvalue()


def contests(folder: Path, image_size: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    """What is compared at one image size: {"what", "image_size", "num_workers", "turns": {who: turn}}."""
    config = TinyNetConfig.from_variant(MODELS[image_size])
    photos, copy = (load_splits(str(folder / name)) for name in ("photos", "copy"))
    here = {"here": photos, "prepared": copy}
    groups = []
    for num_workers in (0, *options.num_workers):
        batches = {
            "timm": timms_batches(folder / "photos", config, num_workers, options.batch_size),
            "transformers": transformers_batches(folder / "photos", config, num_workers, options.batch_size),
            **{name: our_batches(splits, config, num_workers, options.batch_size) for name, splits in here.items()},
        }
        turns = {
            name: batch_turn(iterator, PREFETCHED * num_workers, options.batch_size)
            for name, iterator in batches.items()
        }
        groups.append({"what": "training", "image_size": image_size, "num_workers": num_workers, "turns": turns})

    batches = {
        "timm": timms_batches(folder / "photos", config, 0, options.batch_size, is_training=False),
        **{name: our_evaluation_batches(splits, config, options.batch_size) for name, splits in here.items()},
    }
    turns = {name: batch_turn(iterator, 0, options.batch_size) for name, iterator in batches.items()}
    groups.append({"what": "evaluation", "image_size": image_size, "num_workers": 0, "turns": turns})

    encoded = [
        Path(row["image"]["path"]).read_bytes() for row in photos.train.select(range(min(200, len(photos.train))))
    ]
    transform = TrainTransform(image_size)
    turns = {
        "decoding": image_turn(encoded, lambda data, index: simplejpeg.decode_jpeg(data, "RGB")),
        "here": image_turn(encoded, lambda data, index: transform(decode_rgb(data), (0, 0, index))),
    }
    groups.append({"what": "decoding", "image_size": image_size, "num_workers": 0, "turns": turns})
    return groups


def our_batches(splits: Splits, config: TinyNetConfig, num_workers: int, batch_size: int) -> Batches:
    dataset = build_dataset(
        splits.train,
        TrainTransform(config.image_size, PUBLISHED.crop_scale, PUBLISHED.crop_ratio, PUBLISHED.horizontal_flip),
        columns=(splits.image_column, splits.label_column),
        num_classes=len(splits.class_names),
        seed=0,
        rank=0,
        num_processes=1,
    )
    plan = TrainingPlan(len(dataset), batch_size, batch_size, drop_last=True)
    device_transform = DeviceTransform(config.image_mean, config.image_std, color_jitter=PUBLISHED.color_jitter)
    loader = build_train_loader(dataset, plan, rank=0, total_steps=10**9, num_workers=num_workers)
    for batch in loader:
        yield device_transform(batch["pixel_values"], batch["labels"], epoch=0, indices=batch["index"], step=0, rank=0)


def our_evaluation_batches(splits: Splits, config: TinyNetConfig, batch_size: int) -> Batches:
    dataset = build_dataset(
        splits.validation,
        EvalTransform(config.image_size, config.resize_size),
        columns=(splits.image_column, splits.label_column),
        num_classes=len(splits.class_names),
        seed=0,
        rank=0,
        num_processes=1,
    )
    device_transform = DeviceTransform(config.image_mean, config.image_std)
    loader = build_eval_loader(dataset, batch_size=batch_size)
    while True:
        for batch in loader:
            if len(batch["labels"]) == batch_size:
                yield device_transform.normalize_only(batch["pixel_values"])


def timms_batches(
    photos: Path, config: TinyNetConfig, num_workers: int, batch_size: int, is_training: bool = True
) -> Batches:
    dataset = timm.data.ImageDataset(str(photos / ("train" if is_training else "val")))
    dataset.reader.samples *= -(-LONG_EPOCH // len(dataset.reader.samples))
    loader = timm.data.create_loader(
        dataset,
        input_size=(3, config.image_size, config.image_size),
        batch_size=batch_size,
        is_training=is_training,
        color_jitter=PUBLISHED.color_jitter,
        interpolation="bicubic",
        mean=tuple(config.image_mean),
        std=tuple(config.image_std),
        crop_pct=config.crop_pct,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        device=torch.device("cpu"),
    )
    return iter(loader)


def transformers_batches(photos: Path, config: TinyNetConfig, num_workers: int, batch_size: int) -> Batches:
    """The lines of run_image_classification_no_trainer.py that make its batches, with jitter."""
    data = datasets.load_dataset("imagefolder", data_dir=str(photos), split="train")
    data = datasets.concatenate_datasets([data] * -(-LONG_EPOCH // len(data)))
    strength = PUBLISHED.color_jitter
    transform = T.Compose(
        [
            T.RandomResizedCrop(config.image_size),
            T.RandomHorizontalFlip(),
            T.ColorJitter(strength, strength, strength),
            T.ToTensor(),
            T.Normalize(mean=config.image_mean, std=config.image_std),
        ]
    )

    def preprocess(examples: dict[str, list[Any]]) -> dict[str, list[Any]]:
        examples["pixel_values"] = [transform(image.convert("RGB")) for image in examples["image"]]
        return examples

    def collate(examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        pixel_values = torch.stack([example["pixel_values"] for example in examples])
        return {"pixel_values": pixel_values, "labels": torch.tensor([example["label"] for example in examples])}

    loader = DataLoader(
        data.with_transform(preprocess),
        shuffle=True,
        collate_fn=collate,
        batch_size=batch_size,
        num_workers=num_workers,
    )
    return iter(loader)


def batch_turn(batches: Batches, prefetched: int, batch_size: int) -> Turn:
    """A turn on batches, after those that workers have made before it."""

    def turn(seconds: float) -> float:
        for _ in range(prefetched):
            next(batches)
        started_at = time.perf_counter()
        for count in itertools.count(1):
            next(batches)
            elapsed = time.perf_counter() - started_at
            if elapsed >= seconds:
                return count * batch_size / elapsed

    return turn


def image_turn(encoded: list[bytes], call: Callable[[bytes, int], Any]) -> Turn:
    images = itertools.cycle(enumerate(encoded))

    def turn(seconds: float) -> float:
        started_at = time.perf_counter()
        for count in itertools.count(1):
            index, data = next(images)
            call(data, index)
            elapsed = time.perf_counter() - started_at
            if elapsed >= seconds:
                return count / elapsed

    return turn


def take_turns(groups: list[dict[str, Turn]], options: argparse.Namespace) -> list[dict[str, list[float]]]:
    """Images per second of each turn by round, after one round to warm up. A group's turns follow each other."""
    rates: list[dict[str, list[float]]] = [{name: [] for name in group} for group in groups]
    for round_number in range(options.rounds + 1):
        for group, by_round in zip(groups, rates, strict=True):
            for name in list(group)[:: -1 if round_number % 2 else 1]:
                time.sleep(min(options.seconds, SETTLING_S))
                rate = group[name](options.seconds if round_number else min(options.seconds, 1.0))
                if round_number:
                    by_round[name].append(rate)
        print(f"round {round_number} of {options.rounds}", file=sys.stderr)
    return rates


def figures(by_round: dict[str, list[float]]) -> dict[str, Any]:
    """Medians, and the median over rounds of our rate to each other one."""
    ratios = {
        name: statistics.median(ours / other for ours, other in zip(by_round["here"], values, strict=True))
        for name, values in by_round.items()
        if name != "here"
    }
    medians = {name: statistics.median(values) for name, values in by_round.items()}
    return {"images_per_s": medians, "ratio_to": ratios, "by_round": by_round}


if __name__ == "__main__":
    main()
