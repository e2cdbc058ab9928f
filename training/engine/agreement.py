"""What all ranks know of a step before any of them changes a weight."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor

GO_ON, SAVE, STOP = range(3)  # what a rank wishes to do after the step
# What gloo and NCCL say where another process has ended, or does not answer within --timeout_s.
PEER_LOST = re.compile(
    r"Connection closed by peer|Connection reset by peer|Broken pipe|Timed out waiting|timeout caused pair closure"
    r"|remote process exited|Connection refused|Socket [Tt]imeout"
)


@dataclass(frozen=True)
class Agreement:
    """One entry a rank in each sequence; equal on all ranks."""

    losses: Sequence[float]  # sums over the rank's samples
    grad_norms: Sequence[float]  # of the mean gradient, the same on all ranks
    wishes: Sequence[float]
    replaced: Sequence[float]  # images that could not be decoded
    micro_batch_s: Sequence[float]  # how long one took in the step before

    @property
    def loss_sum(self) -> float:
        return sum(self.losses)

    @property
    def wish(self) -> int:
        """The strongest one."""
        return int(max(self.wishes))

    @property
    def losses_are_finite(self) -> bool:
        return all(map(math.isfinite, self.losses))

    @property
    def is_finite(self) -> bool:
        """Losses and gradients: then, and only then, a step changes weights."""
        return self.losses_are_finite and all(map(math.isfinite, self.grad_norms))

    def problem(self, step: int, samples: Sequence[Sequence[int]]) -> str:
        """What is not finite, where, and on which samples, which are given by rank: the begin of a sentence."""
        bad = [rank for rank, loss in enumerate(self.losses) if not math.isfinite(loss)]
        if not bad:
            return f"the gradient's norm is {self.grad_norms[0]} at step {step}"
        rank = bad[0]
        indices = ", ".join(map(str, samples[rank][:8])) + (", ..." if len(samples[rank]) > 8 else "")
        return f"the loss is {self.losses[rank]} at step {step} on rank {rank}, which holds samples {indices}"


def agree(
    accelerator: Accelerator, loss: Tensor, grad_norm: Tensor, wish: int, replaced: int, micro_batch_s: float
) -> Agreement:
    """Tell all ranks, and wait for the device: one collective a step.

    Args:
        loss: sum over this rank's samples, a scalar on the device.
        grad_norm: scalar on the device.
    """
    own = torch.tensor([wish, replaced, micro_batch_s], dtype=torch.float32).to(accelerator.device, non_blocking=True)
    rows = accelerator.gather(torch.cat([loss[None], grad_norm[None], own])[None]).tolist()
    return Agreement(*zip(*rows, strict=True))


def peer_lost(error: RuntimeError) -> str | None:
    """What an error of torch.distributed says of another process that has ended; None for any other error."""
    is_distributed = isinstance(error, torch.distributed.DistError) or "gloo" in str(error)
    match = PEER_LOST.search(str(error)) if is_distributed else None
    return match[0] if match else None
