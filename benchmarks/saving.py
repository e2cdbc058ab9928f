"""
How long training stands still for a checkpoint: model, EMA and optimizer, with checksums, forced to disk.

    python -m benchmarks.saving --folder runs            # TinyNet-A, on the disk of that folder
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch

from modeling_tinynet import TinyNetConfig, TinyNetForImageClassification
from training.config.train_config import TrainConfig
from training.modeling.ema import ExponentialMovingAverage
from training.optim.optimizer import build_optimizer
from training.run.checkpoint import optimizer_tensors, save_checkpoint
from training.system.environment import environment

INTERVAL_S = 600  # train.py's default


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", default="tinynet_a")
    parser.add_argument("--folder", type=Path, default=Path(), help="where a temporary folder is made (default: here)")
    parser.add_argument("--rounds", type=int, default=20, help="checkpoints written")
    parser.add_argument("--output", type=Path, help="JSON file, such as benchmarks/results/saving.json")
    arguments = parser.parse_args()

    seconds, size = save_repeatedly(arguments.variant, arguments.folder, arguments.rounds)
    median = statistics.median(seconds)
    report = {
        "environment": environment(),
        "variant": arguments.variant,
        "rounds": arguments.rounds,
        "checkpoint_mb": size / 1e6,
        "median_s": median,
        "slowest_s": max(seconds),
        "interval_s": INTERVAL_S,
        "share": median / INTERVAL_S,
    }
    print(
        f"{arguments.variant}: {size / 1e6:.0f} MB in {median:.2f} s (slowest {max(seconds):.2f} s), "
        f"{100 * report['share']:.2f} % of training at one save in {INTERVAL_S // 60} minutes"
    )
    if arguments.output:
        arguments.output.write_text(json.dumps(report, indent=2) + "\n")


def save_repeatedly(variant: str, folder: Path, rounds: int) -> tuple[list[float], int]:
    """(seconds of each save, bytes of a checkpoint), with the state that a published recipe's run has."""
    network = TinyNetForImageClassification(TinyNetConfig.from_variant(variant))
    published = TrainConfig()
    optimizer = build_optimizer(network, **published.update())
    for parameter in network.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    tensors = {
        "model": network.state_dict(),
        "ema": ExponentialMovingAverage(network, published.ema_decay).model.state_dict(),
        "optimizer": optimizer_tensors(optimizer, network),
    }
    seconds = []
    with tempfile.TemporaryDirectory(dir=folder, prefix=".saving-") as temporary:
        for step in range(1, rounds + 1):
            start = time.perf_counter()
            path = save_checkpoint(Path(temporary), step, tensors, {})
            seconds.append(time.perf_counter() - start)
        size = sum(file.stat().st_size for file in path.iterdir())
    return seconds, size


if __name__ == "__main__":
    main()
