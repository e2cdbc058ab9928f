"""Which files of a run may be published: they may have been replaced, or linked away."""

from pathlib import Path

from training.errors import UserError
from training.run.finished_run import FinishedRunError, existing_file

LARGEST = 20_000_000  # bytes of a file that is published
LARGEST_OF = {"best/model.safetensors": 1_000_000_000, "metrics.jsonl": 200_000_000}


class PublishError(UserError, ValueError):
    """A run cannot be published. The message is one sentence and says what to do."""


def run_file(folder: Path, name: str) -> Path:
    """The path of a run's file.

    Raises:
        PublishError: it is missing, no file, a link that leads out of the run's folder, or too large to be what
            train.py wrote.
    """
    try:
        path = existing_file(folder, name)
    except FinishedRunError as error:
        raise PublishError(str(error)) from error
    if not path.resolve().is_relative_to(folder.resolve()):
        raise PublishError(f"{path} is a link to {path.resolve()}, outside of the run: put the run's own file there")
    size, largest = path.stat().st_size, LARGEST_OF.get(name, LARGEST)
    if size > largest:
        raise PublishError(f"{path} has {size:,} bytes, but at most {largest:,} are published: restore the run's file")
    return path
