"""train.py as it must be started for bitwise equal results on a GPU.

python tests/gpu/deterministic_train.py [train.py's arguments]

Two things give another order of sums from run to run: CUDA kernels that add with atomics, which torch then refuses,
and cuDNN's benchmark mode, which chooses kernels by timing them. cuBLAS needs a workspace of fixed size.
"""

import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import torch

import train
from training.engine import network
from training.modeling.build import build_model


def without_benchmark_mode(*args: Any, **kwargs: Any) -> Any:
    torch.backends.cudnn.benchmark = False  # train.main has switched it on, and no kernel has run yet
    return build_model(*args, **kwargs)


torch.use_deterministic_algorithms(True)
network.build_model = without_benchmark_mode
train.main(sys.argv[1:])
