"""The files of a run, read with care: they are published, and may have been damaged, replaced or linked away."""

import json
from pathlib import Path
from typing import Any

import yaml

from training.errors import UserError

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
    path = folder / name
    if not path.is_file():
        raise PublishError(f"the run in {folder} is not complete: {path} is missing")
    if not path.resolve().is_relative_to(folder.resolve()):
        raise PublishError(f"{path} is a link to {path.resolve()}, outside of the run: put the run's own file there")
    size, largest = path.stat().st_size, LARGEST_OF.get(name, LARGEST)
    if size > largest:
        raise PublishError(f"{path} has {size:,} bytes, but at most {largest:,} are published: restore the run's file")
    return path


def read_text(folder: Path, name: str) -> str:
    """Raises PublishError as `run_file`; or the file cannot be read, or is no text."""
    path = run_file(folder, name)
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise PublishError(f"the run in {folder} cannot be read: {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise damaged(path, "it is not UTF-8 text") from error


def read_json(folder: Path, name: str) -> Any:
    """Raises PublishError as `read_text`; or the text is not JSON."""
    return _parse_json(read_text(folder, name), folder / name)


def read_json_lines(folder: Path, name: str) -> list[Any]:
    """Raises PublishError as `read_text`; or a line is not JSON, or the last one has no end."""
    text, path = read_text(folder, name), folder / name
    lines = text.split("\n")
    if lines.pop():
        raise damaged(path, f"line {len(lines) + 1} is cut short")
    return [_parse_json(line, path, f"line {number}: ") for number, line in enumerate(lines, start=1)]


def read_yaml(folder: Path, name: str) -> Any:
    """Raises PublishError as `read_text`; or the text is not YAML."""
    text = read_text(folder, name)
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a date that there is not
        raise damaged(folder / name, str(error)) from error


def damaged(path: Path, reason: str) -> PublishError:
    """The sentence about a file that is not as train.py wrote it."""
    return PublishError(f"{path} is damaged ({' '.join(reason.split())}): restore it, or train again")


def _parse_json(text: str, path: Path, place: str = "") -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise damaged(path, f"{place}{error}") from error
