"""What becomes of a step, by what all ranks agreed on."""

import math
from pathlib import Path

import pytest
import torch

from training.config.train_config import TrainConfig
from training.engine.agreement import GO_ON, Agreement
from training.engine.nonfinite import MOST_OVERFLOWS_IN_A_ROW
from training.engine.policy import Outcome, StepPolicy
from training.run.progress import Progress
from training.run.run_folder import RunError


def agreement(loss: float = 2.0, grad_norm: float = 0.5, replaced: int = 0) -> Agreement:
    """Of two ranks, the first of which has something to tell."""
    return Agreement((loss, 1.0), (grad_norm,) * 2, (GO_ON,) * 2, (replaced, 0), (0.1, 0.1))


class Decisions:
    """A policy beside what it counts and says."""

    def __init__(self, scaler: torch.amp.GradScaler | None = None, **config) -> None:
        self.network = torch.nn.BatchNorm2d(1)
        self.progress = Progress(step=11)
        self.said: list[str] = []
        self.policy = StepPolicy(
            TrainConfig(dataset="photos", **config),
            Path("runs/run"),
            None,
            self.network,
            scaler,
            self.progress,
            self.said.append,
        )

    def __call__(self, agreed: Agreement) -> Outcome:
        self.policy.begin_step()
        self.network.running_mean.add_(1)  # as the forward pass does
        outcome = self.policy.decide(agreed, [7, 8], num_samples=4, epoch=2)
        self.policy.count_overflow(outcome)
        return outcome


@pytest.fixture
def scaler() -> torch.amp.GradScaler:
    return torch.amp.GradScaler("cpu", init_scale=64.0)


def test_a_sound_step_updates_and_counts_towards_the_epochs_loss():
    decisions = Decisions()
    assert decisions(agreement()) is Outcome.UPDATE
    assert (decisions.progress.epoch_loss, decisions.progress.epoch_samples) == (3.0, 4)
    assert decisions.said == [] and decisions.network.running_mean == 1


@pytest.mark.parametrize("numbers", [{"loss": math.nan, "grad_norm": math.nan}, {"loss": math.inf}])
def test_a_loss_that_is_not_finite_ends_the_run_by_default(numbers):
    with pytest.raises(RunError, match=r"at step 11 on rank 0, which holds samples 7, 8: .*--on_nonfinite skip:10"):
        Decisions()(agreement(**numbers))


def test_gradients_that_are_not_finite_end_the_run_without_a_scaler():
    with pytest.raises(RunError, match="the gradient's norm is inf at step 11"):
        Decisions()(agreement(grad_norm=math.inf))


def test_as_many_steps_are_left_out_as_allowed_without_a_trace():
    decisions = Decisions(on_nonfinite="skip:1")
    assert decisions(agreement(loss=math.nan)) is Outcome.LEFT_OUT
    assert decisions.network.running_mean == 0
    assert (decisions.progress.skipped_steps, decisions.progress.epoch_samples) == (1, 0)
    (sentence,) = decisions.said
    assert sentence.endswith("left out, step 1 of at most 1")
    with pytest.raises(RunError):
        decisions(agreement(loss=math.nan))


def test_overflows_are_counted_and_only_many_in_a_row_end_the_run(scaler):
    decisions = Decisions(scaler)
    for _ in range(MOST_OVERFLOWS_IN_A_ROW - 1):
        assert decisions(agreement(grad_norm=math.inf)) is Outcome.OVERFLOW
    assert decisions(agreement()) is Outcome.UPDATE
    assert (decisions.progress.overflows_in_a_row, decisions.progress.overflowed_steps) == (0, 19)
    assert "the loss scale is now 64" in decisions.said[-1]
    for _ in range(MOST_OVERFLOWS_IN_A_ROW - 1):
        decisions(agreement(grad_norm=math.inf))
    with pytest.raises(RunError, match="number 20 in a row"):
        decisions(agreement(grad_norm=math.inf))


def test_a_loss_that_is_not_finite_is_no_overflow(scaler):
    with pytest.raises(RunError, match="the loss is nan at step 11"):
        Decisions(scaler)(agreement(loss=math.nan, grad_norm=math.nan))


def test_bad_images_are_counted_over_the_epoch_up_to_the_limit():
    decisions = Decisions(on_bad_image="skip:3")
    decisions(agreement(replaced=2))
    decisions(agreement(replaced=1))
    assert decisions.progress.epoch_replaced == 3
    with pytest.raises(RunError, match="4 images of epoch 3 cannot be decoded, more than --on_bad_image skip:3"):
        decisions(agreement(replaced=1))
