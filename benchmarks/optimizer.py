"""
The optimizer's step and the EMA's update beside timm's, in one interleaved run.

    python -m benchmarks.optimizer                    # TinyNet-A, CPU
    python -m benchmarks.optimizer --variants tinynet_a tinynet_e --rounds 300

Here: the optimizer and the EMA of this package. timm: its RMSpropTF, as its own factory builds it, and ModelEmaV3
with its default, foreach. On a CPU timm's RMSpropTF goes through the parameters one by one unless it is told
`foreach=True`: both ways are measured, and `ratio` is to the faster of them. All have the published values, the same
groups, the same first weights and, at each call, the same gradients. The calls take turns, the order swapped at each
round; a ratio is the median over rounds of timm's time to ours, above 1 where ours is faster. All must end with the
same weights, or they have not done the same work: the largest difference is written down.
"""

import argparse
import json
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path

import timm
import timm.utils
import torch
from torch import nn

from benchmarks.timing import interleaved, median_ratio
from benchmarks.timm_rmsprop import timm_rmsprop
from modeling_tinynet import TinyNetConfig, TinyNetForImageClassification
from training.config.train_config import TrainConfig
from training.modeling.ema import ExponentialMovingAverage
from training.optim.optimizer import build_optimizer
from training.system.environment import environment

PUBLISHED = TrainConfig()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", nargs="+", default=["tinynet_a"])
    parser.add_argument("--rounds", type=int, default=200, help="rounds of one call each")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--output", type=Path, help="JSON file for the results, such as benchmarks/results/optimizer.json"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    results = []
    for variant in arguments.variants:
        for row in compare(variant, arguments.rounds):
            results.append(row)
            print(
                f"{variant} {row['what']:>14}: timm {row['timm_ms']:6.2f} ms, timm foreach "
                f"{row['timm_foreach_ms']:6.2f} ms, ours {row['ours_ms']:6.2f} ms, ratio {row['ratio']:.2f}"
            )
    report = {
        "environment": environment(),
        "threads": arguments.threads,
        "rounds": arguments.rounds,
        "results": results,
    }
    if arguments.output:
        arguments.output.write_text(json.dumps(report, indent=2) + "\n")


def compare(variant: str, rounds: int) -> list[dict[str, float | str]]:
    ours = TinyNetForImageClassification(TinyNetConfig.from_variant(variant))
    networks = {"timm": timm.create_model(variant), "timm_foreach": timm.create_model(variant), "ours": ours}
    weights = {name.removeprefix("tinynet."): tensor for name, tensor in ours.state_dict().items()}
    gradients = {name: torch.randn(p.shape) for name, p in networks["timm"].named_parameters()}
    for network in networks.values():
        if network is not ours:
            network.load_state_dict(weights)
        for name, p in network.named_parameters():
            p.grad = gradients[name.removeprefix("tinynet.")].clone()

    averages = {
        "timm": timm.utils.ModelEmaV3(networks["timm"], decay=PUBLISHED.ema_decay),
        "timm_foreach": timm.utils.ModelEmaV3(networks["timm_foreach"], decay=PUBLISHED.ema_decay),
        "ours": ExponentialMovingAverage(ours, PUBLISHED.ema_decay),
    }
    steps = {
        "timm": timms_optimizer(networks["timm"]).step,
        "timm_foreach": timms_optimizer(networks["timm_foreach"], foreach=True).step,
        "ours": our_optimizer(ours).step,
    }
    updates = {name: partial(average.update, networks[name]) for name, average in averages.items()}
    both = {name: in_turn(steps[name], updates[name]) for name in networks}

    rows = []
    for what, calls in {"step + average": both, "step": steps, "average": updates}.items():
        times = interleaved(calls, rounds)
        ratios = {f"ratio_to_{name}": median_ratio(times[name], times["ours"]) for name in ("timm", "timm_foreach")}
        rows.append(
            {"variant": variant, "what": what}
            | {f"{name}_ms": 1e3 * statistics.median(seconds) for name, seconds in times.items()}
            | {"ratio": min(ratios.values())}
            | ratios
            | {
                "weight_difference": largest_difference(ours, networks["timm"]),
                "average_difference": largest_difference(averages["ours"].model, averages["timm"].module),
            }
        )
    return rows


def our_optimizer(network: nn.Module) -> torch.optim.Optimizer:
    return build_optimizer(network, **PUBLISHED.update())


def timms_optimizer(network: nn.Module, **options: bool) -> torch.optim.Optimizer:
    return timm_rmsprop(network, PUBLISHED, PUBLISHED.lr, **options)


def in_turn(step: Callable[[], object], update: Callable[[], None]) -> Callable[[], None]:
    def call() -> None:
        step()
        update()

    return call


def largest_difference(ours: nn.Module, timms: nn.Module) -> float:
    """Over all parameters, relative to the largest value of each."""
    expected = dict(timms.named_parameters())
    return max(
        ((p - expected[name.removeprefix("tinynet.")]).abs().max() / p.abs().max()).item()
        for name, p in ours.named_parameters()
    )


if __name__ == "__main__":
    main()
