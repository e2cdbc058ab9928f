"""Which file could not be written: of a full disk the system names none, only of a file that cannot be opened."""

import functools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Concatenate, ParamSpec, TypeVar

StrPath = str | os.PathLike[str]
P = ParamSpec("P")
T = TypeVar("T")
Target = TypeVar("Target", bound=StrPath)


@contextmanager
def errors_name(path: StrPath) -> Iterator[None]:
    """An OSError without a file's name leaves with this one."""
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def errors_name_first_argument(write: Callable[Concatenate[Target, P], T]) -> Callable[Concatenate[Target, P], T]:
    """`errors_name` for a function whose first argument is what it writes."""

    @functools.wraps(write)
    def named(path: Target, *args: P.args, **kwargs: P.kwargs) -> T:
        with errors_name(path):
            return write(path, *args, **kwargs)

    return named
