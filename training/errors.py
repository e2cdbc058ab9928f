"""Why a dataset cannot be used, in one sentence."""

from collections.abc import Iterable


class DataError(ValueError):
    """A dataset cannot be trained on. The message is one sentence and says what to change."""


def listed(names: Iterable[str], limit: int = 10) -> str:
    """The first names, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
