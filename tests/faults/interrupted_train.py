"""train.py whose process of one rank gets SIGTERM inside an optimizer step that counts as long.

python tests/faults/interrupted_train.py STEP MICRO_BATCH RANK [train.py's arguments]
"""

import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import train
from training.engine import long_steps
from training.transforms.device_transforms import DeviceTransform

where = tuple(map(int, sys.argv[1:4]))
micro_batches: dict[int, int] = {}


def interrupting(self, images, targets, *, epoch, indices, step, rank):
    micro_batches[step] = micro_batches.get(step, 0) + 1
    if (step + 1, micro_batches[step], rank) == where:
        os.kill(os.getpid(), signal.SIGTERM)
    return transform(self, images, targets, epoch=epoch, indices=indices, step=step, rank=rank)


transform = DeviceTransform.__call__
DeviceTransform.__call__ = interrupting
long_steps.LOOK_EVERY_S = 1e-9
sys.exit(train.run(sys.argv[4:]))
