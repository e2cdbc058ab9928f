"""The exponential moving average of a model's weights and BatchNorm statistics."""

import copy
import math

import torch
from torch import Tensor, nn


class ExponentialMovingAverage:
    """A copy of the model that follows it: `average = decay * average + (1 - decay) * model` at each update.

    The average starts from the weights that the model has now. It takes in parameters and floating-point buffers, so
    BatchNorm's statistics too; integer buffers are copied.

    Args:
        model: the model itself, not its DistributedDataParallel or torch.compile wrapper, already on its device.
        decay: at least 0 and below 1.

    Attributes:
        model: the average, in evaluation mode and without gradients. Load into it with `load_state_dict`, which writes
            into its tensors; do not move it to another device.

    Raises:
        ValueError: decay out of range.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = _checked(decay)
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self._averaged, self._copied = _tensors(self.model)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Moves the average towards `model`, which has the structure of the model it started from."""
        averaged, copied = _tensors(model)
        torch._foreach_lerp_(self._averaged, averaged, 1 - self.decay)
        if copied:
            torch._foreach_copy_(self._copied, copied)


def half_life_steps(decay: float) -> float:
    """Updates after which the average still holds half of what it held, 6,931 for 0.9999.

    Raises:
        ValueError: decay out of range.
    """
    return math.log(0.5) / math.log(decay) if _checked(decay) > 0 else 0.0


def rescaled_decay(decay: float, batch: int, reference_batch: int) -> float:
    """The decay that, at `batch` samples a step, forgets as many samples as `decay` does at `reference_batch`.

    Raises:
        ValueError: decay out of range, or a batch that is not positive.
    """
    if batch <= 0 or reference_batch <= 0:
        raise ValueError(f"batches must be positive, got batch {batch} and reference_batch {reference_batch}")
    return _checked(decay) ** (batch / reference_batch)


def _checked(decay: float) -> float:
    if not 0 <= decay < 1:
        raise ValueError(f"the decay of the moving average must be at least 0 and below 1, got {decay}")
    return decay


def _tensors(model: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """Parameters and floating-point buffers; the other buffers. Each once, in the order of the modules."""
    # `parameters()` and `buffers()` would walk the modules twice, at every update.
    holders = (tensors for module in model.modules() for tensors in (module._parameters, module._buffers))
    tensors = dict.fromkeys(tensor for holder in holders for tensor in holder.values() if tensor is not None)
    averaged = [tensor for tensor in tensors if tensor.is_floating_point()]
    return averaged, [tensor for tensor in tensors if not tensor.is_floating_point()]
