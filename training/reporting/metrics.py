"""What a run writes down: `metrics.jsonl`, one JSON object a line, and `summary.json`.

Two kinds of lines, told apart by "kind":

    step   step, epoch, loss, loss_smoothed, lr, grad_norm, loss_scale, images_per_s, data_wait_s, memory_mb
    epoch  epoch, step, train_loss, lr, raw, ema, images_per_s, time_shares, epoch_s, replaced_images, skipped_steps,
           overflowed_steps

`loss_scale` is fp16's, after the step; null in another precision. `skipped_steps` (a loss or gradient that was not
finite) and `overflowed_steps` (left out by fp16's gradient scaler) count from the start of the run. `lr_backbone` is
in a step record where the backbone has its own learning rate.

`step` is the number of optimizer steps done and `epoch` the number of epochs done, so epoch = step / steps_per_epoch:
a fraction in a step record, a whole number from 1 on in an epoch record. `raw` and `ema` are the integer counts of one
evaluation, {"n", "top_1_correct", "top_5_correct"}, with the metrics of `training.evaluation.metrics` by name, or null
where there was none. A record has the metrics that were declared when it was written.

JSON has no NaN or infinity. Such a number is written as null, and the record names it and says what it was:
{"loss": null, "nonfinite": {"loss": "nan"}}. A null that "nonfinite" does not name was never measured.
"""

import errno
import io
import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from training.errors import RunError
from training.system.write_errors import errors_name, errors_name_first_argument

Record = dict[str, Any]


class MetricsLog:
    """Appends to `metrics.jsonl`; each record is one write of one whole line. For rank 0 only.

    Opening a log that exists continues it; a last line that was cut short is dropped.

    Raises:
        OSError: the folder does not exist or cannot be written.
        RunError: it is no file, or damaged elsewhere than in its last line.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        if self.path.is_dir():
            raise RunError(f"{self.path} must be a file, and is a folder: choose another --run_name, or remove it")
        if self.path.exists():
            _keep_lines(self.path, lambda record: True)
        self._file = io.FileIO(self.path, "a")  # unbuffered: a line is there once it is written

    def log_step(
        self,
        *,
        step: int,
        epoch: float,
        loss: float,
        loss_smoothed: float,
        lr: float,
        grad_norm: float | None,
        images_per_s: float | None,
        data_wait_s: float,
        memory_mb: float | None = None,
        **more: Any,
    ) -> Record:
        """Write one step record and return it as it was given. `data_wait_s` counts from the previous step record;
        `memory_mb` is the device's peak, None on a CPU."""
        return self._append(
            {
                "kind": "step",
                "step": step,
                "epoch": epoch,
                "loss": loss,
                "loss_smoothed": loss_smoothed,
                "lr": lr,
                "grad_norm": grad_norm,
                "images_per_s": images_per_s,
                "data_wait_s": data_wait_s,
                "memory_mb": memory_mb,
                **more,
            }
        )

    def log_epoch(
        self,
        *,
        epoch: int,
        step: int,
        train_loss: float,
        lr: float,
        raw: Mapping[str, Any] | None,
        ema: Mapping[str, Any] | None,
        images_per_s: float | None,
        time_shares: Mapping[str, float],
        epoch_s: float,
        **more: Any,
    ) -> Record:
        """Write one epoch record and return it as it was given. `time_shares` are percentages by part, from
        the step timer; `epoch_s` is the epoch's wall time with its evaluation."""
        return self._append(
            {
                "kind": "epoch",
                "epoch": epoch,
                "step": step,
                "train_loss": train_loss,
                "lr": lr,
                "raw": raw,
                "ema": ema,
                "images_per_s": images_per_s,
                "time_shares": time_shares,
                "epoch_s": epoch_s,
                **more,
            }
        )

    def sync(self) -> None:
        """Force the log to the disk. Called before a checkpoint is saved, the log survives a power cut at least as far
        as the checkpoint does, so a resume leaves no gap."""
        with errors_name(self.path):
            os.fsync(self._file.fileno())

    def truncate_after(self, step: int, *, epoch_end_due: bool = False) -> None:
        """Forget the records of later steps than `step`, which a run resumed from there is about to write again; with
        `epoch_end_due` the epoch's that ends with this step, too."""

        def wanted(record: Record) -> bool:
            is_redone = epoch_end_due and record["kind"] == "epoch" and record["step"] == step
            return record["step"] <= step and not is_redone

        self._file.close()
        _keep_lines(self.path, wanted)
        self._file = io.FileIO(self.path, "a")

    def close(self) -> None:
        self._file.close()

    def _append(self, record: Record) -> Record:
        line = _dump(record).encode() + b"\n"
        with errors_name(self.path):
            written = self._file.write(line)
        if written != len(line):
            text = f"only {written} of {len(line)} bytes could be written; is the disk full?"
            raise OSError(errno.ENOSPC, text, str(self.path))
        return record


def read_metrics(path: str | os.PathLike[str]) -> list[Record]:
    """The records of a `metrics.jsonl`, oldest first. A last line without its newline, which a run that is writing or
    was killed leaves, is passed over.

    Raises:
        RunError: any other line is not a record; the sentence names the file and the line.
    """
    return [record for _, record in _read_lines(Path(path))]


def write_summary(path: str | os.PathLike[str], summary: Mapping[str, Any]) -> None:
    """Write `summary` as readable JSON, whole or not at all."""
    write_atomically(path, _dump(summary, indent=2).encode() + b"\n")


def goodness(counts: Mapping[str, Any]) -> tuple[int, float]:
    """What decides between two evaluations, the greater the better: the images that are correct; among equals the
    smaller loss, which tells them apart on a small validation set. A loss that is not finite, or null, loses."""
    loss = counts.get("loss")
    return counts["top_1_correct"], -math.inf if loss is None or not math.isfinite(loss) else -loss


@errors_name_first_argument
def write_atomically(path: str | os.PathLike[str], data: bytes) -> None:
    """Replace `path` by `data` in one move: a reader, or a run killed here, finds the old file or the new one."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def _keep_lines(path: Path, wanted: Callable[[Record], bool]) -> None:
    kept = b"".join(line + b"\n" for line, record in _read_lines(path) if wanted(record))
    if len(kept) != path.stat().st_size:
        write_atomically(path, kept)


def _read_lines(path: Path) -> list[tuple[bytes, Record]]:
    # What follows the last newline is nothing, or a record whose writing was cut short.
    lines = path.read_bytes().split(b"\n")[:-1]
    return [(line, _parse(line, f"{path}, line {number}")) for number, line in enumerate(lines, start=1)]


def _parse(line: bytes, place: str) -> Record:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise RunError(f"{place} is not JSON ({error}); remove the line or restore the file") from error
    if isinstance(record, dict) and record.get("kind") in ("step", "epoch") and type(record.get("step")) is int:
        return record
    raise RunError(f'{place} is not a metrics record: it needs "kind" (step or epoch) and a whole "step"')


def _dump(record: Mapping[str, Any], indent: int | None = None) -> str:
    nonfinite: dict[str, str] = {}
    finite = _without_nonfinite(record, (), nonfinite)
    if nonfinite:
        finite["nonfinite"] = nonfinite
    return json.dumps(finite, indent=indent, allow_nan=False)


def _without_nonfinite(value: Any, name: tuple[str, ...], found: dict[str, str]) -> Any:
    """`value` with null for each NaN or infinity, whose dotted names go to `found`."""
    if isinstance(value, Mapping):
        return {key: _without_nonfinite(item, (*name, str(key)), found) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nonfinite(item, (*name, str(index)), found) for index, item in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        found[".".join(name)] = str(value)
        return None
    return value
