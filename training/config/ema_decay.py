"""What the decay of the EMA means: its half-life, and its value for another batch."""

import math


def checked_decay(decay: float) -> float:
    """`decay` itself.

    Raises:
        ValueError: it is below 0, or 1 or above.
    """
    if not 0 <= decay < 1:
        raise ValueError(f"the decay of the EMA must be at least 0 and below 1, got {decay}")
    return decay


def half_life_steps(decay: float) -> float:
    """Updates after which the average still holds half of what it held, 6,931 for 0.9999.

    Raises:
        ValueError: decay out of range.
    """
    return math.log(0.5) / math.log(decay) if checked_decay(decay) > 0 else 0.0


def rescaled_decay(decay: float, batch: int, reference_batch: int) -> float:
    """The decay that, at `batch` samples a step, forgets as many samples as `decay` does at `reference_batch`.

    Raises:
        ValueError: decay out of range, or a batch that is not positive.
    """
    if batch <= 0 or reference_batch <= 0:
        raise ValueError(f"batches must be positive, got batch {batch} and reference_batch {reference_batch}")
    return checked_decay(decay) ** (batch / reference_batch)
