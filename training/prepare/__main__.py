"""`python -m training.prepare`."""

import sys

from training.loading.workers import end_workers
from training.prepare.prepare import main
from training.system.terminal import escape_what_stdout_lacks

if __name__ == "__main__":
    escape_what_stdout_lacks()
    try:
        sys.exit(main())
    finally:
        end_workers()
