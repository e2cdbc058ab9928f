import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from torch.utils.data import DataLoader

from training.loading.workers import WorkersLost, batches_in_time, begin_worker, workers_lost


class Indices(torch.utils.data.Dataset):
    def __init__(self, slow: int | None = None) -> None:
        self.slow = slow

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> dict[str, int]:
        if index == self.slow:
            time.sleep(30)
        return {"index": index}


def seen(loader: DataLoader, timeout_s: int = 20) -> list[list[int]]:
    return [batch["index"].tolist() for batch in batches_in_time(loader, timeout_s)]


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_come_as_from_the_loader(workers):
    assert seen(DataLoader(Indices(), batch_size=4, num_workers=workers)) == [[0, 1, 2, 3], [4, 5]]
    assert signal.alarm(0) == 0  # no alarm is left behind


def test_a_batch_that_takes_too_long_is_an_error():
    with pytest.raises(WorkersLost, match="gave no batch for 1 seconds") as caught:
        seen(DataLoader(Indices(slow=2), batch_size=2), timeout_s=1)
    assert str(caught.value).startswith("rank 0: the loader's workers")


def test_other_errors_are_not_the_workers():
    lost = workers_lost(RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "))
    assert str(lost) == "rank 0: DataLoader worker (pid 7) is killed by signal: Killed. "
    assert workers_lost(RuntimeError("CUDA out of memory")) is None
    in_worker = "Caught RuntimeError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n"
    assert workers_lost(RuntimeError(in_worker)) is None  # a bug that a worker met


WORKERS = """
import sys, time
from torch.utils.data import DataLoader
from tests.training.loading.test_workers import Indices
from training.loading.workers import begin_worker

batches = iter(DataLoader(Indices(slow=5), batch_size=1, num_workers=2, worker_init_fn=begin_worker))
next(batches), next(batches)
print("ready", flush=True)
time.sleep(60)
"""


def test_workers_outlast_signals_to_their_group_but_not_their_run():
    root = Path(__file__).parents[3]
    run = subprocess.Popen(
        [sys.executable, "-c", WORKERS], cwd=root, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert run.stdout.readline() == "ready\n"
    workers = psutil.Process(run.pid).children()
    assert len(workers) == 2
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        for worker in workers:
            worker.send_signal(number)
    assert psutil.wait_procs(workers, timeout=1)[0] == []
    run.kill()
    run.wait()
    if sys.platform == "linux":
        assert psutil.wait_procs(workers, timeout=15)[1] == []  # one of them sleeps for 30 seconds


@pytest.mark.skipif(torch.accelerator.is_available(), reason="workers give way where the network runs on the CPU")
def test_workers_on_the_networks_cores_have_the_lowest_priority():
    child = os.fork()
    if child == 0:
        begin_worker(0)
        os._exit(os.nice(0))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 19
