"""A rank that loses its peer, by its end or by its silence, and says how it would be reported.

python tests/training/engine/lost_peer.py FILE_FOR_RENDEZVOUS RANK ends|hangs
"""

import sys
import time
from datetime import timedelta

import torch
import torch.distributed as dist

from training.engine.agreement import peer_lost

path, rank, way = sys.argv[1:]
timeout = timedelta(seconds=2 if way == "hangs" else 60)  # an end is noticed by itself, however slow the machine is
dist.init_process_group("gloo", store=dist.FileStore(path, 2), rank=int(rank), world_size=2, timeout=timeout)
dist.all_reduce(torch.ones(1))
if rank == "1":
    time.sleep(10 if way == "hangs" else 0)
    sys.exit()
try:
    dist.all_reduce(torch.ones(1))
except RuntimeError as error:
    print(peer_lost(error), flush=True)
