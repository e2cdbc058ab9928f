"""Errors of libraries that end a rank though nothing is wrong with the program: another process is gone."""

import os

from training.engine.agreement import peer_lost
from training.errors import Ending
from training.loading.workers import workers_lost
from training.system.compiler_cache import name_compiler_cache


class PeerLost(Ending):
    """Another rank has ended, which says why, or hangs. The message is one sentence."""


def ending_of(error: Exception) -> Ending | None:
    """The ending that stands for a lost rank or loader worker; None for any other error.

    An error of torch.compile gets a note that names the folder which may be at fault, and keeps its traceback.
    """
    if isinstance(error, RuntimeError) and (lost := peer_lost(error)):
        rank = os.environ.get("RANK", 0)
        return PeerLost(f"rank {rank} ends, because another rank has ended, which says why, or hangs: {lost}")
    name_compiler_cache(error)
    return workers_lost(error)
