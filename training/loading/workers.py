"""The life of loader workers: which signals reach them, when they run, how long they may take, and how they end."""

import os
import signal
from collections.abc import Generator, Iterable
from types import FrameType

import torch

from training.errors import Ending
from training.system.interruption import SIGNALS, signal_at_parents_end


class WorkersLost(Ending, RuntimeError):
    """A loader worker died, or gives nothing within the time allowed. The message is one sentence."""

    prefix = "error: "

    def __str__(self) -> str:
        return f"rank {os.environ.get('RANK', 0)}: {super().__str__()}"


def begin_worker(worker_id: int) -> None:
    """`worker_init_fn` of the loaders."""
    # torchrun and batch systems signal whole process groups; a run needs its workers until it has saved.
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal_at_parents_end(signal.SIGKILL)  # elsewhere than on Linux, torch notices some seconds later
    if not torch.accelerator.is_available() and hasattr(os, "nice"):
        # The network's threads wait for each other at every layer, so that a worker which takes a core from one of
        # them stops them all. With the lowest priority, workers run while the network waits for them.
        os.nice(19)


def batches_in_time(
    loader: Iterable[dict[str, torch.Tensor]], timeout_s: int
) -> Generator[dict[str, torch.Tensor], None, None]:
    """The loader's batches, in the main thread. `DataLoader`'s own timeout does not cover a worker that stops after it
    has announced a batch: fetching the batch from it blocks.

    Raises:
        WorkersLost: there was no batch for `timeout_s` seconds.
    """

    def expire(number: int, frame: FrameType | None) -> None:
        raise WorkersLost(f"the loader's workers gave no batch for {timeout_s} seconds (--timeout_s)")

    batches = iter(loader)
    while True:
        signal.signal(signal.SIGALRM, expire)
        signal.alarm(timeout_s)
        try:
            batch = next(batches, None)
        finally:
            signal.alarm(0)
        if batch is None:
            return
        yield batch


def workers_lost(error: Exception) -> WorkersLost | None:
    """The ending for an error that says that a worker died; None for any other. torch's handler of SIGCHLD raises it
    wherever the training process happens to be, as a plain RuntimeError."""
    if isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker (pid"):
        return WorkersLost(str(error))
    return None
