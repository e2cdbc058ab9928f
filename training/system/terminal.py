"""What people see of a program, whatever their terminal can show."""

import io
import sys


def escape_what_stdout_lacks() -> None:
    """Prints characters that the terminal's encoding lacks as escapes, as stderr does: they must not end a program."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
