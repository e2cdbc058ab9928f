"""Witnesses: timm's RMSpropTF, the formula in Python floats, torch's optimizers."""

import copy
import math

import pytest
import timm
import torch
from timm.optim import RMSpropTF as TimmRMSpropTF
from timm.optim import param_groups_weight_decay
from torch import nn
from torch.nn import functional as F

from training.optim.optimizer import (
    RMSpropTF,
    build_optimizer,
    named_learning_rates,
    parameter_groups,
    set_learning_rate,
    weight_decay_groups,
)

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
RECIPE = {"lr": 0.048, "momentum": 0.9, "eps": 1e-3, "weight_decay": 1e-5}


def small_net(dtype: torch.dtype = torch.float32, device: str = "cpu") -> nn.Module:
    """TinyNet's kinds of layers: dense, depthwise and pointwise convolutions, BatchNorm, biases, a classifier."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.SiLU(),
        nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False),
        nn.BatchNorm2d(8),
        nn.SiLU(),
        nn.Conv2d(8, 16, 1),
        nn.BatchNorm2d(16),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 10),
    )
    return net.to(device, dtype, memory_format=torch.channels_last)


def ours(net: nn.Module, weight_decay: float = 1e-5, **options: float) -> RMSpropTF:
    options = {"lr": 0.048, "momentum": 0.9, "eps": 1e-3, "alpha": 0.9} | options
    return RMSpropTF(weight_decay_groups(net, weight_decay), **options)


def timms(net: nn.Module, weight_decay: float = 1e-5, **options: float) -> TimmRMSpropTF:
    options = {"lr": 0.048, "momentum": 0.9, "eps": 1e-3, "alpha": 0.9, "lr_in_momentum": True} | options
    return TimmRMSpropTF(param_groups_weight_decay(net, weight_decay), **options)


def backward(net: nn.Module, step: int) -> None:
    p = next(net.parameters())
    generator = torch.Generator().manual_seed(step)
    images = torch.randn(8, 3, 16, 16, generator=generator).to(p)
    labels = torch.randint(10, (8,), generator=generator).to(p.device)
    net.zero_grad()
    F.cross_entropy(net(images), labels).backward()


def train(net: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        set_lr(optimizer, step)
        backward(net, step)
        optimizer.step()


def set_lr(optimizer: torch.optim.Optimizer, step: int) -> None:
    """Warm-up for 20 steps, then a decay every 5."""
    for group in optimizer.param_groups:
        group["lr"] = 0.048 * (step + 1) / 20 if step < 20 else 0.048 * 0.97 ** (step // 5)


def assert_same_weights(net: nn.Module, other: nn.Module, tolerance: float = 0.0) -> None:
    torch.testing.assert_close(net.state_dict(), other.state_dict(), rtol=tolerance, atol=tolerance)


def state_by_name(net: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    return {f"{name}.{key}": v for name, p in net.named_parameters() for key, v in optimizer.state[p].items()}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("momentum", [0.9, 0.0])
def test_training_equals_timms_for_100_steps(device, momentum):
    """In float64, where a difference of rounding has no time to grow in the gradients."""
    net = small_net(torch.float64, device)
    timms_net = copy.deepcopy(net)
    train(net, ours(net, 1e-2, momentum=momentum), range(100))
    train(timms_net, timms(timms_net, 1e-2, momentum=momentum), range(100))
    assert_same_weights(net, timms_net, 1e-10)


@pytest.mark.parametrize("device", DEVICES)
def test_float32_updates_equal_timms_for_100_steps_of_the_same_gradients(device):
    net = small_net(device=device)
    timms_net = copy.deepcopy(net)
    optimizer, timms_optimizer = ours(net), timms(timms_net)
    for step in range(100):
        backward(timms_net, step)
        for p, timms_p in zip(net.parameters(), timms_net.parameters(), strict=True):
            p.grad = timms_p.grad.clone()
        for each in (optimizer, timms_optimizer):
            set_lr(each, step)
            each.step()
    for p, timms_p in zip(net.parameters(), timms_net.parameters(), strict=True):
        torch.testing.assert_close(p, timms_p, rtol=1e-6, atol=1e-6)


def test_update_equals_the_published_formula():
    lr, rho, momentum, eps, weight_decay = 0.048, 0.9, 0.8, 1e-3, 0.1
    p = torch.tensor([[0.5]], dtype=torch.float64, requires_grad=True)
    optimizer = RMSpropTF([p], lr, alpha=rho, momentum=momentum, eps=eps, weight_decay=weight_decay)
    w, v, m = 0.5, 1.0, 0.0
    for step in range(10):
        gradient = math.cos(step)
        p.grad = torch.full_like(p, gradient)
        optimizer.step()
        g = gradient + weight_decay * w
        v = rho * v + (1 - rho) * g**2
        m = momentum * m + lr * g / math.sqrt(v + eps)
        w = w - m
        assert p.item() == pytest.approx(w, rel=1e-14)
        assert p.grad.item() == gradient


def test_state_of_ours_goes_on_in_timms():
    net = small_net(torch.float64)
    optimizer = ours(net)
    train(net, optimizer, range(10))
    timms_net = copy.deepcopy(net)
    timms_optimizer = timms(timms_net, weight_decay=0.5, lr=1.0, eps=1.0, alpha=0.5, momentum=0.5)
    timms_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(net, optimizer, range(10, 30))
    train(timms_net, timms_optimizer, range(10, 30))
    assert_same_weights(net, timms_net, 1e-10)


def test_state_of_timms_goes_on_in_ours():
    timms_net = small_net(torch.float64)
    timms_optimizer = timms(timms_net)
    train(timms_net, timms_optimizer, range(10))
    net = copy.deepcopy(timms_net)
    optimizer = ours(net, weight_decay=0.5, lr=1.0, eps=1.0, alpha=0.5, momentum=0.5)
    train(net, optimizer, range(3))  # a state to be replaced
    net.load_state_dict(timms_net.state_dict())
    optimizer.load_state_dict(copy.deepcopy(timms_optimizer.state_dict()))
    train(timms_net, timms_optimizer, range(10, 30))
    train(net, optimizer, range(10, 30))
    assert_same_weights(net, timms_net, 1e-10)
    torch.testing.assert_close(state_by_name(net, optimizer), state_by_name(timms_net, timms_optimizer))


@pytest.mark.parametrize("option", ["centered", "decoupled_decay"])
def test_state_of_another_kind_of_rmsprop_is_refused(option):
    net = small_net()
    timms_optimizer = timms(net, **{option: True})
    with pytest.raises(ValueError, match=f"this RMSProp has {option}=False, the state to load has True"):
        ours(net).load_state_dict(timms_optimizer.state_dict())


def test_resume_is_bit_identical():
    net = small_net()
    optimizer = ours(net)
    train(net, optimizer, range(5))
    resumed_net = copy.deepcopy(net)
    resumed = ours(resumed_net)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(net, optimizer, range(5, 10))
    train(resumed_net, resumed, range(5, 10))
    assert_same_weights(net, resumed_net)
    assert state_by_name(net, optimizer).keys() == state_by_name(resumed_net, resumed).keys()
    torch.testing.assert_close(state_by_name(net, optimizer), state_by_name(resumed_net, resumed), rtol=0, atol=0)


def test_parameters_without_gradient_are_left_alone_and_may_get_one_later():
    """Layers that are frozen for a while: they take part from their first gradient on, as in timm's."""
    net = small_net(torch.float64)
    timms_net = copy.deepcopy(net)
    optimizer, timms_optimizer = ours(net), timms(timms_net)
    initial = copy.deepcopy(net[6].weight)
    for frozen in (True, False, True):
        for each in (net, timms_net):
            each[6].requires_grad_(not frozen)
        train(net, optimizer, range(3))
        train(timms_net, timms_optimizer, range(3))
        assert torch.equal(net[6].weight, initial) == (frozen and optimizer.state[net[6].weight] == {})
    assert_same_weights(net, timms_net, 1e-10)


def test_one_group_may_hold_several_dtypes():
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    params = [start.to(dtype).clone().requires_grad_() for dtype in (torch.float32, torch.float64, torch.float32)]
    optimizer = RMSpropTF(params, 0.01)
    for _ in range(3):
        for p in params:
            p.grad = p.detach().clone()
        optimizer.step()
    assert torch.equal(params[0], params[2])
    torch.testing.assert_close(params[0].double(), params[1], rtol=1e-6, atol=1e-6)


def test_groups_added_later_take_part():
    net = small_net(torch.float64)
    timms_net = copy.deepcopy(net)
    optimizer, timms_optimizer = (
        RMSpropTF(net[0].parameters(), 0.01),
        TimmRMSpropTF(timms_net[0].parameters(), 0.01, alpha=0.9, eps=1e-3, momentum=0.9),
    )
    for each_net, each in ((net, optimizer), (timms_net, timms_optimizer)):
        train(each_net, each, range(3))
        each.add_param_group({"params": list(each_net[6].parameters()), "weight_decay": 0.1})
        train(each_net, each, range(3, 6))
    assert_same_weights(net, timms_net, 1e-10)


def test_closure_is_called_with_gradients_and_its_loss_returned():
    p = torch.tensor([2.0], requires_grad=True)

    def closure():
        loss = (p**2).sum()
        loss.backward()
        return loss

    assert RMSpropTF([p], 0.1).step(closure).item() == 4
    assert p.item() < 2


@pytest.mark.parametrize(
    "option, value",
    [
        ("lr", -1e-3),
        ("lr", math.nan),
        ("alpha", 1.0),
        ("alpha", -0.1),
        ("momentum", 1.0),
        ("momentum", -0.1),
        ("eps", 0.0),
        ("weight_decay", -1e-5),
    ],
)
def test_option_out_of_range_is_an_error_that_names_it(option, value):
    with pytest.raises(ValueError, match=rf"^{option} .*, got {value}$"):
        RMSpropTF([torch.zeros(1, requires_grad=True)], **{"lr": 0.1, option: value})


@pytest.mark.parametrize("variant", ["tinynet_a", "tinynet_e"])
def test_weight_decay_groups_are_timms(variant):
    net = timm.create_model(variant, num_classes=10)
    got, expected = weight_decay_groups(net, 1e-5), param_groups_weight_decay(net, 1e-5)
    for group, timms_group in zip(got, expected, strict=True):
        assert group["weight_decay"] == timms_group["weight_decay"]
        assert [id(p) for p in group["params"]] == [id(p) for p in timms_group["params"]]


def test_frozen_parameters_are_in_no_group():
    net = small_net()
    net[:10].requires_grad_(False)
    without, decayed = weight_decay_groups(net, 0.1)
    assert [id(p) for p in without["params"]] == [id(net[10].bias)]
    assert [id(p) for p in decayed["params"]] == [id(net[10].weight)]


def test_two_dimensional_biases_are_not_decayed():
    net = nn.Module()
    net.bias = nn.Parameter(torch.zeros(2, 2))
    assert weight_decay_groups(net, 0.1)[0]["params"] == [net.bias]


def test_model_without_trainable_parameters_is_an_error():
    with pytest.raises(ValueError, match="nothing to train"):
        weight_decay_groups(small_net().requires_grad_(False), 0.1)


def test_negative_weight_decay_is_an_error():
    with pytest.raises(ValueError, match=r"^weight_decay must not be negative, got -0\.1$"):
        weight_decay_groups(small_net(), -0.1)


@pytest.mark.parametrize(
    "name, witness",
    [
        ("rmsprop", lambda groups: TimmRMSpropTF(groups, 0.048, alpha=0.8, momentum=0.9, eps=1e-3)),
        ("sgd", lambda groups: torch.optim.SGD(groups, 0.048, momentum=0.9, nesterov=False, foreach=False)),
        ("adamw", lambda groups: torch.optim.AdamW(groups, 0.048, betas=(0.9, 0.999), eps=1e-3, foreach=False)),
    ],
)
def test_built_optimizer_trains_as_its_witness(name, witness):
    net = small_net(torch.float64)
    witness_net = copy.deepcopy(net)
    train(net, build_optimizer(net, name, **RECIPE | {"weight_decay": 0.1}, rho=0.8), range(10))
    train(witness_net, witness(param_groups_weight_decay(witness_net, 0.1)), range(10))
    assert_same_weights(net, witness_net, 1e-10)


def test_unknown_optimizer_is_an_error_that_names_the_choices():
    with pytest.raises(ValueError, match="must be rmsprop, sgd or adamw, got 'adam'"):
        build_optimizer(small_net(), "adam", **RECIPE)


# Groups with their own learning rate


class WithClassifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.classifier = small_net(torch.float64)[:10], small_net(torch.float64)[10]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.backbone(images))


def test_groups_are_those_of_weight_decay_unless_the_backbone_has_its_own_rate():
    net = WithClassifier()
    assert parameter_groups(net, 0.1) == weight_decay_groups(net, 0.1)
    assert all("lr_scale" not in group for group in parameter_groups(net, 0.1))


def test_every_parameter_is_in_one_group_with_its_decay_and_scale():
    net = WithClassifier()
    groups = parameter_groups(net, 0.1, 0.25)
    found = {id(p): (group["weight_decay"], group.get("lr_scale", 1)) for group in groups for p in group["params"]}
    expected = {
        id(p): (0.1 if p.ndim > 1 else 0.0, 1 if name.startswith("classifier.") else 0.25)
        for name, p in net.named_parameters()
    }
    assert found == expected
    assert sum(len(group["params"]) for group in groups) == len(expected)


WITNESSES = {
    "rmsprop": lambda groups: TimmRMSpropTF(groups, 1.0, alpha=0.9, momentum=0.9, eps=1e-3),
    "sgd": lambda groups: torch.optim.SGD(groups, 1.0, momentum=0.9, foreach=False),
    "adamw": lambda groups: torch.optim.AdamW(groups, 1.0, betas=(0.9, 0.999), eps=1e-3, foreach=False),
}


@pytest.mark.parametrize("name", WITNESSES)
def test_backbone_and_classifier_train_as_two_groups_of_a_plain_optimizer(name):
    net = WithClassifier()
    witness_net = copy.deepcopy(net)
    optimizer = build_optimizer(net, name, **RECIPE | {"weight_decay": 0.0}, backbone_lr_scale=0.1)
    parts = (witness_net.backbone, witness_net.classifier)
    witness = WITNESSES[name]([{"params": list(part.parameters()), "weight_decay": 0.0} for part in parts])
    for step in range(10):
        lr = 0.048 / (step + 1)
        if step:  # before, it has that of its construction
            set_learning_rate(optimizer, lr)
        for group, scale in zip(witness.param_groups, (0.1, 1), strict=True):
            group["lr"] = lr * scale
        for each_net, each in ((net, optimizer), (witness_net, witness)):
            backward(each_net, step)
            each.step()
    assert_same_weights(net, witness_net, 1e-10)
    assert named_learning_rates(optimizer, lr) == {"lr_backbone": 0.1 * lr}


def test_an_optimizer_without_named_groups_names_no_rate():
    assert named_learning_rates(build_optimizer(small_net(), "sgd", **RECIPE), 0.1) == {}


@pytest.mark.parametrize("scale", [0.0, -0.1, math.nan])
def test_a_backbone_that_does_not_learn_is_an_error(scale):
    with pytest.raises(ValueError, match=rf"^backbone_lr_scale must be positive, got {scale}$"):
        build_optimizer(WithClassifier(), "sgd", **RECIPE, backbone_lr_scale=scale)
