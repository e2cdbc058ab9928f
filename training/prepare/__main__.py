"""`python -m training.prepare`."""

import sys

from training.command import run_command
from training.loading.workers import workers_lost
from training.prepare.prepare import main

RESUMES = "the same command continues with the shards that are finished"

if __name__ == "__main__":
    sys.exit(
        run_command(
            main,
            sys.argv[1:],
            interrupted=f"stopped; {RESUMES}",
            disk_refuses=f": make room or choose another --output; {RESUMES}",
            recognize=workers_lost,
        )
    )
