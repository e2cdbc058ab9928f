"""A signal in the middle of a long optimizer step stops the run there, as if the step had not begun.

torchrun kills its processes 30 seconds after it has passed SIGTERM on, and a step of many micro-batches may take
longer than that. Asking all ranks costs a round of communication and a wait for the device, so it is done every few
seconds, at micro-batches that are the same on all ranks.
"""

import math
import time
from collections.abc import Callable

import torch
from accelerate import Accelerator
from torch import nn

from training.loading.streaming import StreamPositions

LOOK_EVERY_S = 5.0


class LongSteps:
    """Decides when the ranks ask each other inside a step, and undoes the step where one of them wants to stop.

    Until the ranks know how long a step takes, which is in the first two steps of a process, they ask after every
    micro-batch. In a step that is over within `LOOK_EVERY_S` they never ask.

    Args:
        accelerator: of this process.
        network: the model itself, whose BatchNorm statistics each micro-batch changes.
        positions: of the stream, if there is one.
        wants_to_stop: whether this rank has a reason to stop now.

    Attributes:
        micro_batch_s: how long a micro-batch of this rank took in its last step, for `agree`; infinite before.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        network: nn.Module,
        positions: StreamPositions | None,
        wants_to_stop: Callable[[], bool],
    ) -> None:
        self.micro_batch_s = math.inf
        self._accelerator = accelerator
        self._wants_to_stop = wants_to_stop
        self._followed = [*network.buffers(), *([positions.tensor] if positions else [])]
        self._every = 1  # micro-batches between two looks, the same on all ranks

    @torch.no_grad()
    def begin(self, micro_batches: int) -> None:
        """Before the first of a step's micro-batches."""
        self._began_at = time.perf_counter()
        self._micro_batches = micro_batches
        self._before = [tensor.clone() for tensor in self._followed] if self._every < micro_batches else None

    @torch.no_grad()
    def stopped(self, done: int) -> bool:
        """Whether all ranks stop here, after `done` micro-batches. BatchNorm and stream are then as before the step;
        the gradients, which are of no use any more, are the caller's to drop."""
        if self._before is None or done % self._every or done == self._micro_batches:  # at the end there is `agree`
            return False
        wish = torch.tensor([self._wants_to_stop()], dtype=torch.float32, device=self._accelerator.device)
        if not self._accelerator.gather(wish).any():
            return False
        for tensor, before in zip(self._followed, self._before, strict=True):
            tensor.copy_(before)
        return True

    def end(self, micro_batch_s: float) -> None:
        """After `agree`, which has waited for the device.

        Args:
            micro_batch_s: that of the slowest rank.
        """
        self._every = max(1, int(LOOK_EVERY_S / micro_batch_s))
        self.micro_batch_s = (time.perf_counter() - self._began_at) / self._micro_batches
