"""Types of command-line arguments that several commands take: checked while the line is read, in one sentence."""

import argparse
import os
from collections.abc import Callable
from pathlib import Path


def whole_number(least: int) -> Callable[[str], int]:
    """For argparse's `type`: a whole number of at least `least`."""

    def convert(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"must be a whole number of at least {least}, got {text!r}")
        return int(text)

    return convert


def output_file(text: str) -> Path:
    """For argparse's `type`: a file that can be written, checked before the work, not after it."""
    path = Path(text)
    if path.is_dir() or not path.absolute().parent.is_dir() or not os.access(path.absolute().parent, os.W_OK):
        raise argparse.ArgumentTypeError(f"{text} must be a file in a folder that can be written to")
    return path
