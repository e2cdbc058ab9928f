"""
Train a TinyNet, from scratch or from saved weights, on one process or many.

    accelerate launch train.py --recipe configuration/quickstart.yaml
    accelerate launch train.py --recipe configuration/finetune.yaml --model timm/tinynet_a.in1k --dataset photos
    accelerate launch --config_file configuration/accelerate/eight_gpus.yaml train.py \
        --recipe configuration/tinynet_c.yaml --dataset ILSVRC/imagenet-1k

--explain prints what a run would be, --doctor what limits it; --help lists every flag. The same command continues an
interrupted run, and ends with the same weights to the bit. SIGTERM, SIGUSR1 and Ctrl-C save first; the exit code is
then 75.

One unit: the optimizer step. Nothing random has a state: the order of the samples is a function of (seed, epoch), the
augmentation of a sample of (seed, epoch, index), dropout of (seed, step, rank), the learning rate of the step. What a
checkpoint holds is model, optimizer, EMA and progress, and nothing else is needed to continue.
"""

if __name__ == "__main__":  # before the other imports, which take ten seconds, in which a launcher may be killed
    from training.system.interruption import end_with_launcher

    end_with_launcher()

import dataclasses
import math
import os
import sys
import time
import warnings
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
import transformers
from accelerate.tracking import get_available_trackers
from accelerate.utils import broadcast_object_list, gather_object

from hub_card.push import check_rights, publish_run
from hub_card.run import PublishError
from modeling_tinynet import TinyNetImageProcessor, __version__
from training.command import run_command
from training.config.train_config import default_num_workers, parse_config, skip_limit
from training.data.fingerprint import FILE_SIZES, data_fingerprint, file_sizes
from training.data.sources import load_splits, num_samples
from training.doctor.diagnosis import diagnose
from training.engine.accelerator import build_accelerator
from training.engine.agreement import GO_ON, SAVE, STOP, agree
from training.engine.failures import ending_of
from training.engine.long_steps import LongSteps
from training.engine.nonfinite import MOST_OVERFLOWS_IN_A_ROW, overflow, ways_on
from training.errors import RunError
from training.evaluation.evaluate import evaluate
from training.evaluation.metrics import card_metrics
from training.explain import explain_run, lr_schedule, warmup_remark
from training.loading.loaders import build_dataset, build_eval_loader, build_train_loader
from training.loading.sampling import TrainingPlan
from training.loading.streaming import StreamPositions
from training.loading.workers import batches_in_time
from training.modeling.batch_norm import (
    average_batch_norm_statistics,
    batch_norm_statistics,
    check_batch_size,
    set_batch_norm_statistics,
)
from training.modeling.build import build_model, model_config
from training.modeling.ema import ExponentialMovingAverage
from training.optim.loss import smoothed_targets, soft_cross_entropy
from training.optim.optimizer import build_optimizer, named_learning_rates
from training.reporting.console import StepTimer, TrainingDisplay
from training.reporting.curves import save_curves
from training.reporting.metrics import MetricsLog, goodness, write_atomically, write_summary
from training.run.checkpoint import CheckpointError, optimizer_tensors, save_checkpoint
from training.run.progress import Progress, weights_sha256
from training.run.resume import is_branch, read_checkpoint, restore
from training.run.run_folder import (
    default_run_name,
    open_run,
    print_result,
    save_model_folder,
    set_summary_aside,
)
from training.run.run_lock import RunFolderInUse, RunLock
from training.run.same_run import check_same_run
from training.run.save_schedule import SaveSchedule
from training.system.compiler_cache import distrust_compiler_cache, remove_compiler_cache, use_compiler_cache
from training.system.environment import environment, machine
from training.system.interruption import Interrupted, Interruption
from training.system.memory import keep_freed_memory
from training.transforms.augmentation import EvalTransform, TrainTransform
from training.transforms.device_transforms import DeviceTransform


def main(argv: list[str]) -> None:
    # 1. What to do: defaults < recipe < command line.
    config, command_line = parse_config(argv)
    run_folder = Path(config.output_dir) / (config.run_name or default_run_name(config.model, config.dataset))
    transformers.utils.logging.disable_progress_bar()  # one bar is enough

    if config.report_to and config.report_to not in map(str, get_available_trackers()):
        raise RunError(f"tracker {config.report_to!r} of --report_to is not installed, or unknown to Accelerate")

    # 2. Where: Accelerate gives device, precision and processes. BatchNorm statistics stay each rank's own while it
    # trains, and are averaged before they are used.
    accelerator = build_accelerator(config, run_folder)
    device, rank, num_processes = accelerator.device, accelerator.process_index, accelerator.num_processes
    is_main = accelerator.is_main_process
    config = dataclasses.replace(config, precision=accelerator.mixed_precision)
    config.check_device(device.type)
    # torch 2.14 renames an argument that Accelerate passes on by its old name.
    warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated", category=FutureWarning)
    torch.backends.cudnn.benchmark = True
    if device.type == "cpu":
        keep_freed_memory()
    if command_line.explain:
        if is_main:
            explain_run(config, num_processes)
        return

    interruption = Interruption()

    # 3. Data. All ranks read at once: datasets locks its cache while one of them fills it.
    splits = load_splits(config.dataset, **config.source())
    num_classes, num_validation = len(splits.class_names), num_samples(splits.validation)
    plan = TrainingPlan(
        num_samples(splits.train),
        config.global_batch_size,
        config.per_device_batch_size,
        num_processes,
        config.drop_last,
    )
    total_steps = config.epochs * plan.steps_per_epoch
    if command_line.doctor:
        # Of all ranks at once, as they will train.
        diagnosis = diagnose(config, splits, plan, device=device, rank=rank, seconds=command_line.doctor)
        if is_main:
            print(diagnosis, flush=True)

    # 4. Model.
    network_config = model_config(config.model, splits.class_names, **config.network())
    synchronized = config.sync_batch_norm and num_processes > 1
    check_batch_size(config.per_device_batch_size, network_config, synchronized=synchronized)
    network, head = build_model(config.model, network_config, seed=config.seed)
    if config.sync_batch_norm:
        network = torch.nn.SyncBatchNorm.convert_sync_batchnorm(network)
    memory_format = torch.channels_last if config.channels_last else torch.contiguous_format
    network = network.to(device, memory_format=memory_format)
    processor = TinyNetImageProcessor.from_config(network_config)

    # 5. Optimizer, learning rate, EMA.
    optimizer = build_optimizer(network, **config.update())
    learning_rate = lr_schedule(config, plan.steps_per_epoch)
    ema = ExponentialMovingAverage(network, config.ema_decay) if config.ema_decay else None

    # 6. Begin, or continue: rank 0 chooses the checkpoint, and every rank reads it.
    choice = [None, None]
    if is_main:
        try:
            run_folder.mkdir(parents=True, exist_ok=True)
            lock = RunLock(run_folder)  # noqa: F841  held while it lives
            (run_folder / ".interrupted").unlink(missing_ok=True)
            distrust_compiler_cache(run_folder)
            choice[0] = open_run(run_folder, config.resume)
            if config.push_to_hub:
                check_rights(config.push_to_hub)  # now, not after days of training
        except (RunError, RunFolderInUse, CheckpointError, PublishError, OSError) as error:
            choice[1] = str(error)
    checkpoint, error = broadcast_object_list(choice)
    if error:
        raise RunError(error)
    settings = config.settings() | {"class_names": splits.class_names}
    data = {"num_train": plan.num_samples, "num_validation": num_validation}
    if not config.streaming:
        for name, split in (("train", splits.train), ("validation", splits.validation)):
            data[f"{name}_fingerprint"] = data_fingerprint(split, splits.image_column, splits.label_column)
            sizes = file_sizes(split, splits.image_column) if is_main else None  # a look at every file, from one rank
            data[name + FILE_SIZES] = broadcast_object_list([sizes])[0]
    check_same_run(run_folder, checkpoint, vars(config) | data | {"classes": splits.class_names})
    execution = config.execution() | {"num_processes": num_processes} | machine(device)
    progress, state, changes = Progress(), {}, []
    if checkpoint is not None:
        tensors, state, changes = read_checkpoint(
            checkpoint,
            run_folder,
            settings=settings,
            execution=execution,
            data=data,
            allow_data_change=config.allow_data_change,
            steps_per_epoch=plan.steps_per_epoch,
        )
        same_optimizer = state["settings"]["optimizer"] == config.optimizer
        restore(checkpoint, tensors, network, optimizer, ema, same_optimizer=same_optimizer)
        progress = Progress.from_dict(state["progress"])
        progress.note_changes(changes)
        if is_branch(checkpoint, run_folder):
            progress.begin_branch()
        elif is_main:
            progress.check_best(run_folder / "best")
    start_step, elapsed_before_s = progress.step, progress.elapsed_s
    if config.compile:
        use_compiler_cache(run_folder, rank)
        network.compile()
    model, optimizer = accelerator.prepare(network, optimizer, device_placement=[True, False])
    if checkpoint is not None:  # after DistributedDataParallel, which may give all ranks rank 0's
        local = tensors["local"]["batch_norm"]  # (processes, statistics)
        local = local[rank] if len(local) == num_processes else local.mean(dim=0)
        set_batch_norm_statistics([network, ema.model] if ema else [network], local)
    if accelerator.scaler is not None and state.get("scaler"):  # a branch may come from another precision
        accelerator.scaler.load_state_dict(state["scaler"])

    # 7. Loaders. Workers make uint8 images; what can be done for a whole batch is done on the device.
    num_workers = config.num_workers
    if num_workers is None:
        num_workers = default_num_workers(int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
    train_transform = TrainTransform(network_config.image_size, **config.sample_transform())
    eval_transform = EvalTransform(network_config.image_size, network_config.resize_size)
    reading = {
        "columns": (splits.image_column, splits.label_column),
        "num_classes": num_classes,
        "seed": config.seed,
        "rank": rank,
        "num_processes": num_processes,
    }
    positions = None
    if config.streaming:
        positions = StreamPositions(
            num_workers,
            plan.micro_batches_before(start_step),
            start_step // plan.steps_per_epoch,
            saved=tensors["local"].get("stream") if checkpoint is not None else None,
            rank=rank,
            num_processes=num_processes,
        )
    train_loader = build_train_loader(
        build_dataset(
            splits.train,
            train_transform,
            positions=positions,
            replace_bad_images=config.on_bad_image != "stop",
            **reading,
        ),
        plan,
        rank=rank,
        total_steps=total_steps,
        start_step=start_step,
        num_workers=num_workers,
    )
    eval_loader = build_eval_loader(
        build_dataset(splits.validation, eval_transform, **reading),
        batch_size=config.per_device_batch_size,
        rank=rank,
        num_processes=num_processes,
        num_workers=num_workers,
    )
    device_transform = DeviceTransform(network_config.image_mean, network_config.image_std, **config.batch_transform())

    # 8. What people see and what is written down, on rank 0.
    display = TrainingDisplay(
        total_steps, plan.steps_per_epoch, plan.global_batch_size, config.epochs, start_step, enabled=is_main
    )
    if is_main:
        metrics = MetricsLog(run_folder / "metrics.jsonl")  # first: a start that is refused changes nothing
        write_atomically(run_folder / "recipe.yaml", config.to_yaml(__version__, progress.changes).encode())
        if state and state["settings"]["epochs"] != config.epochs:
            set_summary_aside(run_folder, state["settings"]["epochs"])
        metrics.truncate_after(start_step, epoch_end_due=progress.epoch_end_due)
        if command_line.rescaling:
            display.message(command_line.rescaling)
        if remark := warmup_remark(config, plan.steps_per_epoch):
            display.message(f"learning rate: {remark}")
        display.message(splits.description)
        display.message(
            f"{config.model}: {network_config.parameter_count:,} parameters, {network_config.macs / 1e6:,.1f} M MACs "
            f"at {network_config.image_size} px; {head}; {num_processes} x {device.type}, precision "
            f"{config.precision}, {num_workers} loader workers each"
        )
        origin = checkpoint.name if checkpoint and not is_branch(checkpoint, run_folder) else checkpoint
        display.message(f"{run_folder}: " + (f"resuming from {origin}" if checkpoint else "a new run"))
        for change in changes:
            display.message(f"changed: {change}")
        if positions and checkpoint and not positions.is_exact:
            display.message(
                "the stream begins its epoch anew: another number of processes or loader workers read it before"
            )
    if config.report_to:
        plain_config = {name: str(value) for name, value in vars(config).items()}
        # What TensorBoard has of steps after the checkpoint, it drops; other trackers begin a new run.
        tracker_options = {"tensorboard": {"purge_step": start_step + 1}, "wandb": {"name": run_folder.name}}
        accelerator.init_trackers("tinynet", plain_config, init_kwargs=tracker_options)
    timer = StepTimer()
    started_at = time.perf_counter()
    epoch_seconds, epoch_started_at = timer.seconds(), started_at
    logged_at_step, logged_at, waited_s = start_step, started_at, 0.0
    most_replaced, most_skipped = skip_limit(config.on_bad_image), skip_limit(config.on_nonfinite)
    save_schedule = SaveSchedule(config.save_every, start_step)
    long_steps = LongSteps(accelerator, network, positions)

    def save() -> None:
        """Between two optimizer steps, on all ranks. Nothing is averaged, so that a save changes nothing."""
        followed = [network, ema.model] if ema else [network]
        local = {"batch_norm": accelerator.gather(batch_norm_statistics(followed)[None])}
        if positions:
            local["stream"] = accelerator.gather(positions.tensor[None].to(device))
        save_schedule.saved(step)
        if not is_main:
            return
        tensors = {
            "model": network.state_dict(),
            "optimizer": optimizer_tensors(optimizer.optimizer, network),
            "local": local,
        } | ({"ema": ema.model.state_dict()} if ema else {})
        progress.elapsed_s = elapsed_before_s + time.perf_counter() - started_at
        state = {
            "progress": progress.to_dict(),
            "scaler": accelerator.scaler.state_dict() if accelerator.scaler is not None else None,
            "settings": settings,
            "execution": execution,
            "data": data,
        }
        metrics.sync()  # the checkpoint must not know more than the files that a resume will not write again
        save_checkpoint(run_folder / "checkpoints", step, tensors, state, keep=config.keep)

    def interrupted() -> Interrupted:
        if is_main:
            (run_folder / ".interrupted").touch()  # launchers do not pass exit codes on, and batch systems look here
        return Interrupted(interruption.sentence(step, run_folder))

    # 9. The loop: one optimizer step a turn, and after the last of an epoch its end.
    model.train()
    batches = batches_in_time(train_loader, config.timeout_s)
    if positions:
        batches = positions.followed(batches)
    step = start_step
    while step < total_steps or progress.epoch_end_due:
        if not progress.epoch_end_due:
            epoch, step_in_epoch = divmod(step, plan.steps_per_epoch)
            micro_batches, step_samples = plan.step_shape(step_in_epoch)
            lr = learning_rate(step)
            for group in optimizer.param_groups:
                group["lr"] = lr * group.get("lr_scale", 1.0)
            dropout_seed = np.random.SeedSequence((config.seed, step, rank)).generate_state(1, np.uint64)[0] >> 1
            torch.manual_seed(int(dropout_seed))
            statistics = batch_norm_statistics([network]) if most_skipped else None

            long_steps.begin(micro_batches)
            step_loss, step_indices, step_replaced = torch.zeros((), device=device), [], 0
            for micro_batch in range(micro_batches):
                with timer("data"):
                    batch = next(batches)
                    images = batch["pixel_values"].to(device, non_blocking=True)
                    labels = batch["labels"].to(device, non_blocking=True)
                step_indices += batch["index"].tolist()
                step_replaced += int(batch["replaced"].sum())
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
                if long_steps.stopped(micro_batch + 1, bool(interruption)):
                    optimizer.zero_grad()
                    save()  # what there was before this step
                    raise interrupted()
            progress.step = step = step + 1

            # Before a weight changes, every rank knows every rank's loss and wish.
            with timer("forward_backward"):  # where the host waits for the device
                grad_norm = accelerator.clip_grad_norm_(model.parameters(), config.max_grad_norm or math.inf)
                wish = STOP if interruption else SAVE if is_main and save_schedule.due(step) else GO_ON
                agreed = agree(accelerator, step_loss, grad_norm, wish, step_replaced, long_steps.micro_batch_s)
            long_steps.end(max(agreed.micro_batch_s))
            progress.epoch_replaced += int(sum(agreed.replaced))
            if progress.epoch_replaced > most_replaced:
                raise RunError(
                    f"{progress.epoch_replaced} images of epoch {epoch + 1} cannot be decoded, more than "
                    f"--on_bad_image {config.on_bad_image} allows; "
                    f"python -m training.audit --dataset {config.dataset} lists them"
                )
            # With a gradient scaler, gradients overflow now and then; only many such steps in a row are a problem.
            may_overflow = accelerator.scaler is not None and agreed.losses_are_finite
            if agreed.is_finite or may_overflow:
                progress.epoch_loss += agreed.loss_sum
                progress.epoch_samples += step_samples
            else:
                progress.skipped_steps += 1
                problem = agreed.problem(step, gather_object([step_indices]))
                if progress.skipped_steps > most_skipped:
                    raise RunError(f"{problem}: {ways_on(config, run_folder, checkpoint, progress.skipped_steps)}")
                display.message(f"{problem}: left out, step {progress.skipped_steps} of at most {most_skipped}")
                set_batch_norm_statistics([network], statistics)
            with timer("optimizer"):
                if agreed.is_finite:
                    optimizer.step()
                    if ema:
                        ema.update(network)
                elif accelerator.scaler is not None:
                    accelerator.scaler.update()  # it saw the gradients when they were unscaled, for their norm
                optimizer.zero_grad()
            if may_overflow:
                progress.count_overflow(not agreed.is_finite)
            if may_overflow and not agreed.is_finite:
                sentence = overflow(step, progress.overflows_in_a_row, accelerator.scaler.get_scale())
                if progress.overflows_in_a_row >= MOST_OVERFLOWS_IN_A_ROW:
                    raise RunError(f"{sentence}; {ways_on(config, run_folder, checkpoint)}")
                display.message(sentence)

            if (agreed.is_finite or may_overflow) and (step % config.log_every_steps == 0 or step == total_steps):
                progress.smoothed_loss.update(agreed.loss_sum / step_samples)
                now, waited_before_s = time.perf_counter(), waited_s
                waited_s = timer.seconds()["data"]
                record = {
                    "step": step,
                    "epoch": step / plan.steps_per_epoch,
                    "loss": agreed.loss_sum / step_samples,
                    "loss_smoothed": progress.smoothed_loss.value,
                    "lr": lr,
                    **named_learning_rates(optimizer),
                    "grad_norm": agreed.grad_norms[0],
                    "loss_scale": accelerator.scaler.get_scale() if accelerator.scaler is not None else None,
                    "images_per_s": (step - logged_at_step) * plan.global_batch_size / (now - logged_at),
                    "data_wait_s": waited_s - waited_before_s,
                    "memory_mb": torch.cuda.max_memory_allocated(device) / 1e6 if device.type == "cuda" else None,
                }
                if is_main:
                    metrics.log_step(**record)
                if config.report_to:
                    accelerator.log({name: value for name, value in record.items() if value is not None}, step=step)
                logged_at_step, logged_at = step, now
            display.update(step, loss=progress.smoothed_loss.value, lr=lr)
            progress.epoch_end_due = step % plan.steps_per_epoch == 0
            if agreed.wish > GO_ON:
                with timer("saving"):
                    save()
                if agreed.wish == STOP:
                    raise interrupted()
            if not progress.epoch_end_due:
                continue

        # 10. The end of an epoch: evaluate raw weights and EMA in one pass, keep the best, save.
        epochs_done, is_finished = step // plan.steps_per_epoch, step >= total_steps
        candidates = {"raw": network} | ({"ema": ema.model} if ema else {})
        statistics = batch_norm_statistics(candidates.values())
        for candidate in candidates.values():
            average_batch_norm_statistics(candidate)
        results = {}
        if is_finished or epochs_done % config.eval_every_epochs == 0:
            with timer("evaluation"), accelerator.autocast():
                results = evaluate(
                    candidates,
                    batches_in_time(eval_loader, config.timeout_s),
                    preprocess=lambda images: device_transform.normalize_only(images.to(device, non_blocking=True)),
                    num_samples=num_validation,
                    num_classes=num_classes,
                    should_stop=lambda: bool(interruption),
                )
            if results is None:
                set_batch_norm_statistics(candidates.values(), statistics)
                save()
                raise interrupted()
            weights = max(results, key=lambda name: goodness(results[name].to_dict()))
        result = {"weights": weights, "epoch": epochs_done, **results[weights].to_dict()} if results else None
        is_best = result is not None and (progress.best is None or goodness(result) > goodness(progress.best))
        if is_best:
            progress.best = result | {"per_class": results[weights].per_class(splits.class_names)}
            if is_main:
                with timer("saving"):
                    save_model_folder(run_folder / "best", candidates[weights], processor)
                    progress.best_sha256 = weights_sha256(run_folder / "best")
        elapsed_s = elapsed_before_s + time.perf_counter() - started_at
        record = {
            "epoch": epochs_done,
            "step": step,
            "train_loss": progress.epoch_loss / progress.epoch_samples if progress.epoch_samples else math.nan,
            "lr": learning_rate(step - 1),
            "raw": results["raw"].to_dict() if "raw" in results else None,
            "ema": results["ema"].to_dict() if "ema" in results else None,
            "images_per_s": display.images_per_s,
            "time_shares": timer.shares(since=epoch_seconds),
            "epoch_s": time.perf_counter() - epoch_started_at,
            "replaced_images": progress.epoch_replaced,
            "skipped_steps": progress.skipped_steps,
            "overflowed_steps": progress.overflowed_steps,
        }
        if progress.epoch_replaced:
            display.message(
                f"epoch {epochs_done}: {progress.epoch_replaced} images that cannot be decoded were replaced"
            )
        epoch_seconds, epoch_started_at = timer.seconds(), time.perf_counter()
        progress.begin_epoch()
        if is_main:
            metrics.log_epoch(**record)
        if is_finished or epochs_done % config.save_every_epochs == 0:
            with timer("saving"):
                if is_main:
                    is_staircase = config.schedule == "staircase"
                    save_curves(run_folder / "metrics.jsonl", run_folder / "curves.png", is_staircase=is_staircase)
                    save_model_folder(run_folder / "last", candidates[weights] if results else network, processor)
                    if is_finished:
                        summary = {
                            "run": run_folder.name,
                            "model": config.model,
                            "dataset": config.dataset,
                            "is_local": {
                                "model": Path(config.model).expanduser().exists(),
                                "dataset": Path(config.dataset).expanduser().exists(),
                            },
                            "num_train": plan.num_samples,
                            "num_validation": num_validation,
                            "num_classes": num_classes,
                            "parameters": network_config.parameter_count,
                            "macs": network_config.macs,
                            "image_size": network_config.image_size,
                            "epochs": config.epochs,
                            "steps": total_steps,
                            "best": progress.best,
                            **card_metrics(num_classes),
                            "last": {name: result.to_dict() for name, result in results.items()},
                            "images_per_s": display.images_per_s,
                            "elapsed_s": elapsed_s,
                            "changes": progress.changes,
                            "time_shares": timer.shares(),
                            "processes": num_processes,
                            "precision": config.precision,
                            "environment": environment(),
                        }
                        write_summary(run_folder / "summary.json", summary)
                save()
        if config.report_to and results:
            pairs = {f"{metric}_{name}": value for name, r in results.items() for metric, value in r.metrics()}
            accelerator.log({name: value for name, value in pairs.items() if value is not None}, step=step)
        display.epoch(record, is_best=is_best)
        logged_at_step, logged_at = step, time.perf_counter()

    # 11. The result.
    display.close()
    interruption.end()
    if is_main:
        remove_compiler_cache(run_folder)
        print_result(run_folder, summary, splits)
    accelerator.end_training()
    if is_main and config.push_to_hub:  # the other processes need not wait for it
        print(publish_run(run_folder, config.push_to_hub))


def run(argv: list[str]) -> int:
    """`main` as a command: the exit code, after one sentence where it is not 0."""
    intact = "; what the run has saved is intact, and the same command resumes"
    return run_command(main, argv, launched=True, disk_refuses=intact, recognize=ending_of)


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
