"""`python -m training.doctor`."""

import sys

from training.command import run_command
from training.doctor.diagnosis import main
from training.loading.workers import workers_lost

if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:], recognize=workers_lost))
