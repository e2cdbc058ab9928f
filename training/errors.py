"""How a command ends where the program has no bug: by one sentence. Every other exception keeps its traceback.

`training.command.run_command` turns an `Ending` into its sentence on stderr and its exit code. One is raised on
purpose, where what the user asked for is judged. A ValueError or OSError that nobody foresaw is a bug, and shows.

This module imports nothing of the project, so that convert.py and hub_card share it.
"""

from collections.abc import Iterable
from typing import ClassVar, Literal

ToldBy = Literal["one", "one per node", "each"]


class Ending(Exception):
    """Ends a command. The message is one sentence.

    Attributes:
        exit_code: of the command.
        prefix: of the sentence on stderr.
        told_by: of the ranks that raise it: "one", because all know the same; "one per node", because each machine may
            have its own reason; or "each", because it is of that rank alone.
    """

    exit_code: ClassVar[int] = 2
    prefix: ClassVar[str] = ""
    told_by: ClassVar[ToldBy] = "each"


class UserError(Ending):
    """What the user asked for cannot be done. The message names what is wrong and says what to do."""

    prefix = "error: "
    told_by: ClassVar[ToldBy] = "one per node"


class DataError(UserError, ValueError):
    """A dataset cannot be trained on. The message is one sentence and says what to change."""


class ModelError(UserError, ValueError):
    """A model cannot be loaded or used. The message is one sentence and says why."""


class RunError(UserError, ValueError):
    """A run cannot be made of these settings, or in its folder. The message is one sentence and says what to do."""


def listed(names: Iterable[str], limit: int = 10) -> str:
    """The first names, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
