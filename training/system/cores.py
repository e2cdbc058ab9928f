"""How the CPU cores of a machine are shared by its processes."""

import os


def default_num_workers(local_processes: int) -> int:
    """Loader processes for each of the training processes on this machine: an even share of its CPU cores, at most 16.

    No core is set aside: a training process mostly waits for its device, while decoding images is what limits a
    TinyNet. Fewer cores than processes give 0, which loads in the training process itself. 16 bounds memory and
    start-up time; more is worth a try on a machine that has the cores and still waits for data.
    """
    return min(available_cores() // local_processes, 16)


def available_cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
