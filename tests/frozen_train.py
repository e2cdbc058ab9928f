"""train.py with BatchNorm frozen, so that a batch cut in another way gives the same gradients; logs what it trains on.

python tests/frozen_train.py LOG_FOLDER [train.py's arguments]
"""

import hashlib
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

import train
from training.device_transforms import DeviceTransform

log_folder = Path(sys.argv[1])


def stay_frozen(module: torch.nn.BatchNorm2d, mode: bool = True) -> torch.nn.BatchNorm2d:
    return torch.nn.Module.train(module, False)


def log_batch(self, images, targets, *, epoch, indices, step, rank):
    pixels = [hashlib.sha256(image.numpy().tobytes()).hexdigest() for image in images]
    with open(log_folder / f"rank{rank}.jsonl", "a") as file:
        file.write(json.dumps({"step": step, "epoch": epoch, "indices": indices.tolist(), "pixels": pixels}) + "\n")
    return transform(self, images, targets, epoch=epoch, indices=indices, step=step, rank=rank)


transform = DeviceTransform.__call__
DeviceTransform.__call__ = log_batch
torch.nn.BatchNorm2d.train = stay_frozen
train.main(sys.argv[2:])
