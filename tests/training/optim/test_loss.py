"""Witnesses: the formulas in float64, and torch's own label smoothing."""

import pytest
import torch
from torch.nn import functional as F

from training.optim.loss import smoothed_targets, soft_cross_entropy

REDUCTIONS = {"sum": torch.sum, "mean": torch.mean, "none": lambda losses: losses}


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = 4 * torch.randn(16, 10, generator=generator)
    return logits, torch.randint(10, (16,), generator=generator)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
def test_targets_equal_mindspores_formula(batch, smoothing):
    _, labels = batch
    targets = smoothed_targets(labels, 10, smoothing)
    on, off = 1 - smoothing, smoothing / 9
    expected = torch.tensor([[on if k == label else off for k in range(10)] for label in labels.tolist()])
    assert targets.dtype == torch.float32
    assert torch.equal(targets, expected)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_loss_equals_its_formula(batch, reduction):
    logits, _ = batch
    targets = torch.rand(16, 10, generator=torch.Generator().manual_seed(1)).softmax(dim=1)
    log_probabilities = (logits.double().exp() / logits.double().exp().sum(dim=1, keepdim=True)).log()
    expected = REDUCTIONS[reduction](-(targets.double() * log_probabilities).sum(dim=1))
    torch.testing.assert_close(soft_cross_entropy(logits, targets, reduction).double(), expected, rtol=1e-6, atol=1e-6)


def test_loss_is_summed_by_default(batch):
    logits, labels = batch
    targets = smoothed_targets(labels, 10, 0.1)
    assert torch.equal(soft_cross_entropy(logits, targets), soft_cross_entropy(logits, targets, "sum"))


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("num_classes", [2, 10, 1000])
def test_smoothed_loss_and_gradient_equal_torchs_for_the_equivalent_smoothing(smoothing, num_classes):
    """torch's K classes share s, MindSpore's K - 1 do; smoothing 0 is plain cross-entropy."""
    generator = torch.Generator().manual_seed(0)
    logits = (4 * torch.randn(16, num_classes, generator=generator)).requires_grad_()
    labels = torch.randint(num_classes, (16,), generator=generator)
    ours = soft_cross_entropy(logits, smoothed_targets(labels, num_classes, smoothing), "mean")
    torchs = F.cross_entropy(logits, labels, label_smoothing=smoothing * num_classes / (num_classes - 1))
    (our_gradient,) = torch.autograd.grad(ours, logits)
    (torchs_gradient,) = torch.autograd.grad(torchs, logits)
    torch.testing.assert_close(ours, torchs, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(our_gradient, torchs_gradient, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_loss_is_computed_in_float32_under_autocast(batch, dtype):
    logits, labels = batch
    half = logits.to(dtype)
    targets = smoothed_targets(labels, 10, 0.1)
    with torch.autocast("cpu", dtype=dtype):
        loss = soft_cross_entropy(half, targets)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, soft_cross_entropy(half.float(), targets))


def test_labels_may_be_of_any_integer_type(batch):
    _, labels = batch
    for dtype in (torch.uint8, torch.int32):
        assert torch.equal(smoothed_targets(labels.to(dtype), 10, 0.1), smoothed_targets(labels, 10, 0.1))


@pytest.mark.parametrize("smoothing", [-0.1, 1.0, float("nan")])
def test_smoothing_out_of_range_is_an_error(smoothing):
    with pytest.raises(ValueError, match=rf"^smoothing must be at least 0 and below 1, got {smoothing}$"):
        smoothed_targets(torch.tensor([0]), 10, smoothing)


def test_a_single_class_is_an_error():
    with pytest.raises(ValueError, match=r"^num_classes must be at least 2, got 1$"):
        smoothed_targets(torch.tensor([0]), 1, 0.1)
