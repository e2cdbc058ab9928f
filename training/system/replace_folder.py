"""Replaces a folder by another one so that its name always leads to a whole folder, the old one or the new one."""

import ctypes
import errno
import os
import shutil
import sys
import uuid
from pathlib import Path

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_OLD = "-replaced"


def temporary_name(folder: Path) -> Path:
    """A name beside `folder` to write its successor under. What a kill leaves of it, `remove_leftovers` removes."""
    return folder.with_name(f".tmp-{folder.name}-{uuid.uuid4().hex}")


def replace_folder(temporary: Path, folder: Path) -> None:
    """Moves `temporary`, a name of `temporary_name`, to `folder`, and removes what was there.

    Linux exchanges two folders in one step. Where the file system cannot, as over NFS, there are two steps; after a
    kill between them `remove_leftovers` puts the old folder back.

    Raises:
        OSError: it could not be moved; the old folder is where it was.
    """
    if not folder.exists():
        os.replace(temporary, folder)
        return
    if _exchange(temporary, folder):
        shutil.rmtree(temporary, ignore_errors=True)
        return
    old = temporary.with_name(temporary.name + _OLD)
    os.replace(folder, old)
    try:
        os.replace(temporary, folder)
    except OSError:
        os.replace(old, folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def remove_leftovers(folder: Path) -> None:
    """Removes what a kill left of a replacement of `folder`, once nobody else writes there.

    Raises:
        OSError: the old folder could not be put back.
    """
    leftovers = sorted(folder.parent.glob(f".tmp-{folder.name}-*"))
    for leftover in leftovers:
        if leftover.name.endswith(_OLD) and not folder.exists():
            os.replace(leftover, folder)
        else:
            shutil.rmtree(leftover, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Exchanges two names in one step; False where the system or the file system has no such call."""
    if sys.platform != "linux":
        return False
    function = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if function is None:  # a C library from before 2018
        return False
    if function(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EXDEV):  # EXDEV: some overlays
        return False
    raise OSError(number, os.strerror(number), str(other))
