"""train.py with fp16 on a CPU, where torch's autocast and gradient scaler work too but Accelerate has neither.

Nothing else is exchanged: autocast, scaling, unscaling, the agreement and the decision are those of a run on a GPU.
Each rank R writes rankR.txt: step, norm of the gradient, hash of its weights before the step.

python tests/faults/fp16_train.py CASE STEP RANK [train.py's arguments]

From step STEP on, rank RANK has, in CASE loss, one logit at -inf, so that its loss is not finite while its gradients
are; in CASE gradients infinite gradients, while its loss is finite; in CASE none nothing of it.
"""

import hashlib
import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
from accelerate import Accelerator
from torch import Tensor

import train
from training.config.train_config import TrainConfig
from training.engine import accelerator, step, trainer
from training.engine.agreement import Agreement, agree
from training.optim.loss import soft_cross_entropy
from training.transforms.device_transforms import DeviceTransform

case, bad_step, bad_rank = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
place = {}  # step and rank of the forward pass under way


class Fp16OnCpu(Accelerator):
    def __init__(self, *arguments, **keywords) -> None:
        super().__init__(*arguments, **keywords)
        if self.mixed_precision == "fp16":
            self.native_amp, self.scaler = True, torch.amp.GradScaler("cpu", init_scale=1024.0)


def noted(self, images: Tensor, targets: Tensor, *, epoch, indices, step, rank) -> tuple[Tensor, Tensor]:
    place.update(step=step + 1, rank=rank)
    return transform(self, images, targets, epoch=epoch, indices=indices, step=step, rank=rank)


def bad_loss(logits: Tensor, targets: Tensor, reduction: str) -> Tensor:
    is_bad = place["step"] >= bad_step and place["rank"] == bad_rank
    if is_bad and case == "loss":
        infinite = torch.zeros_like(logits)
        infinite[0, 0] = -math.inf
        logits = logits + infinite
    if is_bad and case == "gradients":
        logits.register_hook(lambda gradient: torch.full_like(gradient, math.inf))
    return soft_cross_entropy(logits, targets, reduction)


def with_hash(prepared: Accelerator, *arguments) -> Agreement:
    agreed = agree(prepared, *arguments)
    weights = b"".join(p.detach().numpy().tobytes() for p in prepared._models[0].parameters())
    line = f"{place['step']} {agreed.grad_norms[0]} {hashlib.sha256(weights).hexdigest()}\n"
    with open(f"rank{place['rank']}.txt", "a") as file:
        file.write(line)
    return agreed


transform = DeviceTransform.__call__
DeviceTransform.__call__ = noted
TrainConfig.check_device = lambda self, device_type: None
for module, name, substitute in (
    (accelerator, "Accelerator", Fp16OnCpu),
    (step, "soft_cross_entropy", bad_loss),
    (trainer, "agree", with_hash),
):
    getattr(module, name)  # a name that has moved elsewhere is an error here, not a test of nothing
    setattr(module, name, substitute)
sys.exit(train.run(sys.argv[4:]))
