"""The one reader of a finished run's folder, for comparing runs and for publishing one.

`hub_card` shares this file, and nothing else of `training`: it needs no package that trains.
"""

import difflib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from training.errors import RunError
from training.reporting.metrics import Record, read_metrics


class FinishedRunError(RunError):
    """There is no finished run, or a file of it is missing or damaged. The message is one sentence."""


@dataclass(frozen=True)
class FinishedRun:
    """What a run left in its folder: the contents of summary.json, recipe.yaml and metrics.jsonl."""

    folder: Path
    summary: dict[str, Any]
    recipe: dict[str, Any]
    records: list[Record]  # oldest first

    @property
    def steps(self) -> list[Record]:
        return [record for record in self.records if record["kind"] == "step"]

    @property
    def epochs(self) -> list[Record]:
        return [record for record in self.records if record["kind"] == "epoch"]


def require_finished(folder: Path) -> None:
    """
    Raises:
        FinishedRunError: the folder does not exist, or holds no finished run.
    """
    if not folder.is_dir():
        others = [path.name for path in folder.parent.iterdir() if path.is_dir()] if folder.parent.is_dir() else []
        near = difflib.get_close_matches(folder.name, others, n=1)
        hint = f"; did you mean {folder.with_name(near[0])}?" if near else "; give the folder of a run"
        raise FinishedRunError(f"there is no folder {folder}{hint}")
    if not (folder / "summary.json").exists():
        if folder.name in ("best", "last") and (folder.parent / "summary.json").exists():
            raise FinishedRunError(f"{folder} is the model of a run; give the run's own folder, {folder.parent}")
        if (folder / "recipe.yaml").exists():
            raise FinishedRunError(f"the run in {folder} is not finished; start it again with the same command first")
        raise FinishedRunError(f"{folder} holds no run of train.py: it has no summary.json")


def read_finished_run(folder: Path) -> FinishedRun:
    """
    Raises:
        FinishedRunError: see `require_finished`; or a file is missing, cannot be read or is damaged.
    """
    require_finished(folder)
    return FinishedRun(
        folder=folder,
        summary=read_json(folder, "summary.json"),
        recipe=_read_yaml(folder, "recipe.yaml"),
        records=_read_log(folder, "metrics.jsonl"),
    )


def existing_file(folder: Path, name: str) -> Path:
    """Raises FinishedRunError if a run's file is missing."""
    path = folder / name
    if not path.is_file():
        raise FinishedRunError(f"the run in {folder} is not complete: {path} is missing")
    return path


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """Raises FinishedRunError if a run's file is missing, cannot be read, or holds no JSON object."""
    text = _read_text(folder, name)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError: a number of more than 4,300 digits, too
        raise damaged(folder / name, str(error)) from error
    return _mapping(content, folder / name)


def damaged(path: Path, reason: str) -> FinishedRunError:
    """The sentence about a file that is not as train.py wrote it."""
    return FinishedRunError(f"{path} is damaged ({' '.join(reason.split())}): restore it, or train again")


def _read_yaml(folder: Path, name: str) -> dict[str, Any]:
    text = _read_text(folder, name)
    try:
        content = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a date that does not exist
        raise damaged(folder / name, str(error)) from error
    return _mapping(content, folder / name)


def _read_log(folder: Path, name: str) -> list[Record]:
    path, text = folder / name, _read_text(folder, name)
    if text and not text.endswith("\n"):  # which a run that is still writing may leave
        raise damaged(path, f"line {text.count(chr(10)) + 1} is cut short")
    try:
        return read_metrics(path)
    except (ValueError, RecursionError) as error:
        raise FinishedRunError(str(error)) from error


def _read_text(folder: Path, name: str) -> str:
    path = existing_file(folder, name)
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise FinishedRunError(f"the run in {folder} cannot be read: {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise damaged(path, "it is not UTF-8 text") from error


def _mapping(content: Any, path: Path) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise damaged(path, f"it must hold keys and values, got {str(content)[:60]!r}")
    return content
