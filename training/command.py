"""What all commands have in common: how they read their flags, what they say of an error, and how they end.

This module imports nothing but Python's own and `training.errors`, so that convert.py and hub_card share it.
"""

import argparse
import errno
import io
import multiprocessing
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from training.errors import Ending

# The disk is full or fails, or this user may not write there: no bug, wherever it is met.
DISK_REFUSES = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EIO, errno.ESTALE)
# An error of a loader worker arrives with the worker's traceback for its message, which ends with the error itself.
FROM_WORKER = re.compile(r"Caught (\w+) in DataLoader worker .*\n[\w.]*\b\1: (.*)", re.DOTALL)


class CommandParser(argparse.ArgumentParser):
    """Says what is wrong with a command line in one sentence, which a usage of sixty flags would hide.

    Args:
        launched: the command runs on many ranks, of which rank 0 speaks for all.
    """

    def __init__(self, *args: Any, launched: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.launched = launched

    def error(self, message: str) -> NoReturn:
        speaks = not self.launched or is_zero("RANK")
        self.exit(2, f"error: {message}\n" if speaks else None)


def run_command(
    main: Callable[[Sequence[str]], int | None],
    argv: Sequence[str],
    *,
    launched: bool = False,
    interrupted: str = "",
    disk_refuses: str = "",
    recognize: Callable[[Exception], Ending | None] = lambda error: None,
) -> int:
    """Run a command to its end. An `Ending` becomes one sentence on stderr; every other error keeps its traceback.

    To be called once, last in a process: loader workers that are left are killed.

    Args:
        main: the command; it returns an exit code, or None for 0.
        argv: its command line, without the program's name.
        launched: the command runs on many ranks, and `Ending.told_by` says which of them speak.
        interrupted: what to say after Ctrl-C, beside exit code 130.
        disk_refuses: what to add to the system's own words where a disk is full or cannot be written.
        recognize: gives the ending that stands for an error of a library which is no bug; None for a bug.

    Returns:
        The exit code.
    """
    escape_what_stdout_lacks()
    try:
        return main(argv) or 0
    except KeyboardInterrupt:
        if interrupted:
            print(interrupted, file=sys.stderr)
        return 130
    except Exception as error:
        if isinstance(error, OSError) and error.errno in DISK_REFUSES:
            print(f"error: {error}{disk_refuses}", file=sys.stderr)
            return 2
        ending = error if isinstance(error, Ending) else recognize(error)
        if ending is None:
            raise
        if not launched or speaks(ending):
            print(f"{ending.prefix}{sentence(ending)}", file=sys.stderr)
        return ending.exit_code
    finally:
        end_workers()


def sentence(error: Exception) -> str:
    """The message of an error on one line; of one from a loader worker, without the worker's traceback."""
    text = str(error)
    from_worker = FROM_WORKER.match(text)
    lines = (from_worker[2] if from_worker else text).splitlines()
    return " ".join(line.strip() for line in lines if line.strip())


def speaks(ending: Ending) -> bool:
    """Whether this rank is one that says it. What a loader worker met, no other rank knows."""
    if ending.told_by == "each" or FROM_WORKER.match(str(ending)):
        return True
    return is_zero("RANK" if ending.told_by == "one" else "LOCAL_RANK")


def is_zero(variable: str) -> bool:
    """Whether a rank that a launcher sets is 0, as it is without a launcher."""
    return os.environ.get(variable, "0") == "0"


def escape_what_stdout_lacks() -> None:
    """Prints characters that the terminal's encoding lacks as escapes, as stderr does: they must not end a program."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def end_workers() -> None:
    """Kill all loader workers, at the end of a process. After an error they may still be there, do not react to
    SIGTERM, and Python would wait for them for ever."""
    workers = multiprocessing.active_children()
    if workers:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would raise for each
    for worker in workers:
        worker.kill()
        worker.join()
