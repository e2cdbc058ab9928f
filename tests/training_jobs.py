"""train.py as people start it: real processes on real digits, small enough for a test."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits

from training.run.checkpoint import load_checkpoint

ROOT = Path(__file__).parents[1]
RECIPE = ("--recipe", str(ROOT / "configuration" / "quickstart.yaml"))
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


def write_digits(root: Path) -> None:
    """808 of scikit-learn's digits to train on, in 25 steps of 32 and one of 8, and few to evaluate, to save time."""
    digits = load_digits()
    for index, (pixels, label) in enumerate(zip(digits.images[:858], digits.target, strict=False)):
        image = root / ("train" if index < 808 else "val") / str(label) / f"{index}.png"
        image.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((pixels * 15).astype(np.uint8)).save(image)


def start(
    arguments: list[str],
    *,
    script: Path = ROOT / "train.py",
    processes: int = 1,
    launcher: tuple[str, ...] = (sys.executable,),
    folder: Path,
) -> subprocess.Popen:
    if processes > 1:
        launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}")
    if not (folder / "digits").exists():
        write_digits(folder / "digits")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(
        [*launcher, str(script), *map(str, arguments)],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def train(*arguments, timeout: float = 280, **kwargs) -> subprocess.CompletedProcess:
    process = start(list(arguments), **kwargs)
    output, errors = process.communicate(timeout=timeout)
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)


def trained(*arguments, **kwargs) -> str:
    result = train(*arguments, **kwargs)
    assert result.returncode == 0, result.stderr
    return result.stdout


def final_tensors(run_folder: Path) -> dict[str, torch.Tensor]:
    newest = max((run_folder / "checkpoints").glob("step-*"))
    tensors, _ = load_checkpoint(newest)
    return {f"{kind}.{name}": tensor for kind, entry in tensors.items() for name, tensor in entry.items()}
