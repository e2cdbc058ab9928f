"""Signals that ask a run to stop: from a batch system, from Kubernetes, from Ctrl-C."""

import signal
from pathlib import Path
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: nothing is lost, the same command goes on


class Interrupted(Exception):
    """The run has saved and stops, because a signal asked for it. The message is one sentence."""


class Interruption:
    """Notes the first signal and lets the run come to a point where it can stop. A second Ctrl-C ends it at once.

    To be made once in each training process, from its main thread, before loader workers are forked.

    Attributes:
        signal_name: of the first signal, such as `SIGTERM`; None until there is one.
    """

    def __init__(self) -> None:
        self.signal_name: str | None = None
        for number in SIGNALS:
            signal.signal(number, self._note)

    def __bool__(self) -> bool:
        return self.signal_name is not None

    def sentence(self, step: int, run_folder: Path) -> str:
        """What `Interrupted` says after the save."""
        by = self.signal_name or "a signal to another process"
        return f"stopped by {by} after step {step}; {run_folder} is saved, and the same command goes on from there"

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal_name = signal.Signals(number).name
