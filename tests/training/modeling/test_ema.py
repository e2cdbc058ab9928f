"""Witnesses: the closed form in float64, and timm's ModelEmaV3."""

import copy
import math

import pytest
import timm
import torch
from timm.utils import ModelEmaV3
from torch import nn

from training.config.ema_decay import half_life_steps, rescaled_decay
from training.modeling.ema import ExponentialMovingAverage

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def tinynet(device: str = "cpu") -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model("tinynet_e", num_classes=10).to(device, memory_format=torch.channels_last)


def change(model: nn.Module, seed: int) -> None:
    """New values for every parameter and statistic, as a training step has them: in place."""
    generator = torch.Generator().manual_seed(seed)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor += torch.rand(tensor.shape, generator=generator).to(tensor.device)
        else:
            tensor += 1


@pytest.mark.parametrize("decay", [0.0, 0.9, 0.9999])
def test_average_equals_the_closed_form(decay):
    """After k updates: d^k w_0 + (1 - d) sum over i of d^(k - i) w_i, for weights and BatchNorm statistics."""
    model = tinynet()
    average = ExponentialMovingAverage(model, decay)
    history = [{key: tensor.double() for key, tensor in model.state_dict().items()}]
    for seed in range(20):
        change(model, seed)
        average.update(model)
        history.append({key: tensor.double() for key, tensor in model.state_dict().items()})

    k = len(history) - 1
    factors = [decay**k] + [(1 - decay) * decay ** (k - i) for i in range(1, k + 1)]
    assert math.isclose(sum(factors), 1)
    for key, tensor in average.model.state_dict().items():
        if tensor.is_floating_point():
            expected = sum(factor * state[key] for factor, state in zip(factors, history, strict=True))
            torch.testing.assert_close(tensor.double(), expected, rtol=1e-6, atol=1e-6)
        else:
            assert torch.equal(tensor, model.state_dict()[key])
    assert any("running_var" in key for key in history[0])


@pytest.mark.parametrize("device", DEVICES)
def test_average_equals_timms(device):
    model = tinynet(device)
    ours, timms = ExponentialMovingAverage(model, 0.99), ModelEmaV3(model, decay=0.99, foreach=True)
    for seed in range(10):
        change(model, seed)
        ours.update(model)
        timms.update(model)
    for (key, tensor), expected in zip(
        ours.model.state_dict().items(), timms.module.state_dict().values(), strict=True
    ):
        assert torch.equal(tensor, expected), key


def test_average_starts_from_the_initial_weights_and_is_a_copy():
    model = tinynet()
    initial = copy.deepcopy(model.state_dict())
    average = ExponentialMovingAverage(model, 0.9999)
    change(model, 0)
    torch.testing.assert_close(average.model.state_dict(), initial, rtol=0, atol=0)


def test_average_is_for_evaluation_and_the_model_stays_in_training():
    model = tinynet().train()
    average = ExponentialMovingAverage(model, 0.9999)
    assert not any(module.training for module in average.model.modules())
    assert not any(p.requires_grad for p in average.model.parameters())
    assert all(module.training for module in model.modules())
    assert all(p.requires_grad for p in model.parameters())


def test_memory_format_is_kept():
    model = tinynet()
    average = ExponentialMovingAverage(model, 0.9)
    average.update(model)
    strides = [p.stride() for p in average.model.parameters()]
    assert strides == [p.stride() for p in model.parameters()]
    assert average.model.conv_stem.weight.is_contiguous(memory_format=torch.channels_last)


def test_loaded_average_goes_on_bit_by_bit():
    model = tinynet()
    average = ExponentialMovingAverage(model, 0.9)
    change(model, 0)
    average.update(model)
    resumed = ExponentialMovingAverage(tinynet(), 0.9)
    resumed.model.load_state_dict(average.model.state_dict())
    change(model, 1)
    average.update(model)
    resumed.update(model)
    torch.testing.assert_close(resumed.model.state_dict(), average.model.state_dict(), rtol=0, atol=0)


def test_shared_weights_are_averaged_once():
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    model[1].weight = model[0].weight
    nn.init.zeros_(model[0].weight)
    average = ExponentialMovingAverage(model, 0.75)
    nn.init.ones_(model[0].weight)
    average.update(model)
    assert torch.equal(average.model[1].weight, torch.full((2, 2), 0.25))


def test_half_life_of_the_published_decay_is_6931_updates():
    assert round(half_life_steps(0.9999)) == 6931
    assert round(half_life_steps(0.9999) / 1251, 2) == 5.54


@pytest.mark.parametrize("decay", [0.5, 0.9, 0.9999])
def test_half_is_left_after_the_half_life(decay):
    assert decay ** half_life_steps(decay) == pytest.approx(0.5, rel=1e-12)


def test_no_memory_has_no_half_life():
    assert half_life_steps(0.0) == 0


def test_rescaled_decay_forgets_the_same_number_of_samples():
    decay = rescaled_decay(0.9999, 256, 1024)
    assert decay**4 == pytest.approx(0.9999, rel=1e-12)
    assert half_life_steps(decay) * 256 == pytest.approx(half_life_steps(0.9999) * 1024, rel=1e-9)
    assert rescaled_decay(0.9999, 1024, 1024) == 0.9999


@pytest.mark.parametrize("decay", [-0.1, 1.0, 1.5, math.nan])
def test_decay_out_of_range_is_an_error(decay):
    message = rf"at least 0 and below 1, got {decay}$"
    with pytest.raises(ValueError, match=message):
        ExponentialMovingAverage(nn.Linear(1, 1), decay)
    with pytest.raises(ValueError, match=message):
        half_life_steps(decay)
    with pytest.raises(ValueError, match=message):
        rescaled_decay(decay, 1, 1)


@pytest.mark.parametrize("batch, reference_batch", [(0, 1024), (256, 0), (-1, 1024)])
def test_batch_that_is_not_positive_is_an_error(batch, reference_batch):
    with pytest.raises(ValueError, match=rf"got batch {batch} and reference_batch {reference_batch}$"):
        rescaled_decay(0.9999, batch, reference_batch)
