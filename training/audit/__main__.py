"""`python -m training.audit`."""

import sys

from training.audit.audit import main
from training.system.terminal import escape_what_stdout_lacks

if __name__ == "__main__":
    escape_what_stdout_lacks()
    sys.exit(main())
