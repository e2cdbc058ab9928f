"""Runs of train.py on the device under test: a GPU, or the CPU to try the tests themselves without one.

TINYNET_TEST_DEVICE=cpu python -m pytest -m gpu tests/gpu
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from training.run.checkpoint import load_checkpoint

ROOT = Path(__file__).parents[2]
DEVICE = os.environ.get("TINYNET_TEST_DEVICE", "cuda")
RUN_NAME = "run"
# Two epochs of 25 steps of 32 and one of 8: enough to learn something about digits, for which nothing is cropped away.
SMALL = (
    *("--recipe", str(ROOT / "configuration" / "quickstart.yaml"), "--num_workers", "0", "--log_every_steps", "1"),
    *("--validation_fraction", "0.55", "--global_batch_size", "32", "--per_device_batch_size", "32"),
    *("--save_every_epochs", "1", "--epochs", "2", "--lr", "0.001", "--warmup_epochs", "0"),
    *("--crop_scale", "1", "1", "--crop_ratio", "1", "1"),
)


def train(*arguments: str | Path, folder: Path, script: str = "train.py", run_name: str = RUN_NAME) -> Path:
    """The folder that one run leaves under `folder`."""
    environment = os.environ | ({"ACCELERATE_USE_CPU": "true"} if DEVICE == "cpu" else {})
    scripts = [str(ROOT / script)]
    if DEVICE == "cpu":
        scripts.insert(0, str(ROOT / "tests" / "gpu" / "on_cpu.py"))
    result = subprocess.run(
        [sys.executable, *scripts, *SMALL, "--run_name", run_name, *map(str, arguments)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return folder / "runs" / run_name


def checkpoint(run_folder: Path, number: int) -> Path:
    """The first (0) or the last (-1) checkpoint that is left of a run."""
    return sorted((run_folder / "checkpoints").glob("step-*"))[number]


def read_checkpoint(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Weights, optimizer and EMA as one flat dictionary; the state."""
    tensors, state = load_checkpoint(path)
    return {f"{kind}.{name}": tensor for kind, entry in tensors.items() for name, tensor in entry.items()}, state
