"""The optimizers: RMSProp as TinyNet was trained with, and SGD and AdamW from torch."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

# On a CPU one update runs over so many elements at a time that they stay in the cache from its first line to its last.
CPU_CHUNK_ELEMENTS = 2**18

# What timm's RMSpropTF can vary and this class cannot. timm reads these from the parameter groups of a loaded state.
FIXED_OPTIONS = {"centered": False, "decoupled_decay": False, "lr_in_momentum": True, "caution": False}


class _Chunk:
    """Parameters of one group, device and dtype, updated together; their optimizer state is one flat piece of memory.

    A TinyNet has up to 252 parameters, most of them tiny, so that an operation on each costs more than its arithmetic:
    on flat memory only reading the gradients, the weight decay and the last subtraction still touch each parameter.

    Args:
        group: the parameter group, read at each update.
        params: parameters with gradients.
        state: the optimizer's state, whose entries become views of the flat memory and keep their values.
        scratch: (2, N) with N at least the number of elements; its content counts for nothing between updates.
    """

    def __init__(
        self, group: dict[str, Any], params: list[Tensor], state: dict[Tensor, dict[str, Any]], scratch: Tensor
    ) -> None:
        size = sum(p.numel() for p in params)
        self.group = group
        self.params = params
        self.step = torch.zeros(len(params))
        self.square_avg = scratch.new_ones(size)
        self.momentum_buffer = scratch.new_zeros(size)
        self.gradient, self.root = scratch[:, :size]
        self.gradients = _views(self.gradient, params)
        self.updates = _views(self.momentum_buffer, params)
        views = {
            "step": self.step.unbind(),
            "square_avg": _views(self.square_avg, params),
            "momentum_buffer": self.updates,
        }
        for name, tensors in views.items():
            for p, view in zip(params, tensors, strict=True):
                if name in state[p]:
                    view.copy_(torch.as_tensor(state[p][name]))
                state[p][name] = view

    def update(self) -> None:
        """The formula of RMSpropTF, its operations in timm's order, so that they round alike."""
        group = self.group
        self.step.add_(1)  # nothing here needs the count, but timm's class cannot continue without one
        torch._foreach_copy_(self.gradients, [p.grad for p in self.params if p.grad is not None])
        if group["weight_decay"] != 0:
            torch._foreach_add_(self.gradients, self.params, alpha=group["weight_decay"])
        torch.mul(self.gradient, self.gradient, out=self.root)
        self.square_avg.lerp_(self.root, 1 - group["alpha"])
        torch.add(self.square_avg, group["eps"], out=self.root).sqrt_()
        self.momentum_buffer.mul_(group["momentum"]).addcdiv_(self.gradient, self.root, value=group["lr"])
        torch._foreach_sub_(self.params, self.updates)


def _views(flat: Tensor, params: list[Tensor]) -> list[Tensor]:
    pieces = flat.split([p.numel() for p in params])
    return [piece.view(p.shape) for piece, p in zip(pieces, params, strict=True)]


def _split(params: list[Tensor], limit: int) -> list[list[Tensor]]:
    """Consecutive parameters with at most `limit` elements together; a larger one is alone."""
    lists: list[list[Tensor]] = []
    room = 0
    for p in params:
        if not lists or p.numel() > room:
            lists.append([])
            room = limit
        lists[-1].append(p)
        room -= p.numel()
    return lists


class RMSpropTF(torch.optim.Optimizer):
    """RMSProp in TensorFlow's form, in few passes over memory.

    For the gradient of each parameter w::

        g = grad + weight_decay * w
        v = alpha * v + (1 - alpha) * g^2                   (v starts at 1)
        m = momentum * m + lr * g / sqrt(v + eps)           (m starts at 0)
        w = w - m

    `torch.optim.RMSprop` is another function: its v starts at 0, its epsilon stands outside the root and its learning
    rate outside the momentum. The state has timm's names (`step`, `square_avg`, `momentum_buffer`), so that a
    state_dict of this class loads into `timm.optim.RMSpropTF` and back. `p.grad` is left as it was.

    Beside its state it keeps scratch memory: two chunks on a CPU, twice the parameters on other devices. Allocating
    that anew at each step took as long as the arithmetic.

    Args:
        params: parameters, or groups of them; lr, alpha, momentum, eps and weight_decay may differ by group.
        lr: learning rate; `group["lr"]` may be set before any step.
        alpha: decay of the mean square, called rho in the recipe.
        momentum: 0 for none.
        eps: added to the mean square inside the root.
        weight_decay: L2 penalty, added to the gradient.

    Raises:
        ValueError: a value out of its range, or a loaded state of another kind of RMSProp.

    Source: the TinyNet training code of the MindSpore model zoo.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float,
        *,
        alpha: float = 0.9,
        momentum: float = 0.9,
        eps: float = 1e-3,
        weight_decay: float = 0.0,
    ) -> None:
        if not lr >= 0:
            raise ValueError(f"lr must not be negative, got {lr}")
        if not 0 <= alpha < 1:
            raise ValueError(f"alpha (rho) must be at least 0 and below 1, got {alpha}")
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum must be at least 0 and below 1, got {momentum}")
        if not eps > 0:
            raise ValueError(f"eps must be positive, got {eps}")
        if not weight_decay >= 0:
            raise ValueError(f"weight_decay must not be negative, got {weight_decay}")
        self._chunks: list[_Chunk] = []
        self._packed: list[int] = []
        defaults = {"lr": lr, "alpha": alpha, "momentum": momentum, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, defaults | FIXED_OPTIONS)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Called by load_state_dict, copy and unpickling: the new state is not in the chunks' memory."""
        super().__setstate__(state)
        self._chunks, self._packed = [], []
        for group in self.param_groups:
            for option, value in FIXED_OPTIONS.items():
                if group.setdefault(option, value) != value:
                    raise ValueError(f"this RMSProp has {option}={value}, the state to load has {group[option]}")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every parameter that has a gradient.

        Args:
            closure: recomputes the loss and its gradients, as in torch's optimizers.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with_gradient = [id(p) for group in self.param_groups for p in group["params"] if p.grad is not None]
        if with_gradient != self._packed:
            self._chunks = [chunk for group in self.param_groups for chunk in self._pack(group)]
            self._packed = with_gradient
        for chunk in self._chunks:
            chunk.update()
        return loss

    def _pack(self, group: dict[str, Any]) -> list[_Chunk]:
        alike: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
        for p in group["params"]:
            if p.grad is not None:
                alike.setdefault((p.device, p.dtype), []).append(p)
        chunks = []
        for (device, dtype), params in alike.items():
            elements = sum(p.numel() for p in params)
            lists = _split(params, CPU_CHUNK_ELEMENTS if device.type == "cpu" else elements)
            longest = max(sum(p.numel() for p in members) for members in lists)
            scratch = torch.empty(2, longest, device=device, dtype=dtype)
            chunks += [_Chunk(group, members, self.state, scratch) for members in lists]
        return chunks


def weight_decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """The trainable parameters in two groups: 1-D tensors and biases without weight decay, then the others with it.

    The order of the groups is timm's.

    Raises:
        ValueError: weight_decay is negative, or every parameter is frozen.
    """
    if not weight_decay >= 0:
        raise ValueError(f"weight_decay must not be negative, got {weight_decay}")
    without: list[Tensor] = []
    decayed: list[Tensor] = []
    for name, p in model.named_parameters():
        if p.requires_grad:
            (without if p.ndim <= 1 or name.split(".")[-1] == "bias" else decayed).append(p)
    if not without and not decayed:
        raise ValueError("there is nothing to train: no parameter of the model requires a gradient")
    return [{"params": without, "weight_decay": 0.0}, {"params": decayed, "weight_decay": weight_decay}]


def build_optimizer(
    model: nn.Module,
    name: str,
    *,
    lr: float,
    momentum: float,
    eps: float,
    weight_decay: float,
    rho: float = 0.9,
) -> torch.optim.Optimizer:
    """The optimizer called `name`, with weight decay only where `weight_decay_groups` puts it.

    Args:
        name: "rmsprop" (RMSpropTF), "sgd" (without Nesterov's momentum; ignores eps and rho) or "adamw" (momentum is
            its first beta, the second is 0.999; ignores rho). AdamW shrinks the weights themselves, the others add the
            decay to the gradient.
        eps: inside RMSProp's root but beside AdamW's: 1e-3 suits the first, 1e-8 the second.

    Raises:
        ValueError: another name, or a value that the optimizer does not take.
    """
    groups = weight_decay_groups(model, weight_decay)
    match name:
        case "rmsprop":
            return RMSpropTF(groups, lr, alpha=rho, momentum=momentum, eps=eps)
        case "sgd":
            return torch.optim.SGD(groups, lr, momentum=momentum, foreach=True)
        case "adamw":
            return torch.optim.AdamW(groups, lr, betas=(momentum, 0.999), eps=eps, foreach=True)
    raise ValueError(f"optimizer must be rmsprop, sgd or adamw, got {name!r}")
