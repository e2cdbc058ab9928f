"""Evaluates datasets of several sizes on every rank and lets rank 0 write the results: started by torchrun, on CPU.

Also the data, the models and the plain loop that test_evaluation.py compares with.
"""

import dataclasses
import json
import sys
from types import SimpleNamespace

import torch
import torch.distributed as dist
from torch import nn

from training.evaluation.evaluate import evaluate
from training.loading.sampling import evaluation_indices

SIZES = range(1, 66)
NUM_CLASSES = 7
BATCH_SIZE = 16


class IntegerModel(nn.Module):
    """Logits that are small integers: exact in any batch, and often equal. With `nan` bright images get a NaN."""

    def __init__(self, seed, nan=False):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randint(-1, 2, (NUM_CLASSES, 12), generator=generator).float())
        self.dropout = nn.Dropout(0.5)
        self.nan = nan

    def forward(self, pixel_values):
        logits = self.dropout(pixel_values.flatten(1)) @ self.weight.T
        if self.nan:
            logits[pixel_values.mean((1, 2, 3)) > 2, 3] = float("nan")
        return SimpleNamespace(logits=logits)


def make_models():
    return {"raw": IntegerModel(0), "ema": IntegerModel(1), "nan": IntegerModel(2, nan=True)}


def make_samples(n):
    generator = torch.Generator().manual_seed(n)
    images = torch.randint(5, (n, 3, 2, 2), generator=generator, dtype=torch.uint8)
    return images, torch.randint(NUM_CLASSES, (n,), generator=generator)


def preprocess(pixel_values):
    return pixel_values.float()


def batches(images, labels, indices):
    for start in range(0, len(indices), BATCH_SIZE):
        index = torch.tensor(indices[start : start + BATCH_SIZE])
        yield {"pixel_values": images[index], "labels": labels[index]}


def main(path):
    dist.init_process_group("gloo")
    results = {}
    for n in SIZES:
        images, labels = make_samples(n)
        indices = evaluation_indices(n, dist.get_rank(), dist.get_world_size())
        loader = batches(images, labels, indices)
        result = evaluate(
            make_models(),
            loader,
            preprocess=preprocess,
            num_samples=n,
            num_classes=NUM_CLASSES,
            confusion=True,
        )
        results[n] = {name: dataclasses.asdict(r) for name, r in result.items()}

    # A sampler that repeats samples, as DistributedSampler does to give all ranks equally many.
    images, labels = make_samples(3)
    loader = batches(images, labels, list(range(2)))
    try:
        evaluate(make_models(), loader, preprocess=preprocess, num_samples=3, num_classes=NUM_CLASSES)
    except RuntimeError as error:
        results["repeated"] = str(error)

    images, labels = make_samples(65)
    loader = batches(images, labels, evaluation_indices(65, dist.get_rank(), 2))
    options = {"preprocess": preprocess, "num_samples": 65, "num_classes": NUM_CLASSES}
    stopped = [None, None]
    result = evaluate(make_models(), loader, should_stop=lambda: dist.get_rank() == 1, **options)
    dist.all_gather_object(stopped, result is None)
    results["stopped"] = stopped
    if dist.get_rank() == 0:
        with open(path, "w") as file:
            json.dump(results, file)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
