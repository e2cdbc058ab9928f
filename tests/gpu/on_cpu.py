"""A script of these tests on a CPU, to try the tests themselves. What would take a CPU too long is stood in for.

python tests/gpu/on_cpu.py SCRIPT [train.py's arguments]

fp16 is float32 whose gradient overflows at the logits where fp16's would, with Accelerate's way of using the scaler;
torch.compile traces forward and backward, and runs them without generating code.
"""

import functools
import runpy
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import accelerate
import torch
from torch import Tensor

import training.engine.accelerator
import training.optim.loss
from training.config.train_config import TrainConfig


def overflowing_as_fp16(logits: Tensor, targets: Tensor, reduction: str) -> Tensor:
    if logits.requires_grad and "fp16" in sys.argv:
        largest = torch.finfo(torch.float16).max
        logits.register_hook(lambda gradient: gradient.masked_fill(gradient.abs() > largest, torch.inf))
    return soft_cross_entropy(logits, targets, reduction)


def without_autocast(*args: Any) -> torch.autocast:
    return torch.autocast("cpu", enabled=False)


def with_scaler(*args: Any) -> accelerate.Accelerator:
    accelerator = build_accelerator(*args)
    if accelerator.mixed_precision == "fp16":  # what Accelerate does for fp16 on other devices
        accelerator.native_amp, accelerator.scaler = True, torch.amp.GradScaler("cpu")
        accelerate.accelerator.get_mixed_precision_context_manager = without_autocast
    return accelerator


# Before train.py, or a script that changes it, takes them.
soft_cross_entropy, build_accelerator = (
    training.optim.loss.soft_cross_entropy,
    training.engine.accelerator.build_accelerator,
)
training.optim.loss.soft_cross_entropy, training.engine.accelerator.build_accelerator = (
    overflowing_as_fp16,
    with_scaler,
)
TrainConfig.check_device = lambda self, device_type: None
torch.nn.Module.compile = functools.partialmethod(torch.nn.Module.compile, backend="aot_eager")
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
