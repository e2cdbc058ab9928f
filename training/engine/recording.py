"""What a run writes down and shows as it trains: step records, epoch records, the messages at its start."""

import math
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from modeling_tinynet import TinyNetConfig, __version__
from training.config.train_config import TrainConfig
from training.data.sources import Splits
from training.engine.loaders import Loaders
from training.evaluation.evaluate import EvaluationResult
from training.loading.sampling import TrainingPlan
from training.optim.lr_schedule import warmup_remark
from training.reporting.console import StepTimer, TrainingDisplay
from training.reporting.metrics import MetricsLog, Record, write_atomically
from training.run.progress import Progress
from training.run.resume import is_branch
from training.run.run_folder import set_summary_aside
from training.run.start import Start


class Recorder:
    """Step and epoch records, for the log, the tracker and the eye.

    Args:
        accelerator: whose trackers get the records, if the run has one.
        display: on every rank; it prints on rank 0.
        metrics: the log; None but on rank 0.
        progress: of the run.
        plan: how epochs fall into steps.
        total_steps: of the run.
        log_every_steps: optimizer steps between two records.

    Attributes:
        timer: attributes the time of the run to its parts, from now on.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        display: TrainingDisplay,
        metrics: MetricsLog | None,
        progress: Progress,
        plan: TrainingPlan,
        total_steps: int,
        log_every_steps: int,
    ) -> None:
        self.timer = StepTimer()
        self.display = display
        self.metrics = metrics
        self._accelerator = accelerator
        self._progress = progress
        self._plan = plan
        self._total_steps = total_steps
        self._log_every_steps = log_every_steps
        self._epoch_seconds, self._epoch_started_at = self.timer.seconds(), time.perf_counter()
        self._logged_at_step, self._logged_at, self._waited_s = progress.step, self._epoch_started_at, 0.0

    def step(self, loss: float | None, grad_norm: float, lr: float, group_lr: Mapping[str, float]) -> None:
        """A step that is done; every few steps it is written down.

        Args:
            loss: mean over the global batch; None where the step was left out.
            grad_norm: before clipping.
            lr: learning rate of the step.
            group_lr: those of groups that have their own, see `named_learning_rates`.
        """
        step = self._progress.step
        if loss is not None and (step % self._log_every_steps == 0 or step == self._total_steps):
            self._log_step(loss, grad_norm, lr, group_lr)
        self.display.update(step, loss=self._progress.smoothed_loss.value, lr=lr)

    def end_epoch(self, results: dict[str, EvaluationResult], lr: float) -> Record:
        """Write the record of an epoch, before anything is saved, and begin the next one.

        Args:
            results: of raw weights and EMA; empty without an evaluation.
            lr: learning rate of its last step.
        """
        progress = self._progress
        record: Record = {
            "epoch": progress.step // self._plan.steps_per_epoch,
            "step": progress.step,
            "train_loss": progress.epoch_loss / progress.epoch_samples if progress.epoch_samples else math.nan,
            "lr": lr,
            "raw": results["raw"].to_dict() if "raw" in results else None,
            "ema": results["ema"].to_dict() if "ema" in results else None,
            "images_per_s": self.display.images_per_s,
            "time_shares": self.timer.shares(since=self._epoch_seconds),
            "epoch_s": time.perf_counter() - self._epoch_started_at,
            "replaced_images": progress.epoch_replaced,
            "skipped_steps": progress.skipped_steps,
            "overflowed_steps": progress.overflowed_steps,
        }
        if progress.epoch_replaced:
            self.display.message(
                f"epoch {record['epoch']}: {progress.epoch_replaced} images that cannot be decoded were replaced"
            )
        self._epoch_seconds, self._epoch_started_at = self.timer.seconds(), time.perf_counter()
        progress.begin_epoch()
        if self.metrics is not None:
            self.metrics.log_epoch(**record)
        return record

    def show_epoch(self, record: Record, results: dict[str, EvaluationResult], *, is_best: bool) -> None:
        """Show an epoch once its models are saved."""
        if results:
            pairs = {f"{metric}_{name}": value for name, r in results.items() for metric, value in r.metrics()}
            self._log_to_tracker(pairs)
        self.display.epoch(record, is_best=is_best)
        self._logged_at_step, self._logged_at = self._progress.step, time.perf_counter()

    def _log_to_tracker(self, values: Mapping[str, float | None]) -> None:
        known = {name: value for name, value in values.items() if value is not None}
        self._accelerator.log(known, step=self._progress.step)

    def _log_step(self, loss: float, grad_norm: float, lr: float, group_lr: Mapping[str, float]) -> None:
        step, smoothed_loss = self._progress.step, self._progress.smoothed_loss
        smoothed_loss.update(loss)
        now, waited_s = time.perf_counter(), self.timer.seconds()["data"]
        device, scaler = self._accelerator.device, self._accelerator.scaler
        record: Record = {
            "step": step,
            "epoch": step / self._plan.steps_per_epoch,
            "loss": loss,
            "loss_smoothed": smoothed_loss.value,
            "lr": lr,
            **group_lr,
            "grad_norm": grad_norm,
            "loss_scale": scaler.get_scale() if scaler is not None else None,
            "images_per_s": (step - self._logged_at_step) * self._plan.global_batch_size / (now - self._logged_at),
            "data_wait_s": waited_s - self._waited_s,
            "memory_mb": torch.cuda.max_memory_allocated(device) / 1e6 if device.type == "cuda" else None,
        }
        if self.metrics is not None:
            self.metrics.log_step(**record)
        self._log_to_tracker(record)
        self._logged_at_step, self._logged_at, self._waited_s = step, now, waited_s


def open_recorder(
    config: TrainConfig,
    run_folder: Path,
    plan: TrainingPlan,
    start: Start,
    accelerator: Accelerator,
    lines: Iterable[str],
) -> Recorder:
    """The recorder of a run, which begins with these lines on the display.

    Raises:
        RunError: the log of the run is damaged; then nothing has changed.
    """
    total_steps, progress = config.epochs * plan.steps_per_epoch, start.progress
    display = TrainingDisplay(
        total_steps,
        plan.steps_per_epoch,
        plan.global_batch_size,
        config.epochs,
        progress.step,
        enabled=accelerator.is_main_process,
    )
    metrics = None
    if accelerator.is_main_process:
        metrics = _open_metrics(run_folder, config, start)
        for line in lines:
            display.message(line)
    if config.report_to:
        plain_config: dict[str, Any] = {name: str(value) for name, value in vars(config).items()}
        # What TensorBoard has of steps after the checkpoint, it drops; other trackers begin a new run.
        tracker_options = {"tensorboard": {"purge_step": progress.step + 1}, "wandb": {"name": run_folder.name}}
        accelerator.init_trackers("tinynet", plain_config, init_kwargs=tracker_options)
    return Recorder(accelerator, display, metrics, progress, plan, total_steps, config.log_every_steps)


def opening_lines(
    config: TrainConfig,
    rescaling: str | None,
    splits: Splits,
    network_config: TinyNetConfig,
    head: str,
    run_folder: Path,
    start: Start,
    loaders: Loaders,
    plan: TrainingPlan,
    device: torch.device,
) -> Iterator[str]:
    """What is said as a run begins.

    Args:
        rescaling: what another global batch has changed; None for nothing.
        head: what `build_network` says of the weights.
    """
    if rescaling:
        yield rescaling
    if remark := warmup_remark(config, plan.steps_per_epoch):
        yield f"learning rate: {remark}"
    yield splits.description
    yield (
        f"{config.model}: {network_config.parameter_count:,} parameters, {network_config.macs / 1e6:,.1f} M MACs "
        f"at {network_config.image_size} px; {head}; {plan.num_processes} x {device.type}, "
        f"precision {config.precision}, {loaders.num_workers} loader workers each"
    )
    if start.checkpoint is None:
        yield f"{run_folder}: a new run"
    else:
        origin = start.checkpoint if is_branch(start.checkpoint, run_folder) else start.checkpoint.name
        yield f"{run_folder}: resuming from {origin}"
    for change in start.changes:
        yield f"changed: {change}"
    if loaders.positions and start.checkpoint and not loaders.positions.is_exact:
        yield "the stream begins its epoch anew: another number of processes or loader workers read it before"


def _open_metrics(run_folder: Path, config: TrainConfig, start: Start) -> MetricsLog:
    """The log of a run and the recipe beside it, as of `start`: what comes after its checkpoint is forgotten."""
    metrics = MetricsLog(run_folder / "metrics.jsonl")  # first: a start that is refused changes nothing
    recipe = config.to_yaml(__version__, start.progress.changes)
    write_atomically(run_folder / "recipe.yaml", recipe.encode())
    if start.state and start.state["settings"]["epochs"] != config.epochs:
        set_summary_aside(run_folder, start.state["settings"]["epochs"])
    metrics.truncate_after(start.progress.step, epoch_end_due=start.progress.epoch_end_due)
    return metrics
