"""The optimizers: RMSProp as TinyNet was trained with, and SGD and AdamW from torch."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

# What timm's RMSpropTF can vary and this class cannot. timm reads these from the parameter groups of a loaded state.
FIXED_OPTIONS = {"centered": False, "decoupled_decay": False, "lr_in_momentum": True, "caution": False}


class RMSpropTF(torch.optim.Optimizer):
    """RMSProp in TensorFlow's form, with torch's operations on lists of tensors.

    For the gradient of each parameter w::

        g = grad + weight_decay * w
        v = alpha * v + (1 - alpha) * g^2                   (v starts at 1)
        m = momentum * m + lr * g / sqrt(v + eps)           (m starts at 0)
        w = w - m

    `torch.optim.RMSprop` is another function: its v starts at 0, its epsilon stands outside the root and its learning
    rate outside the momentum. The state has timm's names (`step`, `square_avg`, `momentum_buffer`), so that a
    state_dict of this class loads into `timm.optim.RMSpropTF` and back. `p.grad` is left as it was.

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
        defaults = {"lr": lr, "alpha": alpha, "momentum": momentum, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, defaults | FIXED_OPTIONS)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Called by load_state_dict, copy and unpickling."""
        super().__setstate__(state)
        for group in self.param_groups:
            for option, value in FIXED_OPTIONS.items():
                if group.setdefault(option, value) != value:
                    raise ValueError(f"this RMSProp has {option}={value}, the state to load has {group[option]}")

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of every parameter that has a gradient.

        Args:
            closure: recomputes the loss and its gradients, as in torch's optimizers.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if params:
                self._update(group, params)
        return loss

    def _update(self, group: dict[str, Any], params: list[Tensor]) -> None:
        """The formula of RMSpropTF, its operations in timm's order, so that they round alike."""
        states = [self._state_of(p) for p in params]
        square_avgs = [state["square_avg"] for state in states]
        buffers = [state["momentum_buffer"] for state in states]
        # Nothing here needs the count, but timm's class cannot resume without one.
        torch._foreach_add_([state["step"] for state in states], torch.tensor(1.0))
        gradients = [p.grad for p in params if p.grad is not None]
        if group["weight_decay"] != 0:
            gradients = list(torch._foreach_add(gradients, params, alpha=group["weight_decay"]))
        torch._foreach_lerp_(square_avgs, torch._foreach_mul(gradients, gradients), 1 - group["alpha"])
        roots = torch._foreach_add(square_avgs, group["eps"])
        torch._foreach_sqrt_(roots)
        torch._foreach_mul_(buffers, group["momentum"])
        torch._foreach_addcdiv_(buffers, gradients, roots, value=group["lr"])
        torch._foreach_sub_(params, buffers)

    def _state_of(self, p: Tensor) -> dict[str, Tensor]:
        state = self.state[p]
        if "step" not in state:
            state["step"] = torch.zeros(())
            state["square_avg"] = torch.ones_like(p)
        if "momentum_buffer" not in state:  # timm's class has none without momentum
            state["momentum_buffer"] = torch.zeros_like(p)
        return state


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


def parameter_groups(model: nn.Module, weight_decay: float, backbone_lr_scale: float = 1.0) -> list[dict[str, Any]]:
    """The groups of `weight_decay_groups`, each divided into backbone and classifier if they learn at different rates.

    The backbone's groups have `lr_scale`, the factor of their learning rate, and a `name`.

    Args:
        model: its classifier is `model.classifier`; everything else is the backbone.
        backbone_lr_scale: above 0; 1 divides nothing.

    Raises:
        ValueError: a value out of its range, or every parameter is frozen.
    """
    if not backbone_lr_scale > 0:
        raise ValueError(f"backbone_lr_scale must be positive, got {backbone_lr_scale}")
    groups = weight_decay_groups(model, weight_decay)
    if backbone_lr_scale == 1:
        return groups
    classifier = {id(p) for p in model.get_submodule("classifier").parameters()}
    backbone = [
        group
        | {"params": [p for p in group["params"] if id(p) not in classifier]}
        | {"name": "backbone", "lr_scale": backbone_lr_scale}
        for group in groups
    ]
    head = [group | {"params": [p for p in group["params"] if id(p) in classifier]} for group in groups]
    return backbone + head


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Each group gets `lr` times its `lr_scale`."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)


def named_learning_rates(optimizer: torch.optim.Optimizer, lr: float) -> dict[str, float]:
    """What a record states beside `lr`, the schedule's: `lr_<name>` of each group that has a `name`."""
    groups = [group for group in optimizer.param_groups if "name" in group]
    return {f"lr_{group['name']}": lr * group.get("lr_scale", 1.0) for group in groups}


def build_optimizer(
    model: nn.Module,
    name: str,
    *,
    lr: float,
    momentum: float,
    eps: float,
    weight_decay: float,
    rho: float = 0.9,
    backbone_lr_scale: float = 1.0,
) -> torch.optim.Optimizer:
    """The optimizer called `name`, over the groups that `parameter_groups` makes.

    Another group of parameters is a change of `parameter_groups` and of nothing else. A group may have its own
    `weight_decay` or other option of the optimizer, `lr_scale`, by which the trainer multiplies the schedule's
    learning rate at every step, and `name`, under which metrics.jsonl and the trackers show that rate as `lr_<name>`.
    Checkpoints hold an optimizer's state by parameter name, so that other groups can resume them.

    Args:
        name: "rmsprop" (RMSpropTF), "sgd" (without Nesterov's momentum; ignores eps and rho) or "adamw" (momentum is
            its first beta, the second is 0.999; ignores rho). AdamW shrinks the weights themselves, the others add the
            decay to the gradient.
        eps: inside RMSProp's root but beside AdamW's: 1e-3 suits the first, 1e-8 the second.

    Raises:
        ValueError: another name, or a value that the optimizer does not take.
    """
    groups = parameter_groups(model, weight_decay, backbone_lr_scale)
    optimizer: torch.optim.Optimizer
    match name:
        case "rmsprop":
            optimizer = RMSpropTF(groups, lr, alpha=rho, momentum=momentum, eps=eps)
        case "sgd":
            optimizer = torch.optim.SGD(groups, lr, momentum=momentum, foreach=True)
        case "adamw":
            optimizer = torch.optim.AdamW(groups, lr, betas=(momentum, 0.999), eps=eps, foreach=True)
        case _:
            raise ValueError(f"optimizer must be rmsprop, sgd or adamw, got {name!r}")
    set_learning_rate(optimizer, lr)
    return optimizer
