"""The life of loader workers: which signals reach them, when they run, how long they may take, and how they end."""

import multiprocessing
import os
import signal
from collections.abc import Generator, Iterable
from types import FrameType

import torch

from training.system.interruption import SIGNALS, signal_at_parents_end


class WorkersLost(RuntimeError):
    """Loader workers give nothing within the time allowed. The message is one sentence."""


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


def workers_lost(error: RuntimeError) -> bool:
    """Whether an error says that workers hang or died. Of a dead one, torch's handler of SIGCHLD tells wherever the
    training process happens to be, by a plain RuntimeError."""
    return isinstance(error, WorkersLost) or "DataLoader worker" in str(error)


def end_workers() -> None:
    """Kill all workers, at the end of a process. After an error they may still be there, do not react to SIGTERM, and
    Python would wait for them for ever."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would raise for each
    for worker in multiprocessing.active_children():
        worker.kill()
        worker.join()
