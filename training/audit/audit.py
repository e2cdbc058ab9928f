"""Reads every image of a dataset before a long run, and reports what training would meet.

python -m training.audit --dataset photos [--report audit.json]

Images are decoded by the trainer's own rule, in parallel. Exit code 0: nothing stops training, though there may be
warnings; 1: some images cannot be decoded, and each of them would end a run; 2: the command or the dataset as a
whole is wrong.
"""

import argparse
from collections.abc import Sequence

from tqdm import tqdm

from training.audit.facts import audit_split, image_facts
from training.audit.report import report, verdict
from training.audit.summary import num_undecodable, summarize
from training.command import CommandParser
from training.config.arguments import add_data_flags, add_num_workers_flag, data_config, output_file, whole_number
from training.data.columns import read_column
from training.data.sources import load_splits
from training.errors import UserError
from training.reporting.metrics import write_summary

EPILOG = """\
what it looks for:
  undecodable images (empty, damaged, web pages named .jpg, floating-point pixels, ...): each would end a run
  leaks: validation images that are training images too, byte for byte, so that the accuracy is too good
  copies within a split, and the same image under several labels
  hidden or non-image files in class folders
  classes that are small, or absent from a split, and the order of the classes
  sizes, formats and modes, and what training changes: EXIF rotation, frames, transparency, 16 bit

A sample's number is the one in train.py's messages. Labels that are missing or out of range are refused
as train.py refuses them. A dataset cannot be streamed here: all of it is read.

exit code:
  0  nothing stops training; there may be warnings
  1  images cannot be decoded
  2  a flag is wrong, or the dataset cannot be trained on at all; one sentence says why

examples:
  python -m training.audit --dataset photos
  python -m training.audit --dataset ILSVRC/imagenet-1k --num_workers 16 --report audit.json --list 1000
"""


def build_parser() -> CommandParser:
    parser = CommandParser(
        prog="python -m training.audit",
        description=__doc__.splitlines()[0],
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_data_flags(parser)
    running = parser.add_argument_group("running")
    add_num_workers_flag(running)
    results = parser.add_argument_group("results")
    results.add_argument("--report", type=output_file, metavar="FILE.json", help="write counts and findings as JSON")
    results.add_argument(
        "--list",
        type=whole_number(0),
        default=10,
        metavar="N",
        dest="max_listed",
        help="names for each finding, here and in --report (default: %(default)s)",
    )
    return parser


def main(argv: Sequence[str]) -> int:
    """Print the report. Returns the exit code: 0; 1 if images cannot be decoded.

    Raises:
        UserError: the dataset cannot be read, or the report not be written.
    """
    parser = build_parser()
    options = parser.parse_args(argv)
    config = data_config(parser, options)
    splits = load_splits(config.dataset, **config.source())
    print(splits.description, end="\n\n", flush=True)  # or loader workers, which are forks, print it too

    audited = {}
    total = len(splits.train) + len(splits.validation)
    with tqdm(total=total, desc="audit", unit=" images", dynamic_ncols=True) as bar:
        for name, split in splits.by_name.items():
            labels = read_column(split, splits.label_column)
            audited[name] = audit_split(
                image_facts(split, splits.image_column, name),
                labels.to_numpy(),
                num_workers=options.num_workers,
                max_listed=options.max_listed,
                progress=bar.update,
            )
    summary = summarize(audited["train"], audited["validation"], splits.class_names, options.max_listed)
    summary["other_files"] = splits.num_other_files
    print(report(summary), verdict(summary), sep="\n\n")
    if options.report:
        try:
            write_summary(options.report, {"data": splits.description, **summary, "verdict": verdict(summary)})
        except OSError as error:
            raise UserError(f"--report {options.report} cannot be written: {error.strerror}") from error
    return 1 if num_undecodable(summary) else 0
