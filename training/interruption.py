"""Signals that ask a run to stop: from a batch system, from Kubernetes, from Ctrl-C."""

import signal
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

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal_name = signal.Signals(number).name


def leave_signals_to_training() -> None:
    """In a loader worker: a signal to the whole process group must not end it before the run has saved."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    # By this one the training process ends a worker that hangs.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
