"""TinyNet checkpoints from elsewhere to a `from_pretrained` folder: PyTorch's, timm's, safetensors, and MindSpore's.

python convert.py ema_best.ckpt converted --class_names names.txt

Every tensor of the file is used or named in an error, and its shapes tell which of the five networks it is. What no
checkpoint holds is taken as published: BatchNorm's eps, and the preprocessing; timm's command line is heeded where it
is in the file. MindSpore is not needed, and code in a pickle never runs.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from transformers.utils import logging

from conversion.checkpoint import Checkpoint, ConversionError, one_set_only
from conversion.mindspore import read_mindspore
from conversion.network import build, configure, recognize
from conversion.output import WEIGHTS_FILE, write_or_nothing
from conversion.pytorch import is_model_folder, read_pickled, read_safetensors
from conversion.report import report
from training.command import CommandParser, run_command
from training.data.class_names import read_class_names


def read_checkpoint(path: Path, ema: bool = False) -> Checkpoint:
    """
    Args:
        ema: Of a file with two sets of weights, take the exponential moving average.

    Raises:
        ConversionError: There is no such file, it is no checkpoint, it is damaged, or a tensor in it is of no use.
    """
    try:
        if path.is_dir() and is_model_folder(path):
            raise ConversionError(f"{path} needs no conversion: from_pretrained reads it as it is")
        if not path.is_file():
            raise ConversionError(f"{path} is not a file" if path.exists() else f"{path} does not exist")
        with path.open("rb") as file:
            start = file.read(9)
        if start[8:] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size:
            checkpoint = read_safetensors(path)
        elif start[:4] == b"PK\3\4" or start[:1] == b"\x80":  # zip; a pickle, which older versions of PyTorch wrote
            return read_pickled(path, ema)
        elif start[:1] == b"\n":  # protobuf's mark of field 1
            checkpoint = read_mindspore(path)
        elif start == b"version h":
            raise ConversionError(f"{path} is Git LFS's pointer to a file: git lfs pull downloads that")
        else:
            raise ConversionError(f"{path} is neither a PyTorch, nor a safetensors, nor a MindSpore checkpoint")
    except OSError as error:
        raise ConversionError(f"{path} cannot be read: {error.strerror or error}") from error
    if ema:
        raise one_set_only(path)
    return checkpoint


def convert(
    path: Path, folder: Path, class_names: Path | None = None, image_size: int | None = None, ema: bool = False
) -> None:
    """
    Converts the checkpoint at `path` into `folder`, which must be empty or not exist, and prints what it did.

    Args:
        class_names (`Path`, *optional*): A text file with one name a line. Without it, 1,000 classes are ImageNet's.
        image_size (`int`, *optional*): Side of the network's input in pixels, if it was not trained at the published.
        ema (`bool`, *optional*): Of a file with two sets of weights, take the exponential moving average.

    Raises:
        ConversionError: See `read_checkpoint` and `recognize`; or `folder`, `class_names` or `image_size` do not fit.
            Nothing was written.
        DataError: See `read_class_names`. Nothing was written.
    """
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ConversionError(f"{folder} exists already: name an empty folder or a new one")
    except OSError as error:
        raise ConversionError(f"{folder} cannot be written: {error.strerror}") from error
    names = None if class_names is None else read_class_names(class_names)
    checkpoint = read_checkpoint(path, ema)
    variant, num_labels = recognize(checkpoint)
    network = build(checkpoint, configure(checkpoint, variant, num_labels, names, image_size))
    sha256 = write_or_nothing(network, folder)

    report(checkpoint, network, variant)
    print(f"wrote {folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}")
    print(f"sha256 of {WEIGHTS_FILE}: {sha256}")


# Command line


def build_parser() -> CommandParser:
    parser = CommandParser(
        description=__doc__.partition("\n")[0],
        epilog="Exit code 2: the checkpoint cannot be converted, and nothing was written.",
    )
    parser.add_argument(
        "checkpoint", type=Path, metavar="CHECKPOINT", help="PyTorch's .pth, .safetensors, or MindSpore's .ckpt"
    )
    parser.add_argument("folder", type=Path, metavar="OUTPUT_FOLDER", help="an empty folder, or a new one")
    parser.add_argument(
        "--class_names",
        type=Path,
        metavar="FILE",
        help="text file with one name a line, in the classifier's order (default: ImageNet's for 1,000 classes)",
    )
    parser.add_argument(
        "--image_size", type=int, metavar="N", help="pixels, if the network was trained at another size than published"
    )
    parser.add_argument(
        "--ema", action="store_true", help="take the EMA's weights where the file holds two sets, as timm's do"
    )
    return parser


def main(argv: Sequence[str]) -> None:
    options = build_parser().parse_args(argv)
    logging.disable_progress_bar()  # of the reading back
    convert(options.checkpoint, options.folder, options.class_names, options.image_size, options.ema)


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
