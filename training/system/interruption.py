"""Signals that ask a run to stop: from a batch system, from Kubernetes, from Ctrl-C."""

import ctypes
import os
import re
import signal
import sys
from pathlib import Path
from types import FrameType

from training.errors import Ending

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
# Set by torchrun and accelerate launch, always, and by nobody else; ACCELERATE_MIXED_PRECISION is set by people too.
LAUNCHERS = ("TORCHELASTIC_RUN_ID", "ACCELERATE_DYNAMO_USE_FULLGRAPH")
# How a launcher's own command begins: both are Python programs.
LAUNCHER_COMMAND = re.compile(r"python|pypy|torchrun|accelerate|pt_elastic")
PR_SET_PDEATHSIG = 1  # of Linux's prctl.h
EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: nothing is lost, the same command resumes


class Interrupted(Ending):
    """The run has saved and stops, because a signal asked for it. The message is one sentence."""

    exit_code = EXIT_CODE
    told_by = "one"


class Interruption:
    """Notes the first signal and lets the run come to a point where it can stop. A second Ctrl-C ends it at once.

    To be made once in each training process, from its main thread, before loader workers are forked. A launcher that
    dies counts as SIGTERM, as `end_with_launcher` says.

    Attributes:
        signal_name: of the first signal, such as `SIGTERM`; None until there is one.
    """

    def __init__(self) -> None:
        self.signal_name: str | None = None
        for number in SIGNALS:
            signal.signal(number, self._note)
        end_with_launcher()

    def __bool__(self) -> bool:
        return self.signal_name is not None

    def end(self) -> None:
        """Nothing is left to save: signals end the process as they would any other."""
        for number in SIGNALS:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)

    def sentence(self, step: int, run_folder: Path) -> str:
        """What `Interrupted` says after the save."""
        by = self.signal_name or "a signal to another process"
        return f"stopped by {by} after step {step}; {run_folder} is saved, and the same command resumes it"

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal_name = signal.Signals(number).name


def end_with_launcher() -> None:
    """Have the end of the launcher that started this process count as SIGTERM. On Linux; elsewhere nothing is done.

    SIGTERM and not SIGKILL: once there is something to save, it is saved; before that, the process just ends. Ranks
    whose launcher was killed would otherwise train on with nobody to watch them, and `accelerate launch`, with one
    process, does not even pass SIGTERM on. A process that a shell or a batch system started by itself outlives them,
    as `nohup` wants it.

    To be called first of all: what comes later takes seconds, in which a launcher may end.
    """
    if sys.platform != "linux" or os.environ.keys().isdisjoint(LAUNCHERS):
        return
    signal_at_parents_end(signal.SIGTERM)
    if is_orphan(os.getppid()):  # the launcher ended before the line above, and the kernel had nobody to watch
        print("the launcher of this process has ended, so this process ends too", file=sys.stderr, flush=True)
        signal.raise_signal(signal.SIGTERM)


def is_orphan(pid: int, proc: Path = Path("/proc")) -> bool:
    """Whether neither process `pid`, the parent of one that a launcher started, nor any above it is a launcher, as far
    as they can be seen. It need not be the parent: there may be a script between the two."""
    while pid > 0:  # 0: the parent is in another container, out of sight
        try:
            # The name in parentheses may hold anything, so that fields are counted from its end.
            command = (proc / f"{pid}/cmdline").read_bytes().split(b"\0")[0].decode(errors="replace")
            parent = int((proc / f"{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[1])
        except OSError:
            return False
        if LAUNCHER_COMMAND.match(Path(command).name):
            return False
        if pid == 1:
            return True
        pid = parent
    return False


def signal_at_parents_end(number: signal.Signals) -> None:
    """Have this process get a signal when the one that started it ends. On Linux; elsewhere nothing is done."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)
