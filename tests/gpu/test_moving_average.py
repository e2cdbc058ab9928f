"""The EMA on the device. Witness: the closed form in float64 on the CPU."""

import pytest
import torch
from torch import nn

from modeling_tinynet import TinyNetConfig, TinyNetForImageClassification
from tests.gpu.training_run import DEVICE
from training.modeling.ema import ExponentialMovingAverage

pytestmark = pytest.mark.gpu


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.double().cpu() for name, tensor in model.state_dict().items()}


def test_average_on_the_device_equals_the_closed_form():
    """After k updates: d^k w_0 + (1 - d) sum over i of d^(k - i) w_i, for weights and BatchNorm statistics."""
    torch.manual_seed(0)
    model = TinyNetForImageClassification(TinyNetConfig.from_variant("tinynet_e", num_labels=10))
    model.to(DEVICE, memory_format=torch.channels_last)
    decay, updates = 0.9, 20
    average = ExponentialMovingAverage(model, decay)
    expected = {name: decay**updates * tensor for name, tensor in state(model).items()}
    for i in range(1, updates + 1):
        with torch.no_grad():
            for tensor in model.state_dict().values():
                tensor += torch.rand_like(tensor) if tensor.is_floating_point() else 1
        average.update(model)
        for name, tensor in state(model).items():
            expected[name] += (1 - decay) * decay ** (updates - i) * tensor

    result = average.model.state_dict()
    for name, tensor in result.items():
        assert tensor.device.type == DEVICE
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor.double().cpu(), expected[name], rtol=1e-6, atol=1e-6)
        else:
            assert tensor.item() == updates
    assert result["tinynet.conv_stem.weight"].is_contiguous(memory_format=torch.channels_last)
    assert any(name.endswith("running_var") for name in result)
