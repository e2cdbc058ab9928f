"""The optimizer step: what it computes, against the formula written out, and that it alone is measured elsewhere."""

import math
from collections.abc import Iterator

import pytest
import torch
from accelerate import Accelerator
from torch import nn
from torch.nn import functional as F
from transformers.modeling_outputs import ImageClassifierOutput

from training.engine.step import Batch, OptimizerStep
from training.modeling.ema import ExponentialMovingAverage
from training.optim.loss import smoothed_targets
from training.transforms.device_transforms import DeviceTransform

CLASSES, SIDE = 3, 4


class Linear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(3 * SIDE * SIDE, 5)
        self.head = nn.Linear(5, CLASSES)

    def forward(self, pixel_values: torch.Tensor) -> ImageClassifierOutput:
        return ImageClassifierOutput(logits=self.head(self.body(pixel_values.flatten(1))))


def batches(sizes: list[int]) -> list[Batch]:
    generator = torch.Generator().manual_seed(1)
    numbers = iter(range(sum(sizes)))
    return [
        {
            "pixel_values": torch.randint(256, (size, 3, SIDE, SIDE), dtype=torch.uint8, generator=generator),
            "labels": torch.randint(CLASSES, (size,), generator=generator),
            "index": torch.tensor([next(numbers) for _ in range(size)]),
            "replaced": torch.tensor([number == 0 for number in range(size)]),
        }
        for size in sizes
    ]


def build(network: nn.Module, groups: list[dict] | None = None, **changes) -> OptimizerStep:
    accelerator = Accelerator(cpu=True)
    optimizer = torch.optim.SGD(groups or network.parameters(), lr=123.0)
    model, optimizer = accelerator.prepare(network, optimizer)
    options = {"num_classes": CLASSES, "label_smoothing": 0.1, "max_grad_norm": None, "seed": 0} | changes
    transform = DeviceTransform((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    return OptimizerStep(
        accelerator, model, network, optimizer, ExponentialMovingAverage(network, 0.9), transform, **options
    )


@pytest.fixture
def network() -> Linear:
    torch.manual_seed(0)
    return Linear()


def taken(step: OptimizerStep, micro_batches: list[Batch], **keywords):
    count, num_samples = len(micro_batches), sum(len(batch["index"]) for batch in micro_batches)
    return step.train_step(
        iter(micro_batches), epoch=0, step=0, micro_batches=count, num_samples=num_samples, **keywords
    )


def weights(network: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in network.named_parameters()}


def test_gradients_are_the_mean_over_the_global_batch_however_it_is_cut(network):
    micro_batches = batches([4, 4, 2])
    pixels = torch.cat([batch["pixel_values"] for batch in micro_batches]).float() / 255
    targets = smoothed_targets(torch.cat([batch["labels"] for batch in micro_batches]), CLASSES, 0.1)
    losses = F.cross_entropy(network((pixels - 0.5) / 0.25).logits, targets, reduction="none")
    expected = torch.autograd.grad(losses.mean(), list(network.parameters()))

    before = weights(network)
    gradients = taken(build(network), micro_batches)
    for parameter, gradient in zip(network.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)
    torch.testing.assert_close(gradients.loss, losses.sum().detach())
    torch.testing.assert_close(gradients.norm, torch.cat([gradient.flatten() for gradient in expected]).norm())
    assert (gradients.samples, gradients.replaced, gradients.num_samples) == (list(range(10)), 3, 10)
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(network).items())


def test_an_update_follows_the_gradients_and_drops_them(network):
    step = build(network)
    taken(step, batches([4]))
    before, gradient = weights(network), {name: p.grad.clone() for name, p in network.named_parameters()}
    step.apply_update(0.5)
    for name, weight in weights(network).items():
        torch.testing.assert_close(weight, before[name] - 0.5 * gradient[name])
        averaged = dict(step.ema.model.named_parameters())[name]
        torch.testing.assert_close(averaged, 0.9 * before[name] + 0.1 * weight)
    assert all(parameter.grad is None for parameter in network.parameters())


def test_a_group_keeps_its_own_scale_of_the_learning_rate(network):
    groups = [
        {"params": list(network.body.parameters()), "lr_scale": 0.1},
        {"params": list(network.head.parameters())},
    ]
    step = build(network, groups)
    for lr in (0.5, 0.25):  # it scales each step's, and does not add up
        taken(step, batches([4]))
        before, gradient = weights(network), {name: p.grad.clone() for name, p in network.named_parameters()}
        step.apply_update(lr)
        for name, weight in weights(network).items():
            scale = 0.1 if name.startswith("body") else 1.0
            torch.testing.assert_close(weight, before[name] - scale * lr * gradient[name])


def test_gradients_are_clipped_after_their_norm_is_known(network):
    norm = taken(build(network, max_grad_norm=0.01), batches([4])).norm
    clipped = torch.cat([parameter.grad.flatten() for parameter in network.parameters()]).norm()
    assert norm > 0.02 and math.isclose(clipped, 0.01, rel_tol=1e-3)


def test_a_step_that_is_left_out_changes_nothing(network):
    step = build(network)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1)  # the EMA is behind, so that an update would move it
    before, average = weights(network), weights(step.ema.model)
    taken(step, batches([4]))
    step.leave_out()
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(network).items())
    assert all(torch.equal(tensor, average[name]) for name, tensor in weights(step.ema.model).items())
    assert all(parameter.grad is None for parameter in network.parameters())


def test_a_step_that_is_broken_off_takes_no_more_batches_and_has_no_gradients(network):
    step, asked = build(network), []
    micro_batches = iter(batches([2, 2, 2]))

    def should_stop(done: int) -> bool:
        asked.append(done)
        return done == 2

    answer = step.train_step(micro_batches, epoch=0, step=0, micro_batches=3, num_samples=6, should_stop=should_stop)
    assert answer is None and asked == [1, 2] and len(list(micro_batches)) == 1
    assert all(parameter.grad is None for parameter in network.parameters())


def test_dropout_is_a_function_of_seed_and_step(network):
    network.body.register_forward_hook(lambda module, inputs, output: F.dropout(output, 0.5))

    def norm(*, seed: int, step: int) -> float:
        torch.manual_seed(12345)  # what came before does not matter
        built = build(network, seed=seed)
        micro_batches: Iterator[Batch] = iter(batches([4]))
        result = built.train_step(micro_batches, epoch=0, step=step, micro_batches=1, num_samples=4).norm.item()
        built.leave_out()
        return result

    assert norm(seed=0, step=7) == norm(seed=0, step=7)
    assert len({norm(seed=0, step=7), norm(seed=0, step=8), norm(seed=1, step=7)}) == 3
