"""Images per second of each part of a training run alone: source, decoder, augmentation, loader, network.

All is measured with what a run would use: its data, transforms, loader workers, network, optimizer and batch.
"""

import contextlib
import dataclasses
import itertools
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import datasets
import numpy as np
import torch
from accelerate import Accelerator

from training.config.train_config import TrainConfig
from training.data.decoding import ImageDecodeError, decode_rgb, encoded_bytes
from training.data.permutation import epoch_permutation
from training.data.sources import Splits
from training.engine.loaders import build_loaders
from training.engine.network import build_network
from training.engine.step import build_step
from training.loading.sampling import TrainingPlan
from training.modeling.build import model_config
from training.modeling.ema import ExponentialMovingAverage
from training.optim.optimizer import build_optimizer
from training.transforms.augmentation import TrainTransform

READ_AT_ONCE = 32
KEPT_IMAGES, KEPT_BYTES = 256, 64_000_000  # held in memory to be decoded again and again
PARTS = 6  # that share the time
ENDLESS = 10**6  # epochs


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
    config: TrainConfig, splits: Splits, plan: TrainingPlan, accelerator: Accelerator, *, seconds: float = 20.0
) -> Rates:
    """Measure each part for a share of `seconds`; start-up of workers, network and compilation come on top.

    Args:
        config: of the run, its precision resolved.
        splits: its data.
        plan: its batches.
        accelerator: of this process. Those of one machine should measure at the same time. It is left as it was.
        seconds: for all of it.

    Raises:
        ImageDecodeError: an image cannot be decoded, and the configuration does not skip such.
        ValueError: there is no such model.
    """
    share = seconds / PARTS
    network_config = model_config(config.model, splits.class_names, **config.network())
    train_transform = TrainTransform(network_config.image_size, **config.sample_transform())
    read, encoded = _read(splits, config.seed, share)
    images = _decodable(encoded, skip=config.on_bad_image != "stop")
    sides = [min(decode_rgb(image).shape[1:]) for image in images]
    decode, augment = _decoding_rates(images, train_transform, config.seed, share)

    loaders = build_loaders(
        dataclasses.replace(config, epochs=ENDLESS), splits, plan, network_config, accelerator.process_index
    )
    with contextlib.closing(loaders.train_batches()) as batches:
        batch = next(batches)  # the workers have started
        loader_rate = _rate(lambda batch: len(batch["index"]), batches, share, per_call=plan.per_device_batch_size)

    device = accelerator.device
    transfer = None if device.type == "cpu" else _transfer_rate(batch["pixel_values"], device, share)
    step = _step_rate(config, splits.class_names, plan, batch, accelerator, share)
    return Rates(
        read,
        decode,
        augment,
        loader_rate,
        transfer,
        step,
        loaders.num_workers,
        plan.per_device_batch_size,
        network_config.image_size,
        device.type,
        statistics.median(sides),
        statistics.median(len(image["bytes"]) for image in images),
        {name: getattr(config, name) for name in ("precision", "compile", "channels_last", "streaming")},
    )


def _decoding_rates(
    images: list[dict[str, Any]], transform: TrainTransform, seed: int, seconds: float
) -> tuple[float, float]:
    """Images per second of decoding, and of decoding and `transform`, each for `seconds`."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as a loader worker has
    try:
        decode = _rate(lambda item: decode_rgb(item[1]), itertools.cycle(enumerate(images)), seconds)
        augment = _rate(
            lambda item: transform(decode_rgb(item[1]), (seed, 0, item[0])),
            itertools.cycle(enumerate(images)),
            seconds,
        )
    finally:
        torch.set_num_threads(threads)
    return decode, augment


def _transfer_rate(pixels: torch.Tensor, device: torch.device, seconds: float) -> float:
    def move(item: Any) -> None:
        pixels.to(device, non_blocking=True)
        torch.accelerator.synchronize()

    move(None)
    return _rate(move, itertools.repeat(None), seconds, per_call=len(pixels))


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


def _decodable(encoded: list[dict[str, Any]], *, skip: bool) -> list[dict[str, Any]]:
    good = []
    for image in encoded:
        try:
            decode_rgb(image, "a training image")
        except ImageDecodeError:
            if not skip:
                raise
        else:
            good.append(image)
    if not good:
        raise ImageDecodeError(f"none of {len(encoded)} images can be decoded; python -m training.audit says why")
    return good


def _step_rate(
    config: TrainConfig,
    class_names: list[str],
    plan: TrainingPlan,
    batch: dict[str, torch.Tensor],
    accelerator: Accelerator,
    seconds: float,
) -> float:
    """Images per second from uint8 batches on the device to updated weights, by the optimizer step of the run. Nothing
    is sent to other processes: BatchNorm is each one's own, and there is no DistributedDataParallel."""
    config = dataclasses.replace(config, sync_batch_norm=False)
    network, _ = build_network(config, class_names, accelerator.device)
    optimizer = build_optimizer(network, **config.update())
    ema = ExponentialMovingAverage(network, config.ema_decay) if config.ema_decay else None
    if config.compile:
        network.compile()
    scale = accelerator.scaler.state_dict() if accelerator.scaler else None
    # For evaluation: Accelerate adds its precision to the network, and nothing else.
    model = accelerator.prepare_model(network, device_placement=False, evaluation_mode=True).train()
    optimizer = accelerator.prepare_optimizer(optimizer, device_placement=False)
    step = build_step(config, accelerator, model, network, optimizer, ema)
    images = {name: batch[name].to(accelerator.device) for name in ("pixel_values", "labels")}
    batches = itertools.repeat(batch | images)

    def whole_step(micro_batches: int) -> None:
        num_samples = micro_batches * plan.num_processes * len(batch["index"])
        step.train_step(batches, epoch=0, step=0, micro_batches=micro_batches, num_samples=num_samples)
        step.apply_update(config.lr)

    first_s = _seconds(lambda: whole_step(1), accelerator.device)  # compilation, and the optimizer's state
    short_s = _seconds(lambda: whole_step(1), accelerator.device)
    # Accumulation counts as in the run, unless its steps are too long for that, and an update is nothing beside them.
    micro_batches = min(plan.accumulation_steps, max(1, int(seconds / short_s)))
    step_s = [short_s] if micro_batches == 1 else []
    # On a slow processor, one step must do.
    while not step_s or (sum(step_s) < seconds and first_s + short_s + sum(step_s) < 2 * seconds):
        step_s.append(_seconds(lambda: whole_step(micro_batches), accelerator.device))
    accelerator.free_memory()  # which would else take this network and optimizer for the run's
    if scale is not None:
        accelerator.scaler.load_state_dict(scale)
    return micro_batches * len(batch["index"]) / statistics.median(step_s)


def _seconds(call: Callable[[], None], device: torch.device) -> float:
    started_at = time.perf_counter()
    call()
    if device.type != "cpu":
        torch.accelerator.synchronize()
    return time.perf_counter() - started_at
