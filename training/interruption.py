"""Signals that ask a run to stop: from a batch system, from Kubernetes, from Ctrl-C."""

import ctypes
import os
import signal
import sys
from pathlib import Path
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
LAUNCHERS = ("TORCHELASTIC_RUN_ID", "ACCELERATE_MIXED_PRECISION")  # variables that torchrun and accelerate launch set
PR_SET_PDEATHSIG = 1  # of Linux's prctl.h
EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: nothing is lost, the same command goes on


class Interrupted(Exception):
    """The run has saved and stops, because a signal asked for it. The message is one sentence."""


class Interruption:
    """Notes the first signal and lets the run come to a point where it can stop. A second Ctrl-C ends it at once.

    To be made once in each training process, from its main thread, before loader workers are forked. A launcher that
    dies counts as SIGTERM: `accelerate launch`, with one process, does not pass signals on.

    Attributes:
        signal_name: of the first signal, such as `SIGTERM`; None until there is one.
    """

    def __init__(self) -> None:
        self.signal_name: str | None = None
        for number in SIGNALS:
            signal.signal(number, self._note)
        if not os.environ.keys().isdisjoint(LAUNCHERS):
            signal_at_parents_end(signal.SIGTERM)

    def __bool__(self) -> bool:
        return self.signal_name is not None

    def end(self) -> None:
        """Nothing is left to save: signals end the process as they would any other."""
        for number in SIGNALS:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)

    def sentence(self, step: int, run_folder: Path) -> str:
        """What `Interrupted` says after the save."""
        by = self.signal_name or "a signal to another process"
        return f"stopped by {by} after step {step}; {run_folder} is saved, and the same command goes on from there"

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal_name = signal.Signals(number).name


def signal_at_parents_end(number: signal.Signals) -> None:
    """Have this process get a signal when the one that started it ends. On Linux; elsewhere nothing is done."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)
