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
dist.init_process_group("gloo", store=dist.FileStore(path, 2), rank=int(rank), world_size=2)
dist.all_reduce(torch.ones(1))  # both are there, so that a short time limit does not hit a slow start
# An end is noticed by itself, however slow the machine is.
group = dist.new_group(timeout=timedelta(seconds=4 if way == "hangs" else 60))
dist.all_reduce(torch.ones(1), group=group)
if rank == "1":
    time.sleep(60 if way == "hangs" else 0)
    sys.exit()
try:
    dist.all_reduce(torch.ones(1), group=group)
except RuntimeError as error:
    print(peer_lost(error), flush=True)
