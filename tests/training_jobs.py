"""train.py as people start it, on real digits, small enough for a test."""

import functools
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits

from tests import launcher
from training.run.checkpoint import load_checkpoint

ROOT = Path(__file__).parents[1]
RECIPE = ("--recipe", str(ROOT / "configuration" / "quickstart.yaml"))
PYTHON = (sys.executable,)
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
# The smallest TinyNet, on small digits.
SMALL = (
    *RECIPE,
    *("--dataset", "./digits", "--image_size", "32", "--lr", "0.003", "--warmup_epochs", "0.5"),
    *("--global_batch_size", "32", "--per_device_batch_size", "32", "--save_every_epochs", "1"),
)
# Everything random that a run has.
AUGMENTED = (
    *("--optimizer", "rmsprop", "--optimizer_eps", "1e-3", "--dropout_rate", "0.2", "--drop_path_rate", "0.1"),
    *("--horizontal_flip", "0.5", "--color_jitter", "0.4", "--rand_augment", "9", "--random_erasing", "0.3"),
    *("--mixup_alpha", "0.2", "--cutmix_alpha", "0.5"),
)


@functools.cache
def digits() -> Path:
    """808 of scikit-learn's digits to train on, in 25 steps of 32 and one of 8, and few to evaluate, to save time."""
    root = Path(tempfile.mkdtemp(prefix="digits-", dir=os.environ["HF_HOME"]))  # which ends with the test process
    digits = load_digits()
    for index, (pixels, label) in enumerate(zip(digits.images[:858], digits.target, strict=False)):
        image = root / ("train" if index < 808 else "val") / str(label) / f"{index}.png"
        image.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((pixels * 15).astype(np.uint8)).save(image)
    return root


def start(
    arguments: list[str],
    *,
    script: Path = ROOT / "train.py",
    processes: int = 1,
    command: tuple[str, ...] | None = None,
    folder: Path,
) -> launcher.Run | subprocess.Popen:
    """A run that has begun: a fork for each of its processes, or with `command`, such as PYTHON, what that starts."""
    if not (folder / "digits").exists():
        shutil.copytree(digits(), folder / "digits")
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    if command is None:
        return launcher.Run([script, *arguments], cwd=folder, env=environment, num_ranks=processes)
    return subprocess.Popen(
        [*command, str(script), *map(str, arguments)],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def train(*arguments, timeout: float = 280, **kwargs) -> subprocess.CompletedProcess:
    process = start(list(arguments), **kwargs)
    try:
        output, errors = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)


def trained(*arguments, **kwargs) -> str:
    result = train(*arguments, **kwargs)
    assert result.returncode == 0, result.stderr
    return result.stdout


def final_tensors(run_folder: Path) -> dict[str, torch.Tensor]:
    newest = max((run_folder / "checkpoints").glob("step-*"))
    tensors, _ = load_checkpoint(newest)
    return {f"{kind}.{name}": tensor for kind, entry in tensors.items() for name, tensor in entry.items()}
