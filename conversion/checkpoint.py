"""What convert.py's readers return, whatever wrote the file."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from training.errors import UserError

COUNTER = "num_batches_tracked"  # BatchNorm's, which PyTorch has had since 0.4.1 and MindSpore has not
FLOAT_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


class ConversionError(UserError, ValueError):
    """The checkpoint cannot be converted. The message is one sentence and says what is wrong with it."""


@dataclass(frozen=True)
class Checkpoint:
    framework: str
    tensors: dict[str, torch.Tensor]  # the network's, under the file's names without wrappers' prefixes
    ignored: list[str]  # what else the file holds
    name_in_file: Callable[[str], str]  # of the tensor that timm calls so
    checksum: str | None  # the checks that the numbers passed; None if the format has none
    settings: dict[str, Any] = field(default_factory=dict)  # TinyNetConfig's fields that the file states
    notes: list[str] = field(default_factory=list)  # lines for the report


def one_set_only(path: Path) -> ConversionError:
    """The error of `--ema` where there is no choice."""
    return ConversionError(f"{path} holds one set of weights and not that they are an average: omit --ema")


def checked_tensor(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """
    Raises:
        ConversionError: It is no dense tensor of floating-point numbers or, for a counter, of integers.
    """
    counts = name.endswith(COUNTER) and not (tensor.is_floating_point() or tensor.is_complex())
    if not counts and tensor.dtype not in FLOAT_DTYPES:
        raise ConversionError(f"{name!r} is {tensor.dtype}, and must be float32, float16, bfloat16 or float64")
    # Strides of 0 or a device without memory let a few bytes claim any shape.
    if (
        tensor.layout != torch.strided
        or tensor.device.type != "cpu"
        or tensor.nbytes > tensor.untyped_storage().nbytes()
    ):
        raise ConversionError(f"{name!r} holds fewer numbers than its shape {list(tensor.shape)} says")
    return tensor.detach()
