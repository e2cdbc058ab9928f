"""`python -m training.doctor`."""

import sys

from training.doctor.diagnosis import main
from training.loading.workers import end_workers
from training.system.terminal import escape_what_stdout_lacks

if __name__ == "__main__":
    escape_what_stdout_lacks()
    try:
        sys.exit(main(sys.argv[1:]))
    finally:
        end_workers()
