"""Which sample goes where: pure functions of (seed, epoch), so that nothing about the order has to be saved.

A global batch is a slice of the epoch's permutation and knows nothing of processes: any number of processes, with any
accumulation and any number of loader workers, trains on the same global batches in the same order.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from training.data.permutation import epoch_permutation
from training.errors import RunError


def evaluation_indices(num_samples: int, rank: int, num_processes: int) -> range:
    """The samples that `rank` evaluates: over all ranks each index exactly once, without padding.

    A rank may get none when there are fewer samples than processes.
    """
    return range(num_samples * rank // num_processes, num_samples * (rank + 1) // num_processes)


class MicroBatch(NamedTuple):
    """What one rank takes through the model at once."""

    indices: list[int]
    global_size: int  # samples in the whole optimizer step: all ranks, all micro-batches
    ends_step: bool  # the optimizer steps after this one


@dataclass(frozen=True)
class TrainingPlan:
    """How an epoch falls into optimizer steps, and a step into each rank's micro-batches.

    Global batch k is `permutation[k * G : (k + 1) * G]`, and its pieces go round the ranks: the first to rank 0, the
    next to rank 1, ... A last, short batch is cut into equally many pieces for each rank, of sizes that differ by at
    most one and are at least two (BatchNorm needs two samples). What is too little for that is left out of the epoch.

    Args:
        num_samples: size of the training set.
        global_batch_size: samples in one optimizer step, over all processes (G).
        per_device_batch_size: samples that a process takes through the model at once; the rest is accumulation.
        num_processes: ranks that train together.
        drop_last: leave out the last, short batch.

    Raises:
        RunError: a number is not positive, the global batch cannot be made of such micro-batches, or there are too
            few samples for a single step.
    """

    num_samples: int
    global_batch_size: int
    per_device_batch_size: int
    num_processes: int = 1
    drop_last: bool = False

    def __post_init__(self) -> None:
        for name in ("num_samples", "global_batch_size", "per_device_batch_size", "num_processes"):
            if getattr(self, name) < 1:
                raise RunError(f"{name} must be positive, got {getattr(self, name)}")
        if self.global_batch_size % (self.num_processes * self.per_device_batch_size):
            raise RunError(self._indivisible())
        if self.steps_per_epoch == 0 and self.drop_last:
            raise RunError(
                f"{self.num_samples} training samples are fewer than one global batch of {self.global_batch_size}, "
                "and drop_last leaves out short ones: lower global_batch_size or set drop_last to false"
            )
        if self.steps_per_epoch == 0:
            raise RunError(
                f"{self.num_samples} training samples are too few for {self.num_processes} processes: each needs at "
                f"least {self._smallest_micro_batch}"
            )

    def _indivisible(self) -> str:
        size, device_size, processes = self.global_batch_size, self.per_device_batch_size, self.num_processes
        product = processes * device_size
        problem = (
            f"global_batch_size {size} is not a multiple of {processes} processes x per_device_batch_size "
            f"{device_size} = {product}"
        )
        below, above = size // product * product, math.ceil(size / product) * product
        sizes = f"global_batch_size {below} or {above}" if below else f"global_batch_size {above}"
        if size % processes:
            return f"{problem}: with that many processes choose {sizes}"
        share = size // processes
        divisors = [n for n in range(min(2, share), share + 1) if share % n == 0]
        near = {
            max((n for n in divisors if n <= device_size), default=share),
            min((n for n in divisors if n >= device_size), default=share),
        }
        return f"{problem}: choose per_device_batch_size {' or '.join(map(str, sorted(near)))}, or {sizes}"

    @property
    def accumulation_steps(self) -> int:
        """Micro-batches that each rank adds up for one full optimizer step."""
        return self.global_batch_size // (self.num_processes * self.per_device_batch_size)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in an epoch, the short one counted."""
        return self._full_steps + (self._last_step[1] > 0)

    @property
    def samples_per_epoch(self) -> int:
        """Samples that an epoch trains on: `num_samples` less what is left out at its end."""
        return self._full_steps * self.global_batch_size + self._last_step[1]

    @property
    def _full_steps(self) -> int:
        return self.num_samples // self.global_batch_size

    @property
    def _smallest_micro_batch(self) -> int:
        return min(2, self.per_device_batch_size)

    @property
    def _last_step(self) -> tuple[int, int]:
        """(micro-batches of each rank, samples of all ranks) of the short step, (0, 0) without one."""
        left = self.num_samples % self.global_batch_size
        if self.drop_last or not left:
            return 0, 0
        round_size = self.num_processes * self.per_device_batch_size
        rounds = math.ceil(left / round_size)
        if left < rounds * self.num_processes * self._smallest_micro_batch:
            rounds -= 1
        return rounds, min(left, rounds * round_size)

    def step_shape(self, step: int) -> tuple[int, int]:
        """(micro-batches of each rank, samples of all ranks together) of the epoch's optimizer step number `step`."""
        return (self.accumulation_steps, self.global_batch_size) if step < self._full_steps else self._last_step

    def micro_batches_before(self, step: int) -> int:
        """Micro-batches that each rank takes before optimizer step number `step` of the whole run."""
        epochs, step_in_epoch = divmod(step, self.steps_per_epoch)
        an_epoch = self._full_steps * self.accumulation_steps + self._last_step[0]
        return epochs * an_epoch + step_in_epoch * self.accumulation_steps

    def micro_batches(self, seed: int, epoch: int, rank: int, start_step: int = 0) -> Iterator[MicroBatch]:
        """What `rank` trains on in `epoch`, from its optimizer step number `start_step` on.

        Weighted by `1 / global_size`, the per-sample losses of all ranks add up to the mean over the global batch.
        """
        order = epoch_permutation(self.num_samples, seed, epoch)
        for step in range(start_step, self.steps_per_epoch):
            rounds, size = self.step_shape(step)
            pieces = rounds * self.num_processes
            first = step * self.global_batch_size
            for turn in range(rounds):
                piece = turn * self.num_processes + rank
                start, stop = first + size * piece // pieces, first + size * (piece + 1) // pieces
                yield MicroBatch(order[start:stop].tolist(), size, ends_step=turn == rounds - 1)


class TrainBatchSampler:
    """`batch_sampler` of a `DataLoader` for one rank and a whole run.

    Each item is a micro-batch of (epoch, index) pairs. The epoch travels with the index, so that a loader worker needs
    no other word of it and works on across epochs.

    Args:
        plan: what the run consists of.
        seed: of the run.
        rank: of this process.
        total_steps: optimizer steps of the run, over all epochs.
        start_step: optimizer steps already done; the sampler starts there at once.
    """

    def __init__(self, plan: TrainingPlan, *, seed: int, rank: int, total_steps: int, start_step: int = 0) -> None:
        self.plan = plan
        self.seed = seed
        self.rank = rank
        self.total_steps = total_steps
        self.start_step = start_step

    def __len__(self) -> int:
        return self.plan.micro_batches_before(self.total_steps) - self.plan.micro_batches_before(self.start_step)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        step = self.start_step
        while step < self.total_steps:
            epoch, step_in_epoch = divmod(step, self.plan.steps_per_epoch)
            for micro_batch in self.plan.micro_batches(self.seed, epoch, self.rank, step_in_epoch):
                yield [(epoch, index) for index in micro_batch.indices]
                step += micro_batch.ends_step
                if step == self.total_steps:
                    return
