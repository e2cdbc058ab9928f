"""How a run begins, or resumes: rank 0 chooses the checkpoint, and every rank reads it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn

from training.config.train_config import TrainConfig
from training.errors import RunError, UserError
from training.loading.sampling import TrainingPlan
from training.modeling.batch_norm import set_batch_norm_statistics
from training.modeling.ema import ExponentialMovingAverage
from training.run.identity import RunIdentity
from training.run.progress import Progress
from training.run.resume import is_branch, read_checkpoint, restore
from training.run.run_folder import open_run
from training.run.run_lock import RunLock
from training.system.compiler_cache import distrust_compiler_cache


def open_on_rank_0(
    run_folder: Path,
    resume: str,
    *,
    rank: int,
    also: Callable[[], None] | None = None,
) -> tuple[Path | None, RunLock | None]:
    """Rank 0 takes the run's folder and chooses the checkpoint to resume from; every rank learns of it.

    Args:
        resume: see `open_run`.
        also: one more check, on rank 0, now rather than after days of training.

    Returns:
        (checkpoint, or None at the start of a run; the lock, to be kept while the run trains, None but on rank 0).

    Raises:
        RunError: on every rank, with rank 0's reason.
    """
    told: list[Any] = [None, None]  # checkpoint, reason why not
    lock = None
    if rank == 0:
        try:
            run_folder.mkdir(parents=True, exist_ok=True)
            lock = RunLock(run_folder)
            (run_folder / ".interrupted").unlink(missing_ok=True)
            distrust_compiler_cache(run_folder)
            told[0] = open_run(run_folder, resume)
            if also:
                also()
        except (UserError, OSError) as error:
            told[1] = str(error)
    checkpoint, reason = broadcast_object_list(told)
    if reason:
        raise RunError(reason)
    return checkpoint, lock


@dataclass(frozen=True)
class Start:
    """Where this start of a run begins."""

    checkpoint: Path | None  # None at the start of a run
    progress: Progress = field(default_factory=Progress)
    changes: list[str] = field(default_factory=list)  # since the checkpoint, a sentence each
    state: dict[str, Any] = field(default_factory=dict)  # of the checkpoint; empty at the start of a run
    local: dict[str, Tensor] = field(default_factory=dict)  # what each rank had of its own, by rank

    def restore_rank(self, accelerator: Accelerator, models: list[nn.Module]) -> None:
        """Give this rank its own BatchNorm statistics back, and fp16's gradient scaler its scale.

        To be called after `accelerator.prepare`: DistributedDataParallel may give all ranks rank 0's.

        Args:
            models: the network, and the EMA if there is one.
        """
        if self.checkpoint is None:
            return
        statistics = self.local["batch_norm"]  # (processes, statistics)
        is_own = len(statistics) == accelerator.num_processes
        own = statistics[accelerator.process_index] if is_own else statistics.mean(dim=0)
        set_batch_norm_statistics(models, own)
        if accelerator.scaler is not None and self.state.get("scaler"):  # a branch may come from another precision
            accelerator.scaler.load_state_dict(self.state["scaler"])


def resume(
    checkpoint: Path | None,
    run_folder: Path,
    config: TrainConfig,
    identity: RunIdentity,
    plan: TrainingPlan,
    rank: int,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    ema: ExponentialMovingAverage | None,
) -> Start:
    """Load a checkpoint into network, optimizer and EMA, before `accelerator.prepare`.

    Args:
        checkpoint: None to begin a run, for which nothing is loaded.
        run_folder: of this start; a checkpoint from elsewhere begins a branch.

    Raises:
        RunError: the run is finished, or something differs that must not.
        CheckpointError: damaged since it was chosen.
    """
    if checkpoint is None:
        return Start(None)
    tensors, state, changes = read_checkpoint(
        checkpoint,
        run_folder,
        settings=identity.settings,
        execution=identity.execution,
        data=identity.data,
        allow_data_change=config.allow_data_change,
        steps_per_epoch=plan.steps_per_epoch,
    )
    same_optimizer = state["settings"]["optimizer"] == config.optimizer
    restore(checkpoint, tensors, network, optimizer, ema, same_optimizer=same_optimizer)
    progress = Progress.from_dict(state["progress"])
    progress.note_changes(changes)
    if is_branch(checkpoint, run_folder):
        progress.begin_branch()
    elif rank == 0:
        progress.check_best(run_folder / "best")
    return Start(checkpoint, progress, changes, state, tensors["local"])
