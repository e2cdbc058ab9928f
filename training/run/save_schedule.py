"""When a run saves between the ends of its epochs."""

import time
from collections.abc import Callable

from training.config.train_config import SAVE_EVERY


class SaveSchedule:
    """`500steps` or `10min` between two saves.

    Args:
        every: the interval.
        step: optimizer steps done now, when the run begins or resumes.
        clock: seconds, from any origin.

    Raises:
        ValueError: another text.
    """

    def __init__(self, every: str, step: int, clock: Callable[[], float] = time.monotonic) -> None:
        match = SAVE_EVERY.fullmatch(every)
        if match is None:
            raise ValueError(f"an interval must be like 500steps or 10min, got {every!r}")
        self._number, self._in_steps = int(match[1]), match[2].startswith("step")
        self._clock = clock
        self.saved(step)

    def due(self, step: int) -> bool:
        """Whether to save after optimizer step number `step`."""
        if self._in_steps:
            return step - self._step >= self._number
        return self._clock() - self._at >= 60 * self._number

    def saved(self, step: int) -> None:
        """Count from here."""
        self._step, self._at = step, self._clock()
