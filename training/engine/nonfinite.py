"""Sentences for a loss or gradients that are not finite. An error names the flags that lead past it."""

import shlex
from pathlib import Path

from training.config.train_config import TrainConfig

MOST_OVERFLOWS_IN_A_ROW = 20  # each halves the scale: from 65,536 down to 0.06, where no fp16 gradient needs it to be
MORE_SKIPS = 9  # offered beyond those that were met


def overflow(step: int, in_a_row: int, scale: float) -> str:
    """What is said of a step that the gradient scaler leaves out; `scale` is the one after it."""
    row = f", number {in_a_row} in a row" if in_a_row > 1 else ""
    return f"the fp16 gradients overflow at step {step}{row}: left out; the loss scale is now {scale:g}"


def ways_on(config: TrainConfig, run_folder: Path, resumed: Path | None, skipped: int | None = None) -> str:
    """The flags with which a run that has just failed can continue, as a sentence.

    Args:
        run_folder: of the run, whose newest checkpoint is named.
        resumed: the checkpoint that this start began from, if there is none in `run_folder`.
        skipped: steps with a loss that was not finite; None where leaving out steps does not help.
    """
    changes = [f"--lr {config.lr / 2:g}"]
    changes += ["--max_grad_norm 1"] if config.max_grad_norm is None else []
    changes += {"fp16": ["--precision bf16"], "bf16": ["--precision no"]}.get(config.precision or "no", [])
    change = " or ".join(changes)
    checkpoint = _newest(run_folder / "checkpoints") or resumed
    if checkpoint is None:
        way = f"nothing is saved yet, so the same command may begin anew with {change}"
    else:
        way = (
            f"branch off with --resume {shlex.quote(str(checkpoint))} --run_name {_free(run_folder)} and with {change}"
        )
    skip = f"--on_nonfinite skip:{skipped + MORE_SKIPS} leaves such steps out, or " if skipped else ""
    return f"the same command is likely to end here again; to get past it, {skip}{way}"


def _free(run_folder: Path) -> str:
    """The first of run-2, run-3, ... that is no run yet, as it is typed in a shell."""
    number = 2
    while run_folder.with_name(f"{run_folder.name}-{number}").exists():
        number += 1
    return shlex.quote(f"{run_folder.name}-{number}")


def _newest(checkpoints: Path) -> Path | None:
    return max(checkpoints.glob("step-*"), key=lambda path: int(path.name.removeprefix("step-")), default=None)
