"""What stands around an optimizer step: consensus, policy, records, saving, and the end of an epoch."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from torch import nn

from modeling_tinynet import TinyNetForImageClassification
from training.config.train_config import TrainConfig
from training.data.sources import Splits, num_samples
from training.engine.agreement import GO_ON, SAVE, STOP, Agreement, agree
from training.engine.loaders import Loaders
from training.engine.long_steps import LongSteps
from training.engine.policy import Outcome, StepPolicy
from training.engine.recording import Recorder
from training.engine.result import run_summary
from training.engine.saving import Saver
from training.engine.step import Gradients, OptimizerStep
from training.evaluation.evaluate import EvaluationResult, evaluate
from training.loading.sampling import TrainingPlan
from training.modeling.batch_norm import (
    average_batch_norm_statistics,
    batch_norm_statistics,
    set_batch_norm_statistics,
)
from training.optim.optimizer import named_learning_rates
from training.reporting.metrics import goodness
from training.run.identity import RunIdentity
from training.run.save_schedule import SaveSchedule
from training.run.start import Start
from training.system.interruption import Interruption


class Trainer:
    """The parts of the loop in train.py, on each rank.

    Args:
        config: of the run.
        run_folder: of the run.
        splits: the dataset.
        plan: how epochs fall into steps, and steps into micro-batches.
        identity: which checkpoints hold.
        start: where this start begins; its progress is kept up to date here.
        step: the optimizer step.
        loaders: of this rank.
        learning_rate: of each optimizer step.
        recorder: what people see and what is written down.
        interruption: of this process.

    Attributes:
        progress: how far the run is.
        summary: of the finished run, on rank 0; empty before, and on the other ranks.
    """

    def __init__(
        self,
        config: TrainConfig,
        run_folder: Path,
        splits: Splits,
        plan: TrainingPlan,
        identity: RunIdentity,
        start: Start,
        step: OptimizerStep,
        loaders: Loaders,
        learning_rate: Callable[[int], float],
        recorder: Recorder,
        interruption: Interruption,
    ) -> None:
        progress, accelerator, network = start.progress, step.accelerator, step.network
        self.config = config
        self.splits = splits
        self.plan = plan
        self.total_steps = config.epochs * plan.steps_per_epoch
        self.progress = progress
        self.summary: dict[str, Any] = {}
        self._step = step
        self._network = cast(TinyNetForImageClassification, network)
        self._loaders = loaders
        self._batches = loaders.train_batches()
        self._learning_rate = learning_rate
        self._recorder = recorder
        self._timer = recorder.timer
        self._interruption = interruption
        schedule = SaveSchedule(config.save_every, progress.step)
        self._saver = Saver(
            run_folder, step, loaders.positions, progress, identity, recorder.metrics, schedule, config.keep
        )
        self._policy = StepPolicy(
            config, run_folder, start.checkpoint, network, accelerator.scaler, progress, recorder.display.message
        )
        self._long_steps = LongSteps(accelerator, network, loaders.positions, lambda: bool(interruption))

    # One optimizer step

    def train_step(self) -> Gradients:
        """The gradients of the next step.

        Raises:
            Interrupted: a signal came inside a long step. The run is saved as it was before it.
        """
        epoch, step_in_epoch = divmod(self.progress.step, self.plan.steps_per_epoch)
        micro_batches, num_samples = self.plan.step_shape(step_in_epoch)
        self._policy.begin_step()
        self._long_steps.begin(micro_batches)
        gradients = self._step.train_step(
            self._batches,
            epoch=epoch,
            step=self.progress.step,
            micro_batches=micro_batches,
            num_samples=num_samples,
            should_stop=self._long_steps.stopped,
        )
        if gradients is None:
            self._saver.save_checkpoint()
            raise self._saver.interrupted(self._interruption)
        self.progress.step += 1
        return gradients

    def agree(self, gradients: Gradients) -> Agreement:
        """What all ranks know of the step and wish after it. Here the host waits for the device."""
        wish = STOP if self._interruption else SAVE if self._saver.is_due() else GO_ON
        with self._timer("forward_backward"):
            agreed = agree(
                self._step.accelerator,
                gradients.loss,
                gradients.norm,
                wish,
                gradients.replaced,
                self._long_steps.micro_batch_s,
            )
        self._long_steps.end(max(agreed.micro_batch_s))
        return agreed

    def decide(self, gradients: Gradients, agreed: Agreement) -> Outcome:
        """What becomes of the gradients.

        Raises:
            RunError: more bad images, or more steps that are not finite, than the configuration allows.
        """
        epoch = (self.progress.step - 1) // self.plan.steps_per_epoch
        return self._policy.decide(agreed, gradients.samples, num_samples=gradients.num_samples, epoch=epoch)

    def end_step(self, gradients: Gradients, agreed: Agreement, outcome: Outcome, lr: float) -> None:
        """Count and record the step, and save or stop where a rank wishes it.

        Raises:
            RunError: too many overflows in a row.
            Interrupted: a signal came. The run is saved.
        """
        progress = self.progress
        self._policy.count_overflow(outcome)
        loss = None if outcome is Outcome.LEFT_OUT else agreed.loss_sum / gradients.num_samples
        group_lr = named_learning_rates(self._step.optimizer, lr)
        self._recorder.step(loss, agreed.grad_norms[0], lr, group_lr)
        progress.epoch_end_due = progress.step % self.plan.steps_per_epoch == 0
        if agreed.wish > GO_ON:
            with self._timer("saving"):
                self._saver.save_checkpoint()
        if agreed.wish == STOP:
            raise self._saver.interrupted(self._interruption)

    # The end of an epoch

    def end_epoch(self) -> None:
        """Evaluate raw weights and EMA in one pass where it is due, record, keep the best, save.

        Raises:
            Interrupted: a signal came during the evaluation. The run is saved as it was before it.
        """
        config, progress, step = self.config, self.progress, self._step
        epochs_done, is_finished = progress.step // self.plan.steps_per_epoch, progress.step >= self.total_steps
        candidates: dict[str, Any] = {"raw": step.network} | ({"ema": step.ema.model} if step.ema else {})
        statistics = batch_norm_statistics(candidates.values())
        for candidate in candidates.values():
            average_batch_norm_statistics(candidate)
        results: dict[str, EvaluationResult] | None = {}
        if is_finished or epochs_done % config.eval_every_epochs == 0:
            results = self._evaluate(candidates)
        if results is None:
            set_batch_norm_statistics(candidates.values(), statistics)
            self._saver.save_checkpoint()
            raise self._saver.interrupted(self._interruption)
        weights = max(results, key=lambda name: goodness(results[name].to_dict()), default="raw")
        is_best = bool(results) and self._is_best(results[weights], weights, epochs_done)
        if is_best:
            with self._timer("saving"):
                self._saver.save_best(candidates[weights])
        elapsed_s = self._saver.elapsed_s
        record = self._recorder.end_epoch(results, self._learning_rate(progress.step - 1))
        if is_finished or epochs_done % config.save_every_epochs == 0:
            with self._timer("saving"):
                self._saver.save_last(candidates[weights], is_staircase=config.schedule == "staircase")
                if is_finished and step.accelerator.is_main_process:
                    self.summary = self._summarize(results, elapsed_s)
                    self._saver.save_summary(self.summary)
                self._saver.save_checkpoint()
        self._recorder.show_epoch(record, results, is_best=is_best)

    def _evaluate(self, candidates: dict[str, nn.Module]) -> dict[str, EvaluationResult] | None:
        """None where a signal ended it."""
        accelerator, transform = self._step.accelerator, self._step.device_transform
        with self._timer("evaluation"), accelerator.autocast():
            return evaluate(
                candidates,
                self._loaders.eval_batches(),
                preprocess=lambda images: transform.normalize_only(images.to(accelerator.device, non_blocking=True)),
                num_samples=num_samples(self.splits.validation),
                num_classes=len(self.splits.class_names),
                should_stop=lambda: bool(self._interruption),
            )

    def _is_best(self, evaluation: EvaluationResult, weights: str, epochs_done: int) -> bool:
        """Whether it is the best of the run so far; then it is noted in `progress`."""
        result = {"weights": weights, "epoch": epochs_done, **evaluation.to_dict()}
        best = self.progress.best
        if best is not None and goodness(result) <= goodness(best):
            return False
        self.progress.best = result | {"per_class": evaluation.per_class(self.splits.class_names)}
        return True

    def _summarize(self, results: dict[str, EvaluationResult], elapsed_s: float) -> dict[str, Any]:
        return run_summary(
            self.config,
            self._saver.run_folder.name,
            self.splits,
            self.plan,
            self._network.config,
            self.progress,
            results,
            images_per_s=self._recorder.display.images_per_s,
            elapsed_s=elapsed_s,
            time_shares=self._timer.shares(),
        )
