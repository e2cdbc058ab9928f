"""What a run leaves on the disk, and where it resumes.

runs/<name>/recipe.yaml      the resolved recipe
            metrics.jsonl    step and epoch records      curves.png  the same as plots
            summary.json     the result
            best/  last/     models for from_pretrained: weights, configuration, image processor
            checkpoints/     what a resume needs
"""

import errno
import re
import shutil
from pathlib import Path

from safetensors import SafetensorError

from modeling_tinynet import TinyNetForImageClassification, TinyNetImageProcessor
from training.errors import RunError
from training.run.checkpoint import latest_checkpoint
from training.system.replace_folder import remove_leftovers, replace_folder, temporary_name
from training.system.write_errors import errors_name_first_argument


def default_run_name(model: str, dataset: str) -> str:
    """A folder's name from model and dataset: `tinynet_c-imagenet-1k`."""
    parts = [re.sub(r"[^\w.-]+", "-", part.rstrip("/").rsplit("/", 1)[-1]).strip(".-") for part in (model, dataset)]
    return "-".join(part for part in parts if part) or "run"


def open_run(folder: Path, resume: str) -> Path | None:
    """Makes the run's folder and finds the checkpoint to resume from; None at the start of a run. For rank 0 only.

    Args:
        folder: of this run.
        resume: auto (continue if there is a checkpoint), must (continue), never (start anew), or a checkpoint's path.

    Raises:
        RunError: there is a run in the way, or none where there must be one.
        CheckpointError: every checkpoint is damaged.
        OSError: the folder cannot be made.
    """
    checkpoint: Path | None
    if resume not in ("auto", "must", "never"):
        if not Path(resume).is_dir():
            raise RunError(f"there is no checkpoint {resume}; --resume takes auto, must, never or a folder")
        # The same command continues with the branch once that has a checkpoint of its own.
        own = latest_checkpoint(folder / "checkpoints")
        checkpoint = own or Path(resume)
        if Path(resume).resolve().parent == checkpoint.resolve().parent and checkpoint.name != Path(resume).name:
            raise RunError(
                f"{folder} has continued to {checkpoint.name}: --resume auto resumes from there, and "
                f"--resume {resume} with another --run_name branches off"
            )
    else:
        own = checkpoint = latest_checkpoint(folder / "checkpoints") if folder.exists() else None
        if checkpoint is None and resume == "must":
            raise RunError(f"there is no checkpoint in {folder} to resume from; --resume auto starts a new run")
        if checkpoint is not None and resume == "never":
            raise RunError(f"{folder} already holds a run; choose another --run_name, or --resume auto to continue")
    if own is None and (folder / "summary.json").exists():  # a branch would write over it as a new run would
        raise RunError(f"{folder} holds the result of a run without its checkpoints; choose another --run_name")
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("best", "last"):
        remove_leftovers(folder / name)
    return checkpoint


def set_summary_aside(folder: Path, epochs: int) -> None:
    """Renames the summary of a run of so many epochs that is trained further: with one, it would pass for finished."""
    if (folder / "summary.json").exists():
        (folder / "summary.json").replace(folder / f"summary-{epochs}-epochs.json")


@errors_name_first_argument
def save_model_folder(folder: Path, model: TinyNetForImageClassification, processor: TinyNetImageProcessor) -> None:
    """Writes a complete `from_pretrained` folder and replaces the one before it, see `replace_folder`.

    Raises:
        OSError: it could not be written; the previous folder is intact.
    """
    temporary = temporary_name(folder)
    try:
        try:
            model.save_pretrained(temporary)
        except SafetensorError as error:  # its word for a full disk
            raise OSError(errno.ENOSPC, f"{folder} cannot be written: {error}") from error
        processor.save_pretrained(temporary)
        replace_folder(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
