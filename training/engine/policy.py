"""What becomes of a step: images that cannot be decoded, numbers that are not finite, overflows of fp16."""

from collections.abc import Callable
from enum import Enum
from pathlib import Path

import torch
from accelerate.utils import gather_object
from torch import nn

from training.config.train_config import TrainConfig, skip_limit
from training.engine.agreement import Agreement
from training.engine.nonfinite import MOST_OVERFLOWS_IN_A_ROW, overflow, ways_on
from training.modeling.batch_norm import batch_norm_statistics, set_batch_norm_statistics
from training.run.progress import Progress
from training.run.run_folder import RunError


class Outcome(Enum):
    """What the ranks do with a step's gradients."""

    UPDATE = "update"
    OVERFLOW = "overflow"  # left out by fp16's gradient scaler, as happens now and then; the loss is sound
    LEFT_OUT = "left out"  # the loss or the gradients are not finite


class StepPolicy:
    """Decides what becomes of each step, counts it in `progress`, and ends the run where a limit is passed.

    Every rank decides by what all ranks agreed on, so that all decide alike.

    Args:
        config: for its limits, and for the flags that an error names.
        run_folder: of the run.
        resumed: the checkpoint that this start began from, if any.
        network: whose BatchNorm statistics a step that is left out does not change.
        scaler: fp16's; None in another precision.
        progress: of the run; its step is the one decided on.
        message: prints a line.
    """

    def __init__(
        self,
        config: TrainConfig,
        run_folder: Path,
        resumed: Path | None,
        network: nn.Module,
        scaler: torch.amp.GradScaler | None,
        progress: Progress,
        message: Callable[[str], None],
    ) -> None:
        self._config = config
        self._run_folder = run_folder
        self._resumed = resumed
        self._network = network
        self._scaler = scaler
        self._progress = progress
        self._message = message
        self._most_replaced = skip_limit(config.on_bad_image)
        self._most_skipped = skip_limit(config.on_nonfinite)

    def begin_step(self) -> None:
        """Remember the BatchNorm statistics, where a step may be left out."""
        self._statistics = batch_norm_statistics([self._network]) if self._most_skipped else None

    def decide(self, agreed: Agreement, samples: list[int], *, num_samples: int, epoch: int) -> Outcome:
        """What to do with the gradients.

        Args:
            samples: indices of this rank's samples.
            num_samples: of all ranks together.
            epoch: counted from 0.

        Raises:
            RunError: more bad images, or more steps that are not finite, than the configuration allows.
        """
        self._count_replaced(int(sum(agreed.replaced)), epoch)
        # With a gradient scaler, gradients overflow now and then; only many such steps in a row are a problem.
        may_overflow = self._scaler is not None and agreed.losses_are_finite
        if agreed.is_finite or may_overflow:
            self._progress.epoch_loss += agreed.loss_sum
            self._progress.epoch_samples += num_samples
            return Outcome.UPDATE if agreed.is_finite else Outcome.OVERFLOW
        self._count_left_out(agreed, samples)
        return Outcome.LEFT_OUT

    def count_overflow(self, outcome: Outcome) -> None:
        """After the update, when the scaler has its new scale.

        Raises:
            RunError: too many overflows in a row.
        """
        if self._scaler is None or outcome is Outcome.LEFT_OUT:
            return
        self._progress.count_overflow(outcome is Outcome.OVERFLOW)
        if outcome is Outcome.OVERFLOW:
            in_a_row = self._progress.overflows_in_a_row
            sentence = overflow(self._progress.step, in_a_row, self._scaler.get_scale())
            if in_a_row >= MOST_OVERFLOWS_IN_A_ROW:
                raise RunError(f"{sentence}; {ways_on(self._config, self._run_folder, self._resumed)}")
            self._message(sentence)

    def _count_replaced(self, replaced: int, epoch: int) -> None:
        progress, config = self._progress, self._config
        progress.epoch_replaced += replaced
        if progress.epoch_replaced > self._most_replaced:
            raise RunError(
                f"{progress.epoch_replaced} images of epoch {epoch + 1} cannot be decoded, more than "
                f"--on_bad_image {config.on_bad_image} allows; "
                f"python -m training.audit --dataset {config.dataset} lists them"
            )

    def _count_left_out(self, agreed: Agreement, samples: list[int]) -> None:
        progress = self._progress
        progress.skipped_steps += 1
        problem = agreed.problem(progress.step, gather_object([samples]))
        if progress.skipped_steps > self._most_skipped:
            ways = ways_on(self._config, self._run_folder, self._resumed, progress.skipped_steps)
            raise RunError(f"{problem}: {ways}")
        self._message(f"{problem}: left out, step {progress.skipped_steps} of at most {self._most_skipped}")
        if self._statistics is not None:  # which is there where a step may be left out
            set_batch_norm_statistics([self._network], self._statistics)
