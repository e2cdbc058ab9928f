"""How far a run is: with model, optimizer and moving average all that a checkpoint holds."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from training.display import SmoothedLoss


@dataclass
class Progress:
    """Numbers that the next step of a run builds upon. An epoch's are those of the epoch under way."""

    step: int = 0  # optimizer steps done, those left out counted
    epoch_end_due: bool = False  # an epoch's last step is done, but not yet its evaluation
    epoch_loss: float = 0.0  # sum over its samples so far
    epoch_samples: int = 0
    epoch_replaced: int = 0  # pictures that could not be decoded
    skipped_steps: int = 0  # of the run, for a loss or gradient that was not finite
    smoothed_loss: SmoothedLoss = field(default_factory=SmoothedLoss)
    best: dict[str, Any] | None = None  # the best evaluation so far
    elapsed_s: float = 0.0  # of training before this process began

    def begin_epoch(self) -> None:
        """Forget the epoch that is over."""
        self.epoch_end_due = False
        self.epoch_loss, self.epoch_samples, self.epoch_replaced = 0.0, 0, 0

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Progress":
        """What `to_dict` returned."""
        return cls(**(values | {"smoothed_loss": SmoothedLoss(**values["smoothed_loss"])}))
