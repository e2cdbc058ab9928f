"""
Train a TinyNet, from scratch or from saved weights, on one process or many.

    accelerate launch train.py --recipe configuration/quickstart.yaml
    accelerate launch train.py --recipe configuration/finetune.yaml --model timm/tinynet_a.in1k --dataset pictures
    accelerate launch --config_file configuration/accelerate/eight_gpus.yaml train.py \
        --recipe configuration/tinynet_c.yaml --dataset ILSVRC/imagenet-1k

--explain prints what a run would be; --help lists every flag. The same command continues an interrupted run.

One unit: the optimizer step. Nothing random has a state: the order of the samples is a function of (seed, epoch), the
augmentation of a sample of (seed, epoch, index), dropout of (seed, step, rank), the learning rate of the step. What a
checkpoint holds is model, optimizer, moving average and progress, and nothing else is needed to go on.
"""

import dataclasses
import math
import os
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
import transformers
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, broadcast_object_list

from modeling_tinynet import TinyNetConfig, TinyNetImageProcessor, __version__
from training.augmentation import EvalTransform, TrainTransform
from training.batch_norm import average_batch_norm_statistics
from training.checkpoint import CheckpointError, load_optimizer_tensors, optimizer_tensors, save_checkpoint
from training.config import FIELDS, TrainConfig, default_num_workers, parse_config
from training.curves import save_curves
from training.data import ImageDataset, StreamingImageDataset, build_eval_loader, build_train_loader
from training.decoding import ImageDecodeError, decode_rgb
from training.device_transforms import DeviceTransform
from training.display import SmoothedLoss, StepTimer, TrainingDisplay, advice
from training.ema import ExponentialMovingAverage
from training.environment import environment
from training.evaluation import evaluate
from training.explain import explain, lr_schedule, save_lr_curve
from training.loss import smoothed_targets, soft_cross_entropy
from training.model import build_model, model_config
from training.optimizer import build_optimizer
from training.records import MetricsLog, write_atomically, write_summary
from training.run_folder import (
    RunError,
    default_run_name,
    mistakes_as_run_errors,
    open_run,
    read_checkpoint,
    save_model_folder,
)
from training.sampling import TrainingPlan
from training.sources import IMAGENET_COUNTS, DataError, Splits, is_imagenet, load_splits, num_samples


def main(argv: list[str]) -> None:
    # 1. What to do: defaults < recipe < command line.
    config, command_line = parse_config(argv)
    run_folder = Path(config.output_dir) / (config.run_name or default_run_name(config.model, config.dataset))

    # 2. Where: Accelerate gives device, precision and processes. BatchNorm statistics stay each rank's own while it
    # trains, and are averaged before they are used.
    with mistakes_as_run_errors():
        accelerator = Accelerator(
            mixed_precision=config.precision,
            log_with=config.report_to,
            project_dir=run_folder,
            kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)],
        )
    device, rank, num_processes = accelerator.device, accelerator.process_index, accelerator.num_processes
    if accelerator.mixed_precision == "fp16" and device.type == "cpu":
        raise RunError("precision fp16 needs a GPU; on a CPU use bf16 or no")
    is_main = accelerator.is_main_process
    transformers.utils.logging.disable_progress_bar()  # one bar is enough
    torch.backends.cudnn.benchmark = True

    if command_line.explain:
        if is_main:
            explain_run(config, num_processes)
        return

    # 3. Data. Rank 0 reads first, so that the others find datasets' cache filled.
    with accelerator.main_process_first():
        splits = read_splits(config)
    num_classes, num_validation = len(splits.class_names), num_samples(splits.validation)
    with mistakes_as_run_errors():
        plan = TrainingPlan(
            num_samples(splits.train),
            config.global_batch_size,
            config.per_device_batch_size,
            num_processes,
            config.drop_last,
        )
    total_steps = config.epochs * plan.steps_per_epoch

    # 4. Model.
    with mistakes_as_run_errors():
        network_config = model_config(config.model, splits.class_names, **fields_of(config, "model"))
        network = build_model(config.model, network_config, seed=config.seed)
    if config.sync_batch_norm:
        network = torch.nn.SyncBatchNorm.convert_sync_batchnorm(network)
    memory_format = torch.channels_last if config.channels_last else torch.contiguous_format
    network = network.to(device, memory_format=memory_format)
    processor = TinyNetImageProcessor.from_config(network_config)

    # 5. Optimizer, learning rate, moving average.
    optimizer = build_optimizer(
        network,
        config.optimizer,
        lr=config.lr,
        momentum=config.momentum,
        eps=config.optimizer_eps,
        weight_decay=config.weight_decay,
        rho=config.rho,
    )
    learning_rate = lr_schedule(config, plan.steps_per_epoch)
    ema = ExponentialMovingAverage(network, config.ema_decay) if config.ema_decay else None

    # 6. Begin, or go on: rank 0 chooses the checkpoint, and every rank reads it.
    settings = resume_settings(config, splits, plan)
    choice = [None, None]
    if is_main:
        try:
            choice[0] = open_run(run_folder, config.resume)
        except (RunError, CheckpointError, OSError) as error:
            choice[1] = str(error)
    checkpoint, error = broadcast_object_list(choice)
    if error:
        raise RunError(error)
    smoothed_loss, best, start_step, elapsed_before_s = SmoothedLoss(), None, 0, 0.0
    if checkpoint is not None:
        tensors, state = read_checkpoint(checkpoint, settings, total_steps)
        network.load_state_dict(tensors["model"])
        load_optimizer_tensors(optimizer, network, tensors["optimizer"])
        if ema:
            ema.model.load_state_dict(tensors["ema"])
        smoothed_loss, best = SmoothedLoss(**state["smoothed_loss"]), state["best"]
        start_step, elapsed_before_s = state["step"], state["elapsed_s"]
    if config.compile:
        network.compile()
    model, optimizer = accelerator.prepare(network, optimizer)
    if accelerator.scaler is not None and checkpoint is not None:
        accelerator.scaler.load_state_dict(state["scaler"])

    # 7. Loaders. Workers make uint8 pictures; what can be done for a whole batch is done on the device.
    num_workers = config.num_workers
    if num_workers is None:
        num_workers = default_num_workers(int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
    train_transform = TrainTransform(
        network_config.image_size,
        scale=config.crop_scale,
        ratio=config.crop_ratio,
        horizontal_flip=config.horizontal_flip,
        rand_augment=(2, config.rand_augment) if config.rand_augment else None,
    )
    eval_transform = EvalTransform(network_config.image_size, network_config.resize_size)
    dataset_kind = StreamingImageDataset if config.streaming else ImageDataset
    columns = (splits.image_column, splits.label_column)
    shard = {"rank": rank, "num_processes": num_processes} if config.streaming else {}
    train_loader = build_train_loader(
        dataset_kind(splits.train, *columns, train_transform, num_classes, seed=config.seed, **shard),
        plan,
        rank=rank,
        total_steps=total_steps,
        start_step=start_step,
        num_workers=num_workers,
    )
    if config.streaming:
        shard["shuffle_buffer"] = 0
    eval_loader = build_eval_loader(
        dataset_kind(splits.validation, *columns, eval_transform, num_classes, **shard),
        batch_size=config.per_device_batch_size,
        rank=rank,
        num_processes=num_processes,
        num_workers=num_workers,
    )
    device_transform = DeviceTransform(
        network_config.image_mean,
        network_config.image_std,
        color_jitter=config.color_jitter,
        random_erasing=config.random_erasing,
        mixup_alpha=config.mixup_alpha,
        cutmix_alpha=config.cutmix_alpha,
        seed=config.seed,
    )

    # 8. What people see and what is written down, on rank 0.
    display = TrainingDisplay(
        total_steps, plan.steps_per_epoch, plan.global_batch_size, config.epochs, start_step, enabled=is_main
    )
    if is_main:
        if checkpoint is None:
            write_atomically(run_folder / "recipe.yaml", config.to_yaml(__version__).encode())
        metrics = MetricsLog(run_folder / "metrics.jsonl")
        metrics.truncate_after(start_step)
        if command_line.rescaling:
            display.message(command_line.rescaling)
        display.message(splits.description)
        display.message(
            f"{config.model}: {network_config.parameter_count:,} parameters, {network_config.macs / 1e6:,.1f} M MACs "
            f"at {network_config.image_size} px; {num_processes} x {device.type}, precision "
            f"{accelerator.mixed_precision}, {num_workers} loader workers each"
        )
        display.message(f"{run_folder}: " + (f"going on from {checkpoint.name}" if checkpoint else "a new run"))
    if config.report_to:
        accelerator.init_trackers("tinynet", config={name: str(value) for name, value in vars(config).items()})
    timer = StepTimer()
    started_at = time.perf_counter()
    epoch_seconds, epoch_started_at = timer.seconds(), started_at
    epoch_loss, epoch_samples = torch.zeros((), device=device, dtype=torch.float64), 0
    logged_at_step, logged_at, waited_s = start_step, started_at, 0.0

    # 9. The loop.
    model.train()
    batches = iter(train_loader)
    for step in range(start_step, total_steps):
        epoch, step_in_epoch = divmod(step, plan.steps_per_epoch)
        micro_batches, step_samples = plan.step_shape(step_in_epoch)
        is_logged = (step + 1) % config.log_every_steps == 0 or step + 1 == total_steps
        lr = learning_rate(step)
        for group in optimizer.param_groups:
            group["lr"] = lr
        torch.manual_seed(int(np.random.SeedSequence((config.seed, step, rank)).generate_state(1, np.uint64)[0] >> 1))

        step_loss = torch.zeros((), device=device)
        for micro_batch in range(micro_batches):
            with timer("data"):
                batch = next(batches)
                images = batch["pixel_values"].to(device, non_blocking=True)
                labels = batch["labels"].to(device, non_blocking=True)
            is_last = micro_batch == micro_batches - 1
            with timer("forward_backward"), nullcontext() if is_last else accelerator.no_sync(model):
                targets = smoothed_targets(labels, num_classes, config.label_smoothing)
                images, targets = device_transform(
                    images, targets, epoch=epoch, indices=batch["index"], step=step, rank=rank
                )
                loss = soft_cross_entropy(model(images).logits, targets, reduction="sum")
                # The mean over the global batch, whatever its pieces; DDP divides by the number of processes.
                accelerator.backward(loss * (num_processes / step_samples))
                step_loss += loss.detach()
        with timer("optimizer"):
            grad_norm = None
            if config.max_grad_norm or is_logged:
                grad_norm = accelerator.clip_grad_norm_(model.parameters(), config.max_grad_norm or math.inf)
            optimizer.step()
            optimizer.zero_grad()
            if ema:
                ema.update(network)
        epoch_loss += step_loss
        epoch_samples += step_samples

        if is_logged:
            mean_loss = accelerator.reduce(step_loss).item() / step_samples
            if not math.isfinite(mean_loss):
                raise RunError(
                    f"the loss is {mean_loss} at step {step + 1}: lower the learning rate, or use bf16 instead of fp16"
                )
            smoothed_loss.update(mean_loss)
            now, waited_before_s = time.perf_counter(), waited_s
            waited_s = timer.seconds()["data"]
            record = {
                "step": step + 1,
                "epoch": (step + 1) / plan.steps_per_epoch,
                "loss": mean_loss,
                "loss_smoothed": smoothed_loss.value,
                "lr": lr,
                "grad_norm": grad_norm.item(),
                "images_per_s": (step + 1 - logged_at_step) * plan.global_batch_size / (now - logged_at),
                "data_wait_s": waited_s - waited_before_s,
                "memory_mb": torch.cuda.max_memory_allocated(device) / 1e6 if device.type == "cuda" else None,
            }
            if is_main:
                metrics.log_step(**record)
            if config.report_to:
                accelerator.log({name: value for name, value in record.items() if value is not None}, step=step + 1)
            logged_at_step, logged_at = step + 1, now
        display.update(step + 1, loss=smoothed_loss.value, lr=lr)
        if step_in_epoch + 1 < plan.steps_per_epoch:
            continue

        # 10. The end of an epoch: evaluate raw weights and moving average in one pass, keep the best, save.
        epochs_done = epoch + 1
        average_batch_norm_statistics(network)
        if ema:
            average_batch_norm_statistics(ema.model)
        results = {}
        if epochs_done % config.eval_every_epochs == 0 or epochs_done == config.epochs:
            candidates = {"raw": network} | ({"ema": ema.model} if ema else {})
            with timer("evaluation"), accelerator.autocast():
                results = evaluate(
                    candidates,
                    eval_loader,
                    preprocess=lambda images: device_transform.normalize_only(images.to(device, non_blocking=True)),
                    num_samples=num_validation,
                    num_classes=num_classes,
                )
        weights = max(results, key=lambda name: (results[name].top_1_correct, -results[name].loss), default=None)
        is_best = bool(results) and (best is None or is_better(results[weights].to_dict(), best))
        if is_best:
            best = {"weights": weights, "epoch": epochs_done, **results[weights].to_dict()}
            if is_main:
                with timer("saving"):
                    save_model_folder(run_folder / "best", candidates[weights], processor)
        record = {
            "epoch": epochs_done,
            "step": step + 1,
            "train_loss": accelerator.reduce(epoch_loss).item() / epoch_samples,
            "lr": lr,
            "raw": results["raw"].to_dict() if "raw" in results else None,
            "ema": results["ema"].to_dict() if "ema" in results else None,
            "images_per_s": display.images_per_s,
            "time_shares": timer.shares(since=epoch_seconds),
            "epoch_s": time.perf_counter() - epoch_started_at,
        }
        epoch_seconds, epoch_started_at = timer.seconds(), time.perf_counter()
        epoch_loss.zero_()
        epoch_samples = 0
        if is_main:
            metrics.log_epoch(**record)
            metrics.sync()  # before the checkpoint, which must not know more than the log
        if is_main and (epochs_done % config.save_every_epochs == 0 or epochs_done == config.epochs):
            tensors = {"model": network.state_dict(), "optimizer": optimizer_tensors(optimizer.optimizer, network)}
            if ema:
                tensors["ema"] = ema.model.state_dict()
            state = {
                "step": step + 1,
                "best": best,
                "smoothed_loss": dataclasses.asdict(smoothed_loss),
                "elapsed_s": elapsed_before_s + time.perf_counter() - started_at,
                "scaler": accelerator.scaler.state_dict() if accelerator.scaler is not None else None,
                "settings": settings,
            }
            with timer("saving"):
                save_checkpoint(run_folder / "checkpoints", step + 1, tensors, state, keep=config.keep)
                save_curves(run_folder / "metrics.jsonl", run_folder / "curves.png")
        if config.report_to and results:
            accelerator.log({f"top_1_{name}": result.top_1 for name, result in results.items()}, step=step + 1)
        display.epoch(record, is_best=is_best)
        logged_at_step, logged_at = step + 1, time.perf_counter()

    # 11. The result.
    display.close()
    if is_main:
        save_model_folder(run_folder / "last", candidates[weights], processor)
        elapsed_s = elapsed_before_s + time.perf_counter() - started_at
        shares = timer.shares()
        write_summary(
            run_folder / "summary.json",
            {
                "run": run_folder.name,
                "model": config.model,
                "dataset": config.dataset,
                "num_train": plan.num_samples,
                "num_validation": num_validation,
                "num_classes": num_classes,
                "parameters": network_config.parameter_count,
                "macs": network_config.macs,
                "image_size": network_config.image_size,
                "epochs": config.epochs,
                "steps": total_steps,
                "best": best,
                "last": {name: result.to_dict() for name, result in results.items()},
                "images_per_s": plan.samples_per_epoch
                * (config.epochs - start_step // plan.steps_per_epoch)
                / (time.perf_counter() - started_at),
                "elapsed_s": elapsed_s,
                "time_shares": shares,
                "processes": num_processes,
                "environment": environment(),
            },
        )
        print_result(run_folder, best, elapsed_s, shares, splits)
    accelerator.end_training()


def is_better(result: dict[str, Any], best: dict[str, Any]) -> bool:
    """More right answers; among equals the smaller loss, which a small validation set needs to tell them apart."""
    return (result["top_1_correct"], -result["loss"]) > (best["top_1_correct"], -best["loss"])


def resume_settings(config: TrainConfig, splits: Splits, plan: TrainingPlan) -> dict[str, Any]:
    """What decides about the result of a run; a checkpoint is continued only where all of it is the same."""
    values = {"model": config.model}
    for group in ("model", "data", "schedule", "optimizer", "augmentation"):
        values |= fields_of(config, group)
    del values["per_device_batch_size"]  # changes how a global batch is cut, not what is in it
    values = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
    return values | {"seed": config.seed, "class_names": splits.class_names, "num_train": plan.num_samples}


def fields_of(config: TrainConfig, group: str) -> dict[str, Any]:
    """The fields of one of the configuration's groups, without `model`, which names the network."""
    names = [name for name, field in FIELDS.items() if field.metadata["group"] == group and name != "model"]
    return {name: getattr(config, name) for name in names}


def read_splits(config: TrainConfig) -> Splits:
    return load_splits(
        config.dataset,
        name=config.dataset_name,
        train_split=config.train_split,
        validation_split=config.validation_split,
        image_column=config.image_column,
        label_column=config.label_column,
        validation_fraction=config.validation_fraction,
        streaming=config.streaming,
    )


def explain_run(config: TrainConfig, num_processes: int) -> None:
    """Prints what the run would be. ImageNet is not read for it: its size is known."""
    if is_imagenet(config.dataset):
        num_train, class_names = IMAGENET_COUNTS["train"], list(TinyNetConfig().id2label.values())
    else:
        splits = read_splits(config)
        num_train, class_names = num_samples(splits.train), splits.class_names
    with mistakes_as_run_errors():
        network_config = model_config(config.model, class_names, **fields_of(config, "model"))
        text = explain(
            config,
            num_train=num_train,
            num_classes=len(class_names),
            num_processes=num_processes,
            model_config=network_config,
        )
        plan = TrainingPlan(
            num_train, config.global_batch_size, config.per_device_batch_size, num_processes, config.drop_last
        )
        picture = Path(f"{default_run_name(config.model, config.dataset)}-learning-rate.png")
        save_lr_curve(
            picture,
            lr_schedule(config, plan.steps_per_epoch),
            total_steps=config.epochs * plan.steps_per_epoch,
            steps_per_epoch=plan.steps_per_epoch,
            title=f"Learning rate of {config.model}",
        )
    print(f"{text}\n\nthe learning rate as a picture: {picture}")


def print_result(
    run_folder: Path, best: dict[str, Any], elapsed_s: float, shares: dict[str, float], splits: Splits
) -> None:
    """The result, and the proof that it is usable: one held-out picture through transformers' own pipeline."""
    print(
        f"\nbest: top-1 {best['top_1_correct']}/{best['n']} = {100 * best['top_1']:.3f} % ({best['weights']} weights, "
        f"epoch {best['epoch']}); {elapsed_s:.0f} s"
    )
    spent = [f"{part.replace('_', '/')} {share:.0f} %" for part, share in shares.items() if share >= 1]
    print(f"time: {', '.join(spent)}")
    if hint := advice(shares):
        print(hint)
    sample = next(iter(splits.validation))
    picture = PIL.Image.fromarray(decode_rgb(sample[splits.image_column]).permute(1, 2, 0).numpy())
    answer = transformers.pipeline("image-classification", model=str(run_folder / "best"))(picture)[0]
    print(
        f'pipeline("image-classification", model="{run_folder}/best"): a held-out picture of '
        f"{splits.class_names[sample[splits.label_column]]!r} is {answer['label']!r} with score {answer['score']:.3f}"
    )


def run(argv: list[str]) -> int:
    """`main`, with a user's mistakes as one sentence from one process. Returns the exit code."""
    try:
        main(argv)
    except (DataError, ImageDecodeError, RunError, CheckpointError) as mistake:
        if int(os.environ.get("RANK", 0)) == 0:
            # A loader worker's error arrives with its traceback before the sentence.
            print(f"error: {str(mistake).strip().splitlines()[-1]}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
