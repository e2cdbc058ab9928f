"""train.py whose loss is a million times too large at the third step, so that fp16 gradients overflow there.

python tests/gpu/overflowing_train.py [train.py's arguments]
"""

import itertools
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from torch import Tensor

import train
from training.engine import step
from training.optim.loss import soft_cross_entropy

calls = itertools.count(1)


def overflowing(logits: Tensor, targets: Tensor, reduction: str) -> Tensor:
    loss = soft_cross_entropy(logits, targets, reduction)
    return loss * 1e6 if next(calls) == 3 else loss


step.soft_cross_entropy = overflowing
train.main(sys.argv[1:])
