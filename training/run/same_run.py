"""What must be the same for all processes of a run: its folder, its checkpoint, its recipe and its data."""

import hashlib
import os
import socket
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object

from training.errors import RunError

SEEN_WITHIN_S = 10  # network file systems show a new file a little later
# Fields of a configuration that may differ from machine to machine: where things lie, and what only speed depends on.
OF_A_MACHINE = ("dataset", "class_names", "output_dir", "resume", "report_to", "push_to_hub", "num_workers")


def check_same_run(run_folder: Path, checkpoint: Path | None, facts: Mapping[str, Any]) -> None:
    """To be called on every rank before the checkpoint is read. With one process nothing happens.

    Without a file system that all machines share, rank 0 would save where a later rank 0 may not look, and begin anew
    beside its own checkpoints.

    Args:
        run_folder: exists on rank 0.
        checkpoint: the one that rank 0 has chosen; None at the start of a run.
        facts: name -> value, of the recipe and the data. What is only a machine's own concern is left out here.

    Raises:
        RunError: on every rank, for the first one that sees another folder, another checkpoint or other facts.
    """
    state = PartialState()
    if state.num_processes == 1:
        return
    facts = {name: value for name, value in facts.items() if name not in OF_A_MACHINE}
    token = run_folder / f".seen-{uuid.uuid4().hex}"
    words: list[Any] = [None]
    if state.is_main_process:
        try:
            for left_over in run_folder.glob(".seen-*"):  # by a kill
                left_over.unlink(missing_ok=True)
            token.touch()
            words[0] = (token.name, _me(), run_folder.resolve(), _digest(checkpoint), facts)
        except OSError as failure:
            words[0] = failure
    (told,) = broadcast_object_list(words)
    if isinstance(told, OSError):
        raise RunError(f"{run_folder} cannot be written: {told}")
    try:
        problem = None if state.is_main_process else _problem(run_folder, checkpoint, facts, *told)
        problems = [problem for problem in gather_object([problem]) if problem]
    finally:
        if state.is_main_process:
            token.unlink(missing_ok=True)
    if problems:
        raise RunError(problems[0])


def _problem(
    run_folder: Path,
    checkpoint: Path | None,
    facts: Mapping[str, Any],
    token: str,
    main: str,
    main_folder: Path,
    digest: str | None,
    main_facts: Mapping[str, Any],
) -> str | None:
    """What is not as on rank 0, in a sentence."""
    if not _appears(run_folder / token):
        own = sorted(path.name for path in run_folder.glob("checkpoints/step-*"))
        has = f", and has its own {own[-1]}" if own else ""
        return (
            f"{_me()} does not see what {main} has written to {main_folder}; it looks in {run_folder.resolve()}{has}: "
            "a run on several machines needs a folder that all of them share (NFS, Lustre, ...), as --output_dir"
        )
    if _digest(checkpoint) != digest:
        return (
            f"{_me()} does not see the checkpoint {checkpoint} that {main} resumes from: put it where all machines "
            "find the same one"
        )
    for name, value in main_facts.items():
        if facts[name] != value:
            texts = [repr(facts[name]), repr(value)]
            values = (
                f"{name} {texts[0]}, {main} {texts[1]}" if max(map(len, texts)) < 100 else f"other {name} than {main}"
            )
            return f"{_me()} has {values}: start all machines with the same command, on the same data"
    return None


def _me() -> str:
    return f"rank {PartialState().process_index} on {socket.gethostname()}"


def _appears(path: Path) -> bool:
    deadline = time.monotonic() + SEEN_WITHIN_S
    while not path.exists():
        if time.monotonic() > deadline:
            return False
        for folder in (path.parent.parent, path.parent):
            if folder.is_dir():
                os.listdir(folder)  # has a network file system ask its server again
        time.sleep(0.1)
    return True


def _digest(checkpoint: Path | None) -> str | None:
    """Of the manifest, which holds the checksums of all else; None where there is none."""
    try:
        return hashlib.sha256((checkpoint / "manifest.json").read_bytes()).hexdigest() if checkpoint else None
    except OSError:
        return None
