"""What a run keeps: checkpoints to resume from, the best and the last model, the summary of its result."""

import time
from pathlib import Path
from typing import Any, cast

from modeling_tinynet import TinyNetConfig, TinyNetForImageClassification, TinyNetImageProcessor
from training.engine.step import OptimizerStep
from training.loading.streaming import StreamPositions
from training.modeling.batch_norm import batch_norm_statistics
from training.reporting.curves import save_curves
from training.reporting.metrics import MetricsLog, write_summary
from training.run.checkpoint import optimizer_tensors, save_checkpoint
from training.run.identity import RunIdentity
from training.run.progress import Progress, weights_sha256
from training.run.run_folder import save_model_folder
from training.run.save_schedule import SaveSchedule
from training.system.interruption import Interrupted, Interruption


class Saver:
    """Writes the files of a run that training does not append to. Rank 0 writes; every rank calls.

    Args:
        run_folder: of the run.
        step: the optimizer step, with the network, the optimizer and the EMA.
        positions: of a stream; None for a stored dataset.
        progress: of the run.
        identity: which the checkpoints hold.
        metrics: the log, forced to the disk before each checkpoint; None but on rank 0.
        schedule: of the checkpoints between the ends of epochs.
        keep: newest checkpoints kept.
    """

    def __init__(
        self,
        run_folder: Path,
        step: OptimizerStep,
        positions: StreamPositions | None,
        progress: Progress,
        identity: RunIdentity,
        metrics: MetricsLog | None,
        schedule: SaveSchedule,
        keep: int,
    ) -> None:
        self.run_folder = run_folder
        self._step = step
        self._positions = positions
        self._progress = progress
        self._identity = identity
        self._metrics = metrics
        self._schedule = schedule
        self._keep = keep
        self._processor = TinyNetImageProcessor.from_config(cast(TinyNetConfig, step.network.config))
        self._elapsed_before_s, self._started_at = progress.elapsed_s, time.perf_counter()

    @property
    def elapsed_s(self) -> float:
        """Of training, over all starts of the run."""
        return self._elapsed_before_s + time.perf_counter() - self._started_at

    def is_due(self) -> bool:
        """Whether rank 0 wishes to save now, in the midst of an epoch."""
        return self._metrics is not None and self._schedule.due(self._progress.step)

    def save_checkpoint(self) -> None:
        """Between two optimizer steps, on all ranks. Nothing is averaged, so that a save changes nothing."""
        step, progress = self._step, self._progress
        accelerator, network, ema = step.accelerator, step.network, step.ema
        followed = [network, ema.model] if ema else [network]
        local = {"batch_norm": accelerator.gather(batch_norm_statistics(followed)[None])}
        if self._positions:
            local["stream"] = accelerator.gather(self._positions.tensor[None].to(accelerator.device))
        self._schedule.saved(progress.step)
        if self._metrics is None:
            return
        tensors = {
            "model": network.state_dict(),
            "optimizer": optimizer_tensors(step.optimizer.optimizer, network),
            "local": local,
        } | ({"ema": ema.model.state_dict()} if ema else {})
        progress.elapsed_s = self.elapsed_s
        state = {
            "progress": progress.to_dict(),
            "scaler": accelerator.scaler.state_dict() if accelerator.scaler is not None else None,
            "settings": self._identity.settings,
            "execution": self._identity.execution,
            "data": self._identity.data,
        }
        self._metrics.sync()  # the checkpoint must not know more than the files that a resume will not write again
        save_checkpoint(self.run_folder / "checkpoints", progress.step, tensors, state, keep=self._keep)

    def save_best(self, model: TinyNetForImageClassification) -> None:
        """The model of the best evaluation so far."""
        if self._metrics is not None:
            save_model_folder(self.run_folder / "best", model, self._processor)
            self._progress.best_sha256 = weights_sha256(self.run_folder / "best")

    def save_last(self, model: TinyNetForImageClassification, *, is_staircase: bool) -> None:
        """The model as it is now, and the curves up to here.

        Args:
            is_staircase: the learning rate is constant within an epoch.
        """
        if self._metrics is not None:
            curves = self.run_folder / "curves.png"
            save_curves(self.run_folder / "metrics.jsonl", curves, is_staircase=is_staircase)
            save_model_folder(self.run_folder / "last", model, self._processor)

    def save_summary(self, summary: dict[str, Any]) -> None:
        """The result of the finished run."""
        if self._metrics is not None:
            write_summary(self.run_folder / "summary.json", summary)

    def interrupted(self, interruption: Interruption) -> Interrupted:
        """What to raise once all is saved. Launchers do not pass exit codes on, so batch systems look for a file."""
        if self._metrics is not None:
            (self.run_folder / ".interrupted").touch()
        return Interrupted(interruption.sentence(self._progress.step, self.run_folder))
