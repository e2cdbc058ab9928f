"""
The network's speed and memory beside timm's, in one interleaved run.

    python -m benchmarks.model                      # A and E, batch 32, channels-last, CPU
    python -m benchmarks.model --variants tinynet_c --rounds 30

Speed: forward in inference mode, and forward + backward in training mode, the two networks taking turns, the order
swapped at each round; the ratio is the median over rounds of timm's time to ours, above 1 where ours is faster.
Memory: the peak of live tensor bytes in one training step, which torch's own tracker counts, so that it is exact.
"""

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path

import timm
import torch
from torch import nn
from torch.distributed._tools.mem_tracker import MemTracker

from benchmarks.timing import interleaved, median_ratio
from modeling_tinynet import TinyNetConfig, TinyNetForImageClassification
from training.system.environment import environment


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", nargs="+", default=["tinynet_a", "tinynet_e"])
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=15, help="rounds of one call each")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", type=Path, help="JSON file for the results, such as benchmarks/results/model.json")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    results = []
    for variant in arguments.variants:
        for training in (False, True):
            row = compare(variant, training, arguments.batch_size, arguments.rounds)
            results.append(row)
            print(
                f"{variant} {row['what']:>18}: timm {row['timm_ms']:8.1f} ms, ours {row['ours_ms']:8.1f} ms, "
                f"ratio {row['ratio']:.3f}"
                + (f", peak memory {row['peak_memory_ratio']:.3f} of timm's" if training else "")
            )
    report = {
        "environment": environment(),
        "batch_size": arguments.batch_size,
        "threads": arguments.threads,
        "rounds": arguments.rounds,
        "results": results,
    }
    if arguments.output:
        arguments.output.write_text(json.dumps(report, indent=2) + "\n")


def compare(variant: str, training: bool, batch_size: int, rounds: int) -> dict[str, float | str]:
    config = TinyNetConfig.from_variant(variant, dropout_rate=0.0)
    networks = {"timm": timm.create_model(variant), "ours": TinyNetForImageClassification(config)}
    images = torch.randn(batch_size, 3, config.image_size, config.image_size).to(memory_format=torch.channels_last)
    labels = torch.randint(0, 1000, (batch_size,))
    calls = {
        name: (training_step if training else inference)(network.to(memory_format=torch.channels_last), images, labels)
        for name, network in networks.items()
    }
    times = interleaved(calls, rounds)
    row = {
        "variant": variant,
        "what": "forward + backward" if training else "forward",
        "timm_ms": 1e3 * statistics.median(times["timm"]),
        "ours_ms": 1e3 * statistics.median(times["ours"]),
        "ratio": median_ratio(times["timm"], times["ours"]),
    }
    if training:
        peaks = {name: peak_bytes(network, calls[name]) for name, network in networks.items()}
        row |= {f"{name}_peak_mb": peak / 1e6 for name, peak in peaks.items()}
        row["peak_memory_ratio"] = peaks["ours"] / peaks["timm"]
    return row


def inference(network: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> Callable[[], None]:
    network.eval()

    def call() -> None:
        with torch.inference_mode():
            network(images)

    return call


def training_step(network: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> Callable[[], None]:
    network.train()

    def call() -> None:
        output = network(images)
        logits = output if isinstance(output, torch.Tensor) else output.logits
        nn.functional.cross_entropy(logits, labels).backward()
        network.zero_grad(set_to_none=True)

    return call


def peak_bytes(network: nn.Module, call: Callable[[], None]) -> int:
    tracker = MemTracker()
    tracker.track_external(network)
    with tracker:
        call()
    return tracker.get_tracker_snapshot("peak")[torch.device("cpu")]["Total"]


if __name__ == "__main__":
    main()
