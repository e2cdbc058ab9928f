"""How far a run is: with model, optimizer and EMA all that a checkpoint holds."""

import dataclasses
import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from training.reporting.console import SmoothedLoss


@dataclass
class Progress:
    """Numbers that the next step of a run builds upon. An epoch's are those of the epoch under way."""

    step: int = 0  # optimizer steps done, those left out counted
    epoch_end_due: bool = False  # an epoch's last step is done, but not yet its evaluation
    epoch_loss: float = 0.0  # sum over its samples so far
    epoch_samples: int = 0
    epoch_replaced: int = 0  # images that could not be decoded
    skipped_steps: int = 0  # of the run, for a loss or gradient that was not finite
    smoothed_loss: SmoothedLoss = field(default_factory=SmoothedLoss)
    best: dict[str, Any] | None = None  # the best evaluation so far
    elapsed_s: float = 0.0  # of training before this process began
    overflowed_steps: int = 0  # of the run, left out by fp16's gradient scaler
    overflows_in_a_row: int = 0  # up to the last step
    best_sha256: str | None = None  # of the weights in best/, which `best` is about
    changes: list[str] = field(default_factory=list)  # what later starts changed, each a sentence with its step

    def begin_epoch(self) -> None:
        """Forget the epoch that is over."""
        self.epoch_end_due = False
        self.epoch_loss, self.epoch_samples, self.epoch_replaced = 0.0, 0, 0

    def begin_branch(self) -> None:
        """Forget what was another run's: a branch finds its own best, and may have found the way out of overflows."""
        self.best = self.best_sha256 = None
        self.overflows_in_a_row = 0

    def check_best(self, best: Path) -> None:
        """Forget the best evaluation if the folder `best` does not hold its weights: a start that was cut short may
        have put later ones there, and this one may not come to the same."""
        if self.best is None or not best.exists() or self.best_sha256 not in (None, weights_sha256(best)):
            self.best = self.best_sha256 = None

    def count_overflow(self, overflows: bool) -> None:
        """Takes in a step whose gradients are known."""
        self.overflowed_steps += overflows
        self.overflows_in_a_row = self.overflows_in_a_row + 1 if overflows else 0

    def note_changes(self, changes: list[str]) -> None:
        """What the start that resumes here changes."""
        self.changes += [f"step {self.step}: {change}" for change in changes]

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Progress":
        """What `to_dict` returned."""
        return cls(**(values | {"smoothed_loss": SmoothedLoss(**values["smoothed_loss"])}))


def weights_sha256(folder: Path) -> str | None:
    """Of a model's folder; None if it has no weights."""
    try:
        return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    except OSError:
        return None
