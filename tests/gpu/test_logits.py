"""The network on the device in each of its forms. Witness: itself in float64 on the CPU."""

import copy

import pytest
import torch

from modeling_tinynet import TinyNetConfig, TinyNetForImageClassification
from tests.gpu.training_run import DEVICE

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def network() -> TinyNetForImageClassification:
    """With the BatchNorm statistics of one batch, so that activations have the scale of a trained network's."""
    torch.manual_seed(0)
    config = TinyNetConfig.from_variant("tinynet_e", num_labels=10, image_size=64, batch_norm_momentum=1.0)
    network = TinyNetForImageClassification(config).requires_grad_(False)
    network.train()(torch.randn(16, 3, 64, 64))
    return network.eval()


def logits(
    network: TinyNetForImageClassification,
    images: torch.Tensor,
    device: str,
    form: torch.memory_format,
    dtype: torch.dtype,
    compile: bool,
) -> torch.Tensor:
    network = copy.deepcopy(network).to(device, memory_format=form)
    if compile:
        network.compile()
    with torch.autocast(device, dtype=dtype, enabled=dtype != torch.float32):
        return network(images.to(device, memory_format=form)).logits.double().cpu()


@pytest.mark.parametrize(
    ("form", "dtype", "compile"),
    [
        (torch.contiguous_format, torch.float32, False),
        (torch.channels_last, torch.float32, False),
        (torch.channels_last, torch.bfloat16, False),
        (torch.channels_last, torch.float16, False),
        pytest.param(torch.channels_last, torch.float32, True, marks=pytest.mark.slow),
    ],
    ids=["contiguous", "channels-last", "bf16", "fp16", "compiled"],
)
def test_logits_on_the_device_are_as_exact_as_the_cpus(network, form, dtype, compile, monkeypatch):
    """Both round in the same format, in another order of sums: 4 allows for the order."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    images = torch.randn(16, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    exact = copy.deepcopy(network).double()(images.double()).logits

    def error(result: torch.Tensor) -> float:
        return ((result - exact).norm() / exact.norm()).item()

    on_cpu = error(logits(network, images, "cpu", torch.contiguous_format, dtype, compile=False))
    assert error(logits(network, images, DEVICE, form, dtype, compile)) <= 4 * on_cpu
