"""One optimizer step: micro-batches to gradients, gradients to weights. Trainer, doctor and GPU benchmark share it."""

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor, nn

from modeling_tinynet import TinyNetForImageClassification
from training.config.train_config import TrainConfig
from training.modeling.ema import ExponentialMovingAverage
from training.optim.loss import smoothed_targets, soft_cross_entropy
from training.optim.optimizer import set_learning_rate
from training.transforms.device_transforms import DeviceTransform

Batch = dict[str, Tensor]  # of a loader, see `training.loading.loaders.build_train_loader`


@dataclass(frozen=True)
class Gradients:
    """What this rank knows after its backward passes. The gradients themselves are in the parameters."""

    loss: Tensor  # sum over this rank's samples, a scalar on the device
    norm: Tensor  # of the mean gradient over the global batch, before clipping; a scalar on the device
    samples: list[int]  # indices of this rank's samples
    replaced: int  # images that could not be decoded
    num_samples: int  # of all ranks together


class OptimizerStep:
    """Takes batches to gradients and gradients to weights; it decides nothing.

    Whether the gradients may change weights is for the caller to say, between the two: `train_step`, and then either
    `apply_update` or `leave_out`.

    Args:
        accelerator: of this process.
        model: what `accelerator` made of the network: in its precision, and with the other processes.
        network: the network itself, which the EMA follows.
        optimizer: as `accelerator` returned it.
        ema: updated after the weights; None for none.
        device_transform: for uint8 images on the device.
        num_classes: of the dataset.
        label_smoothing: see `smoothed_targets`.
        max_grad_norm: gradients are clipped to this norm; None for no clipping.
        seed: of the run. Dropout is a function of it, the step and the rank.
        timer: attributes the time to "data", "forward_backward" and "optimizer", see `StepTimer`.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        model: nn.Module,
        network: nn.Module,
        optimizer: AcceleratedOptimizer,
        ema: ExponentialMovingAverage | None,
        device_transform: DeviceTransform,
        *,
        num_classes: int,
        label_smoothing: float,
        max_grad_norm: float | None,
        seed: int,
        timer: Callable[[str], AbstractContextManager] = nullcontext,
    ) -> None:
        self.accelerator = accelerator
        self.model = model
        self.network = network
        self.optimizer = optimizer
        self.ema = ema
        self.device_transform = device_transform
        self.num_classes = num_classes
        self.label_smoothing = label_smoothing
        self.max_grad_norm = max_grad_norm
        self.seed = seed
        self.timer = timer

    def train_step(
        self,
        batches: Iterator[Batch],
        *,
        epoch: int,
        step: int,
        micro_batches: int,
        num_samples: int,
        should_stop: Callable[[int], bool] = lambda done: False,
    ) -> Gradients | None:
        """The gradients of one optimizer step, the mean over the global batch; no weight changes.

        Args:
            batches: this rank's micro-batches, of which `micro_batches` are taken.
            epoch: counted from 0.
            step: optimizer steps done before this one.
            micro_batches: of each rank.
            num_samples: of all ranks together.
            should_stop: asked after each micro-batch with the number of those done; the same answer on every rank.

        Returns:
            None where `should_stop` broke the step off; then there are no gradients.
        """
        self._seed_dropout(step)
        loss_sum, samples, replaced = torch.zeros((), device=self.accelerator.device), [], 0
        for done in range(1, micro_batches + 1):
            with self.timer("data"):
                batch = next(batches)
                images, labels = self._on_device(batch["pixel_values"]), self._on_device(batch["labels"])
            samples += batch["index"].tolist()
            replaced += int(batch["replaced"].sum())
            is_last = done == micro_batches
            with self.timer("forward_backward"), nullcontext() if is_last else self.accelerator.no_sync(self.model):
                loss = self._loss(images, labels, batch["index"], epoch, step)
                # The mean over the global batch, whatever its pieces; DDP divides by the number of processes.
                self.accelerator.backward(loss * (self.accelerator.num_processes / num_samples))
                loss_sum += loss.detach()
            if should_stop(done):
                self.optimizer.zero_grad()
                return None
        with self.timer("forward_backward"):
            max_norm = self.max_grad_norm or math.inf
            norm = self.accelerator.clip_grad_norm_(self.model.parameters(), max_norm)
        return Gradients(loss_sum, norm, samples, replaced, num_samples)

    def apply_update(self, lr: float) -> None:
        """Change the weights by the gradients, the EMA by the weights, and drop the gradients.

        Args:
            lr: learning rate of this step; a parameter group's `lr_scale` multiplies it.
        """
        with self.timer("optimizer"):
            set_learning_rate(self.optimizer, lr)
            self.optimizer.step()
            if self.ema:
                self.ema.update(self.network)
            self.optimizer.zero_grad()

    def leave_out(self) -> None:
        """Drop the gradients and change no weight."""
        with self.timer("optimizer"):
            if self.accelerator.scaler is not None:
                self.accelerator.scaler.update()  # it saw the gradients when they were unscaled, for their norm
            self.optimizer.zero_grad()

    def _seed_dropout(self, step: int) -> None:
        key = (self.seed, step, self.accelerator.process_index)
        torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1))

    def _on_device(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.accelerator.device, non_blocking=True)

    def _loss(self, images: Tensor, labels: Tensor, indices: Tensor, epoch: int, step: int) -> Tensor:
        """The sum over a micro-batch, with gradients."""
        targets = smoothed_targets(labels, self.num_classes, self.label_smoothing)
        rank = self.accelerator.process_index
        images, targets = self.device_transform(images, targets, epoch=epoch, indices=indices, step=step, rank=rank)
        return soft_cross_entropy(self.model(images).logits, targets, reduction="sum")


def build_step(
    config: TrainConfig,
    accelerator: Accelerator,
    model: nn.Module,
    network: TinyNetForImageClassification,
    optimizer: AcceleratedOptimizer,
    ema: ExponentialMovingAverage | None,
    timer: Callable[[str], AbstractContextManager] = nullcontext,
) -> OptimizerStep:
    """The optimizer step of the run of `config`; for the other arguments see `OptimizerStep`."""
    return OptimizerStep(
        accelerator,
        model,
        network,
        optimizer,
        ema,
        DeviceTransform(network.config.image_mean, network.config.image_std, **config.batch_transform()),
        num_classes=network.config.num_labels,
        label_smoothing=config.label_smoothing,
        max_grad_norm=config.max_grad_norm,
        seed=config.seed,
        timer=timer,
    )
