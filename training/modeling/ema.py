"""The exponential moving average of a model's weights and BatchNorm statistics."""

import copy

import torch
from torch import Tensor, nn

from training.config.ema_decay import checked_decay


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
        self.decay = checked_decay(decay)
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self._averaged, self._copied = _tensors(self.model)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Moves the average towards `model`, which has the structure of the model it started from."""
        averaged, copied = _tensors(model)
        torch._foreach_lerp_(self._averaged, averaged, 1 - self.decay)
        if copied:
            torch._foreach_copy_(self._copied, copied)


def _tensors(model: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """Parameters and floating-point buffers; the other buffers. Each once, in the order of the modules."""
    # `parameters()` and `buffers()` would walk the modules twice, at every update.
    holders = (tensors for module in model.modules() for tensors in (module._parameters, module._buffers))
    tensors = dict.fromkeys(tensor for holder in holders for tensor in holder.values() if tensor is not None)
    averaged = [tensor for tensor in tensors if tensor.is_floating_point()]
    return averaged, [tensor for tensor in tensors if not tensor.is_floating_point()]
