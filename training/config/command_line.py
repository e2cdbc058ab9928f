"""The command line of train.py: a flag for each setting, and those that belong to no run."""

import argparse
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args, get_origin

from training.command import CommandParser
from training.config.fields import FIELDS, GROUPS, kind_of, short_text
from training.config.suggestion import suggestion


@dataclass(frozen=True)
class CommandLine:
    """What the command line says beside the configuration."""

    recipe: str | None  # the file, or None for the defaults
    explain: bool  # print what the run would be, and stop
    doctor: int | None  # seconds to measure what limits the run before it begins
    rescaling: str | None = None  # the sentence of `rescaled`, for people to see


def read_command_line(argv: Sequence[str]) -> tuple[dict[str, Any], CommandLine]:
    """The settings that flags state, as text, and what is said beside them.

    Exits with code 2 and one sentence on stderr for a flag that is unknown or lacks its value; with code 0 after
    `--help`.
    """
    parser = _build_parser()
    namespace, unknown = parser.parse_known_args([_with_underscores(argument) for argument in argv])
    if unknown:
        parser.error(_unknown_argument(unknown))
    flags = vars(namespace)
    recipe, explain, doctor = flags.pop("recipe"), flags.pop("explain"), flags.pop("doctor")
    if doctor is not None and not (doctor.isdecimal() and int(doctor) > 0):
        parser.error(f"doctor must be a whole number of seconds, got {doctor!r}")
    return flags, CommandLine(recipe, explain, None if doctor is None else int(doctor))


EPILOG = """\
examples:
  the published recipe on one node of eight GPUs:
    accelerate launch --config_file configuration/accelerate/eight_gpus.yaml train.py \\
        --recipe configuration/tinynet_c.yaml --dataset ILSVRC/imagenet-1k
  what that run would be, without training:
    accelerate launch train.py --recipe configuration/tinynet_c.yaml --explain
  fine-tune published weights on a folder with train/CLASS/*.jpg and val/CLASS/*.jpg:
    accelerate launch train.py --recipe configuration/finetune.yaml --model timm/tinynet_a.in1k --dataset photos
"""


def _build_parser() -> CommandParser:
    parser = CommandParser(
        launched=True,
        usage="accelerate launch train.py [--recipe FILE] [--explain] [--doctor [SECONDS]] [--FLAG VALUE ...]",
        description="Train a TinyNet. Every flag is also a key of a recipe; defaults < recipe < flags.\n"
        "A switch is turned off by --no_NAME, a value unset by null.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    parser.add_argument("--recipe", metavar="FILE", default=None, help="YAML file of fields to change (default: none)")
    parser.add_argument("--explain", action="store_true", default=False, help="print what the run would be, and stop")
    parser.add_argument(
        "--doctor",
        nargs="?",
        const="20",
        default=None,
        metavar="SECONDS",
        help="measure what limits the run for so many seconds (20 if none are given), then train",
    )
    for group, description in GROUPS.items():
        section = parser.add_argument_group(group, description)
        for field in (field for field in FIELDS.values() if field.metadata["group"] == group):
            _add_flag(section, field)
    return parser


def _add_flag(section: argparse._ArgumentGroup, field: dataclasses.Field) -> None:
    kind = kind_of(field.name)
    help = field.metadata["help"]
    if field.default is not None:
        help += f" (default: {short_text(field.default)}{', as published' if field.metadata['published'] else ''})"
    if kind is bool:
        section.add_argument(f"--{field.name}", action="store_const", const=True, help=help)
        section.add_argument(
            f"--no_{field.name}", dest=field.name, action="store_const", const=False, help=argparse.SUPPRESS
        )
    elif get_origin(kind) is tuple:
        section.add_argument(f"--{field.name}", nargs=2, metavar=("LOW", "HIGH"), help=help)
    else:
        choices = "{" + ",".join(get_args(kind)) + "}"
        metavar = {int: "N", float: "X", str: "TEXT"}.get(kind, choices)
        section.add_argument(f"--{field.name}", metavar=metavar, help=help)


def _with_underscores(argument: str) -> str:
    """`--weight-decay=1e-4` is `--weight_decay=1e-4`: the original trainer wrote hyphens."""
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument[2:].partition("=")
    return "--" + name.replace("-", "_") + equals + value


def _unknown_argument(arguments: list[str]) -> str:
    flag = next((argument for argument in arguments if argument.startswith("--")), None)
    if flag is None:
        return f"unexpected argument {arguments[0]!r}; every value needs its flag before it"
    name = flag[2:].partition("=")[0]
    switches = [f"no_{field}" for field in FIELDS if kind_of(field) is bool]
    names = [*FIELDS, *switches, "recipe", "explain", "doctor", "help"]
    return f"unknown flag --{name}{suggestion(name, names, prefix='--')}"
