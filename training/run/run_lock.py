"""One process at a time in a run's folder."""

import fcntl
import json
import os
import socket
from pathlib import Path

from training.errors import UserError


class RunFolderInUse(UserError, RuntimeError):
    """Another process trains in this folder. The message is one sentence and names it."""


class RunLock:
    """Holds a run's folder until this process ends, however it ends: the kernel takes the lock back.

    The file `.lock` says who holds it, for people; the lock itself is POSIX's, which a fork does not inherit, so that
    loader workers who outlive a killed run do not keep it. A file without a lock is stale and taken over.

    Raises:
        RunFolderInUse: another process holds it.
        OSError: the folder does not exist or cannot be written.
    """

    def __init__(self, run_folder: Path) -> None:
        # Kept open: closing any descriptor of the file would give the lock away.
        self._file = (run_folder / ".lock").open("a+", encoding="utf-8")
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.seek(0)
            holder = _holder(self._file.read())
            self._file.close()
            raise RunFolderInUse(
                f"{run_folder} is in use by {holder}: wait for it, or choose another --run_name"
            ) from None
        self._file.truncate(0)
        self._file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))
        self._file.flush()


def _holder(text: str) -> str:
    try:
        owner = json.loads(text)
        return f"process {owner['pid']} on {owner['host']}"
    except (ValueError, KeyError, TypeError):
        return "another process"
