"""`python -m training.audit`."""

import sys

from training.audit.audit import main
from training.command import run_command
from training.loading.workers import workers_lost

if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:], recognize=workers_lost))
