"""Command-line arguments that several commands take: checked while the line is read, in one sentence."""

import argparse
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from pydantic import ValidationError

from training.config.fields import FIELDS, one_sentence, short_text
from training.config.train_config import TrainConfig
from training.system.cores import default_num_workers

DATA_FLAGS = (
    "dataset",
    "dataset_name",
    "train_split",
    "validation_split",
    "image_column",
    "label_column",
    "validation_fraction",
)


def whole_number(least: int) -> Callable[[str], int]:
    """For argparse's `type`: a whole number of at least `least`."""

    def convert(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"must be a whole number of at least {least}, got {text!r}")
        return int(text)

    return convert


def fraction(text: str) -> float:
    """For argparse's `type`: a number between 0 and 1, both excluded."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < 1:
        raise argparse.ArgumentTypeError(f"must be a number between 0 and 1, got {text!r}")
    return number


def nonempty(text: str) -> str:
    """For argparse's `type`: not empty, which would mean the current folder to one reader and nothing to another."""
    if not text.strip():
        raise argparse.ArgumentTypeError(f"must not be empty, got {text!r}")
    return text


def input_file(text: str) -> str:
    """For argparse's `type`: a file that can be read."""
    if not Path(text).is_file() or not os.access(text, os.R_OK):
        raise argparse.ArgumentTypeError(f"{text} must be a file that can be read")
    return text


def output_file(text: str) -> Path:
    """For argparse's `type`: a file that can be written, checked before the work, not after it."""
    path = Path(text)
    if path.is_dir() or not path.absolute().parent.is_dir() or not os.access(path.absolute().parent, os.W_OK):
        raise argparse.ArgumentTypeError(f"{text} must be a file in a folder that can be written to")
    return path


def add_data_flags(parser: argparse.ArgumentParser, names: Sequence[str] = DATA_FLAGS) -> argparse._ArgumentGroup:
    """Add those flags of train.py that say what the dataset is; returns their group. `data_config` reads all of them.

    Args:
        names: which of `DATA_FLAGS`, `dataset` among them.
    """
    data = parser.add_argument_group("data, as for train.py")
    for name in names:
        field, required = FIELDS[name], name == "dataset"
        default = "" if required or field.default is None else f" (default: {short_text(field.default)})"
        data.add_argument(
            f"--{name}",
            required=required,
            type=str if name == "validation_fraction" else nonempty,
            default=field.default,
            metavar="X" if name == "validation_fraction" else "TEXT",
            help=field.metadata["help"] + default,
        )
    return data


def add_num_workers_flag(group: argparse._ArgumentGroup) -> None:
    """Add `--num_workers` of a command that works alone on its machine."""
    group.add_argument(
        "--num_workers",
        type=whole_number(0),
        default=default_num_workers(1),
        metavar="N",
        help="worker processes; 0 works in this one (default: by CPU cores, here %(default)s)",
    )


def data_config(parser: argparse.ArgumentParser, options: argparse.Namespace) -> TrainConfig:
    """The configuration of these flags; ends with code 2 and one sentence where one is wrong."""
    try:
        return TrainConfig(**{name: getattr(options, name) for name in DATA_FLAGS})
    except ValidationError as error:
        parser.error(one_sentence(error))
