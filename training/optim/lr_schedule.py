"""Learning rates as pure functions of the step: the published staircase, and a cosine.

Recipes hold decimal fractions such as 2.4 epochs, which binary floating point does not: 12 * 1251 // (2.4 * 1251)
is 4. So the arithmetic is exact, on fractions, and only its result is a float.
"""

import math
from collections.abc import Callable
from fractions import Fraction

from training.config.train_config import TrainConfig


def build_schedule(
    name: str,
    *,
    lr: float | str,
    total_steps: int,
    steps_per_epoch: int,
    warmup_epochs: float | str,
    warmup_lr: float | str,
    decay_epochs: float | str,
    decay_rate: float | str,
    min_lr: float | str,
) -> Callable[[int], float]:
    """The learning rate as a function of the optimizer step, counted from 0.

    Both schedules start with a linear warm-up from `warmup_lr` towards `lr`:

    - "staircase" is constant within an epoch, after the warm-up `lr * decay_rate ** floor(epoch / decay_epochs)`.
      Epochs count from the start of the run, so that the highest value lies below `lr`. It has no end.
    - "cosine" changes at every step. It has `lr` at the end of the warm-up and goes down half a cosine to `min_lr` at
      `total_steps`, where it stays.

    Args:
        name: "staircase" (makes no use of total_steps and min_lr) or "cosine" (none of decay_epochs and decay_rate).
        warmup_epochs: may be a fraction, as decay_epochs may; 0 for no warm-up.

    Raises:
        ValueError: another name, a value that is no number or out of its range, or a cosine run that is all warm-up.

    Source: the staircase is get_lr in the TinyNet training code of the MindSpore model zoo.
    """
    peak = _fraction("lr", lr)
    warmup = _fraction("warmup_epochs", warmup_epochs)
    start = _fraction("warmup_lr", warmup_lr)
    interval = _fraction("decay_epochs", decay_epochs)
    rate = _fraction("decay_rate", decay_rate)
    lowest = _fraction("min_lr", min_lr)
    _require(peak > 0, "lr must be positive", lr)
    _require(total_steps >= 1, "total_steps must be at least 1", total_steps)
    _require(steps_per_epoch >= 1, "steps_per_epoch must be at least 1", steps_per_epoch)
    _require(warmup >= 0, "warmup_epochs must not be negative", warmup_epochs)
    _require(start >= 0, "warmup_lr must not be negative", warmup_lr)
    _require(interval > 0, "decay_epochs must be positive", decay_epochs)
    _require(0 < rate <= 1, "decay_rate must be above 0 and at most 1", decay_rate)
    _require(0 <= lowest <= peak, f"min_lr must lie between 0 and lr {lr}", min_lr)
    if name == "staircase":
        return _staircase(peak, start, warmup, interval, rate, steps_per_epoch)
    if name == "cosine":
        _require(
            warmup * steps_per_epoch < total_steps,
            f"warmup_epochs must be below the run's {total_steps / steps_per_epoch:g} epochs for a cosine",
            warmup_epochs,
        )
        return _cosine(peak, start, warmup * steps_per_epoch, lowest, total_steps)
    raise ValueError(f"schedule must be staircase or cosine, got {name!r}")


def _staircase(
    peak: Fraction, start: Fraction, warmup: Fraction, interval: Fraction, rate: Fraction, steps_per_epoch: int
) -> Callable[[int], float]:
    def lr(step: int) -> float:
        epoch = step // steps_per_epoch
        if epoch < warmup:
            return float(start + epoch * (peak - start) / warmup)
        return float(peak * rate ** (epoch // interval))

    return lr


def _cosine(
    peak: Fraction, start: Fraction, warmup_steps: Fraction, lowest: Fraction, total_steps: int
) -> Callable[[int], float]:
    def lr(step: int) -> float:
        if step < warmup_steps:
            return float(start + step * (peak - start) / warmup_steps)
        progress = min(Fraction(step - warmup_steps, total_steps - warmup_steps), Fraction(1))
        return float(lowest) + float(peak - lowest) * (1 + math.cos(math.pi * progress)) / 2

    return lr


def lr_schedule(config: TrainConfig, steps_per_epoch: int) -> Callable[[int], float]:
    """The learning rate of a run as a function of its optimizer step."""
    return build_schedule(
        config.schedule,
        lr=config.lr,
        total_steps=config.epochs * steps_per_epoch,
        steps_per_epoch=steps_per_epoch,
        warmup_epochs=config.warmup_epochs,
        warmup_lr=config.warmup_lr,
        decay_epochs=config.decay_epochs,
        decay_rate=config.decay_rate,
        min_lr=config.min_lr,
    )


def warmup_remark(config: TrainConfig, steps_per_epoch: int) -> str | None:
    """What to know about a run that ends in its warm-up, as a staircase may: its learning rate stays below `lr`."""
    if config.warmup_epochs < config.epochs:
        return None
    highest = lr_schedule(config, steps_per_epoch)(config.epochs * steps_per_epoch - 1)
    return f"warmup_epochs {config.warmup_epochs:g} outlasts the run: at most {highest:.3g}, never lr {config.lr:g}"


def _fraction(field: str, value: float | str) -> Fraction:
    """The number as it is written: 2.4 is 12/5, not the double next to it."""
    try:
        return Fraction(str(value))
    except ValueError:
        raise ValueError(f"{field} must be a finite number, got {value!r}") from None


def _require(condition: bool, rule: str, value: object) -> None:
    if not condition:
        raise ValueError(f"{rule}, got {value}")
