"""Clocks for comparisons: calls that take turns, and the optimizer steps of anybody's script."""

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook


def interleaved(calls: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each call by round, after one round to warm up; the order is reversed at every other round."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for round_number in range(rounds + 1):
        for name in list(calls)[:: -1 if round_number % 2 else 1]:
            start = time.perf_counter()
            calls[name]()
            if round_number:
                times[name].append(time.perf_counter() - start)
    return times


def median_ratio(slower: list[float], faster: list[float]) -> float:
    """The median over rounds of one call's time to the other's in the same round."""
    return statistics.median(a / b for a, b in zip(slower, faster, strict=True))


def stop_after(seconds: float, warmup_steps: int, times_file: Path) -> None:
    """End this process that many seconds after its first steps, of whichever optimizer, and write down when each step
    since then ended: a JSON list in seconds that begins with the end of the last warm-up step.
    """
    steps = 0
    times: list[float] = []

    def note(optimizer: Optimizer, args: tuple, kwargs: dict) -> None:
        nonlocal steps
        steps += 1
        if steps >= warmup_steps:
            times.append(time.perf_counter())
            if times[-1] - times[0] >= seconds:
                times_file.write_text(json.dumps(times))
                raise SystemExit(0)

    register_optimizer_step_post_hook(note)
