"""train.py with BatchNorm frozen, so that a batch cut otherwise gives the same gradients; logs batches and gradients.

In double precision, so that what is left of a difference is not rounding.

    python tests/frozen_train.py LOG_FOLDER [train.py's arguments]
"""

import hashlib
import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import safetensors.torch
import torch

import train
from training.engine import network
from training.optim.optimizer import RMSpropTF
from training.transforms.device_transforms import DeviceTransform

log_folder = Path(sys.argv[1])


def stay_frozen(module: torch.nn.BatchNorm2d, mode: bool = True) -> torch.nn.BatchNorm2d:
    return torch.nn.Module.train(module, False)


def log_batch(self, images, targets, *, epoch, indices, step, rank):
    pixels = [hashlib.sha256(image.numpy().tobytes()).hexdigest() for image in images]
    with open(log_folder / f"rank{rank}.jsonl", "a") as file:
        file.write(json.dumps({"step": step, "epoch": epoch, "indices": indices.tolist(), "pixels": pixels}) + "\n")
    images, targets = transform(self, images, targets, epoch=epoch, indices=indices, step=step, rank=rank)
    return images.double(), targets


def log_gradients(self, *arguments, **keywords):
    step_number = len(list(log_folder.glob("gradients-*"))) + 1
    gradients = {str(i): p.grad for i, p in enumerate(p for group in self.param_groups for p in group["params"])}
    if os.environ.get("RANK", "0") == "0":
        safetensors.torch.save_file(
            {name: gradient.contiguous() for name, gradient in gradients.items()},
            log_folder / f"gradients-{step_number:03d}.safetensors",
        )
    return step(self, *arguments, **keywords)


def normalized_in_double(self, images):
    return normalize_only(self, images).double()


def built_in_double(*arguments, **keywords):
    built, head = build_model(*arguments, **keywords)
    return built.double(), head


transform, step = DeviceTransform.__call__, RMSpropTF.step
normalize_only, build_model = DeviceTransform.normalize_only, network.build_model
DeviceTransform.normalize_only, network.build_model = normalized_in_double, built_in_double
RMSpropTF.step = log_gradients
DeviceTransform.__call__ = log_batch
torch.nn.BatchNorm2d.train = stay_frozen
sys.exit(train.run(sys.argv[2:]))
