"""Images per second of each part of a training run alone: source, decoder, augmentation, loader, network.

All is measured with what a run would use: its data, transforms, loader workers, network, optimizer and batch.
"""

import contextlib
import itertools
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import datasets
import numpy as np
import torch

from training.config.train_config import TrainConfig
from training.data.decoding import ImageDecodeError, decode_rgb, encoded_bytes
from training.data.permutation import epoch_permutation
from training.data.sources import Splits
from training.loading.loaders import build_dataset, build_train_loader
from training.loading.sampling import TrainingPlan
from training.loading.streaming import StreamPositions
from training.loading.workers import batches_in_time
from training.modeling.build import build_model, model_config
from training.modeling.ema import ExponentialMovingAverage
from training.optim.loss import smoothed_targets, soft_cross_entropy
from training.optim.optimizer import build_optimizer
from training.transforms.augmentation import TrainTransform
from training.transforms.device_transforms import DeviceTransform

READ_AT_ONCE = 32
KEPT_IMAGES, KEPT_BYTES = 256, 64_000_000  # held in memory to be decoded again and again
PARTS = 6  # that share the time
ENDLESS = 10**9  # optimizer steps
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Rates:
    """Images per second of each part alone, and what they were measured with."""

    read: float  # encoded bytes from the source, one process
    decode: float  # from memory, one process, one thread
    augment: float  # decoding and the per-sample transform, likewise
    loader: float  # batches from all workers
    transfer: float | None  # batches to the device; None where they are there already
    step: float  # a batch on the device to updated weights, in this process: nothing is sent to others
    num_workers: int
    batch_size: int
    image_size: int
    device: str
    shorter_side: float  # of the source's images, median, in pixels
    image_bytes: float  # median
    settings: dict[str, Any] = field(default_factory=dict)  # of the run: precision, compile, ...


def measure_rates(
    config: TrainConfig,
    splits: Splits,
    plan: TrainingPlan,
    *,
    device: torch.device,
    num_workers: int,
    rank: int = 0,
    seconds: float = 20.0,
) -> Rates:
    """Measure each part for a share of `seconds`; start-up of workers, network and compilation come on top.

    Args:
        config: of the run, its precision resolved.
        splits: its data.
        plan: its batches.
        device: of the network.
        num_workers: loader processes.
        rank: of this process among those of the plan. Those of one machine should measure at the same time.
        seconds: for all of it.

    Raises:
        ImageDecodeError: an image cannot be decoded, and the configuration does not skip such.
        ValueError: there is no such model.
    """
    share = seconds / PARTS
    network_config = model_config(config.model, splits.class_names, **config.network())
    train_transform = TrainTransform(network_config.image_size, **config.sample_transform())
    read, pictures = _read(splits, config.seed, share)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as a loader worker has
    try:
        images = _decodable(pictures, skip=config.on_bad_image != "stop")
        sides = [min(decode_rgb(image).shape[1:]) for image in images]
        decode = _rate(lambda item: decode_rgb(item[1]), itertools.cycle(enumerate(images)), share)
        augment = _rate(
            lambda item: train_transform(decode_rgb(item[1]), (config.seed, 0, item[0])),
            itertools.cycle(enumerate(images)),
            share,
        )
    finally:
        torch.set_num_threads(threads)

    positions = None
    if config.streaming:
        positions = StreamPositions(num_workers, 0, 0, None, rank=rank, num_processes=plan.num_processes)
    dataset = build_dataset(
        splits.train,
        train_transform,
        columns=(splits.image_column, splits.label_column),
        num_classes=len(splits.class_names),
        seed=config.seed,
        rank=rank,
        num_processes=plan.num_processes,
        positions=positions,
        replace_bad_images=config.on_bad_image != "stop",
    )
    loader = build_train_loader(dataset, plan, rank=rank, total_steps=ENDLESS, num_workers=num_workers)
    with contextlib.closing(batches_in_time(loader, config.timeout_s)) as batches:
        batch = next(batches)  # the workers have started
        loader_rate = _rate(lambda batch: len(batch["index"]), batches, share, per_call=plan.per_device_batch_size)

    transfer = None
    if device.type != "cpu":
        pixels = batch["pixel_values"]

        def move(item: Any) -> None:
            pixels.to(device, non_blocking=True)
            torch.accelerator.synchronize()

        move(None)
        transfer = _rate(move, itertools.repeat(None), share, per_call=len(pixels))
    step = _step_rate(config, network_config, splits, plan, batch, device, share)
    return Rates(
        read,
        decode,
        augment,
        loader_rate,
        transfer,
        step,
        num_workers,
        plan.per_device_batch_size,
        network_config.image_size,
        device.type,
        statistics.median(sides),
        statistics.median(len(image["bytes"]) for image in images),
        {name: getattr(config, name) for name in ("precision", "compile", "channels_last", "streaming")},
    )


def _rate(call: Callable[[Any], Any], items: Iterable[Any], seconds: float, *, per_call: int = 1) -> float:
    """Images per second of `call` on one item after the other, waiting for them included; at least two calls."""
    started_at = time.perf_counter()
    for calls, item in enumerate(items, start=1):
        call(item)
        elapsed = time.perf_counter() - started_at
        if elapsed >= seconds and calls >= 2:
            break
    return calls * per_call / elapsed


def _read(splits: Splits, seed: int, seconds: float) -> tuple[float, list[dict[str, Any]]]:
    """(images/s of reading, images with their bytes). The loader begins at the other end of the epoch: what was read
    here lies in the system's cache."""
    kept: list[dict[str, Any]] = []
    count, kept_bytes, started_at = 0, 0, time.perf_counter()
    for rows in _rows(splits, seed):
        for image in rows:
            try:
                data = encoded_bytes(image)
            except ImageDecodeError:
                continue  # missing or empty: decoding will tell
            if len(kept) < KEPT_IMAGES and kept_bytes < KEPT_BYTES:
                kept.append(image | {"bytes": data})
                kept_bytes += len(data)
        count += len(rows)
        if time.perf_counter() - started_at >= seconds:
            break
    return count / (time.perf_counter() - started_at), kept


def _rows(splits: Splits, seed: int) -> Iterable[list[dict[str, Any]]]:
    """Lists of encoded images as the source gives them, in an order like the training's, once."""
    column = splits.image_column
    if not isinstance(splits.train, datasets.Dataset):
        for batch in splits.train.select_columns([column]).iter(READ_AT_ONCE):
            yield batch[column]
        return
    split = splits.train.select_columns([column])
    order = epoch_permutation(len(split), seed, 0)[::-1]
    for indices in np.array_split(order, -(-len(order) // READ_AT_ONCE)):
        yield split[indices.tolist()][column]


def _decodable(pictures: list[dict[str, Any]], *, skip: bool) -> list[dict[str, Any]]:
    good = []
    for picture in pictures:
        try:
            decode_rgb(picture, "a training image")
        except ImageDecodeError:
            if not skip:
                raise
        else:
            good.append(picture)
    if not good:
        raise ImageDecodeError(f"none of {len(pictures)} images can be decoded; python -m training.audit says why")
    return good


def _step_rate(
    config: TrainConfig,
    network_config: Any,
    splits: Splits,
    plan: TrainingPlan,
    batch: dict[str, torch.Tensor],
    device: torch.device,
    seconds: float,
) -> float:
    """Images per second from a uint8 batch on the device to updated weights; accumulation counts as in the run."""
    network, _ = build_model(config.model, network_config, seed=config.seed)
    memory_format = torch.channels_last if config.channels_last else torch.contiguous_format
    network = network.to(device, memory_format=memory_format).train()
    optimizer = build_optimizer(network, **config.update())
    ema = ExponentialMovingAverage(network, config.ema_decay) if config.ema_decay else None
    if config.compile:
        network.compile()
    device_transform = DeviceTransform(network_config.image_mean, network_config.image_std, **config.batch_transform())
    autocast = torch.autocast(device.type, AUTOCAST[config.precision]) if config.precision in AUTOCAST else None
    pixels, labels = batch["pixel_values"].to(device), batch["labels"].to(device)

    def forward_backward() -> None:
        targets = smoothed_targets(labels, len(splits.class_names), config.label_smoothing)
        images, targets = device_transform(pixels, targets, epoch=0, indices=batch["index"], step=0, rank=0)
        with autocast or contextlib.nullcontext():
            loss = soft_cross_entropy(network(images).logits, targets, reduction="sum")
        (loss / len(pixels)).backward()

    def update() -> None:
        torch.nn.utils.clip_grad_norm_(network.parameters(), config.max_grad_norm or torch.inf)
        optimizer.step()
        optimizer.zero_grad()
        if ema:
            ema.update(network)

    first_s = _seconds(forward_backward, device) + _seconds(update, device)  # compilation, and the optimizer's state
    backward_s: list[float] = []
    update_s: list[float] = []
    spent_s = 0.0
    while len(backward_s) < 2 or spent_s < seconds:
        backward_s.append(_seconds(forward_backward, device))
        update_s.append(_seconds(update, device))
        spent_s += backward_s[-1] + update_s[-1]
        if spent_s + first_s > 2 * seconds:  # a slow processor: one step must do
            break
    rounds = plan.accumulation_steps
    return rounds * len(pixels) / (rounds * statistics.median(backward_s) + statistics.median(update_s))


def _seconds(call: Callable[[], None], device: torch.device) -> float:
    started_at = time.perf_counter()
    call()
    if device.type != "cpu":
        torch.accelerator.synchronize()
    return time.perf_counter() - started_at
