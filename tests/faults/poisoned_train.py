"""train.py whose loss is not a number at one step of one rank.

python tests/faults/poisoned_train.py STEP RANK [train.py's arguments]
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch

import train
from training.transforms.device_transforms import DeviceTransform

bad_step, bad_rank = int(sys.argv[1]), int(sys.argv[2])


def poisoned(self, images, targets, *, epoch, indices, step, rank):
    images, targets = transform(self, images, targets, epoch=epoch, indices=indices, step=step, rank=rank)
    if step + 1 == bad_step and rank == bad_rank:
        images = torch.full_like(images, float("nan"))
    return images, targets


transform = DeviceTransform.__call__
DeviceTransform.__call__ = poisoned
sys.exit(train.run(sys.argv[3:]))
