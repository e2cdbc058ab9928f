"""TinyNet checkpoints from elsewhere to a `from_pretrained` folder: PyTorch's, timm's, safetensors, and MindSpore's.

python convert.py ema_best.ckpt converted --class_names names.txt

Every tensor of the file is used or named in an error, and its shapes tell which of the five networks it is. What no
checkpoint holds is taken as published: BatchNorm's eps, and the preprocessing; timm's command line is heeded where it
is in the file. MindSpore is not needed, and code in a pickle never runs.
"""

import hashlib
import math
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers.utils import logging

from conversion.checkpoint import COUNTER, Checkpoint, ConversionError
from conversion.mindspore import read_mindspore
from conversion.pytorch import is_model_folder, read_pickled, read_safetensors
from modeling_tinynet import TINYNET_VARIANTS, TinyNetConfig, TinyNetForImageClassification, TinyNetImageProcessor
from training.command import CommandParser, run_command
from training.data.class_names import read_class_names

WEIGHTS_FILE = "model.safetensors"
MAX_NAMED_TENSORS = 3  # in an error
# Above this number of pixels Pillow warns of a decompression bomb: no image can be meant to be resized to more.
MAX_IMAGE_PIXELS = 89_478_485
# What a file can state about a network whose tensors are a published one's.
PREPROCESSING = ("image_size", "crop_pct", "image_mean", "image_std")
LAYERS = ("batch_norm_eps", "batch_norm_momentum", "dropout_rate", "drop_path_rate")


# Reading


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
        raise ConversionError(f"{path} holds one set of weights and not that they are an average: omit --ema")
    return checkpoint


# Recognising


def recognize(checkpoint: Checkpoint) -> tuple[str, int]:
    """
    The published network whose tensors these are, and its number of classes.

    Raises:
        ConversionError: It is none of the five; the message names what keeps it from being the nearest.
    """
    classifier = checkpoint.tensors.get("classifier.weight")
    num_labels = 1000 if classifier is None or classifier.ndim == 0 else max(1, classifier.shape[0])
    found = {variant: differences(checkpoint, variant, num_labels) for variant in TINYNET_VARIANTS}
    nearest = min(found, key=lambda variant: len(found[variant]))
    if wrong := found[nearest]:
        rest = len(wrong) - MAX_NAMED_TENSORS
        raise ConversionError(
            f"no TinyNet has these tensors: for {nearest}, the nearest, {', '.join(wrong[:MAX_NAMED_TENSORS])}"
            + (f" and {rest} more differ" if rest > 0 else "")
        )
    return nearest, num_labels


def differences(checkpoint: Checkpoint, variant: str, num_labels: int) -> list[str]:
    """A clause for each tensor that is missing, has another shape, or is unknown."""
    # Built with one class: a configuration holds a name for each, and the file may claim any number of them.
    with torch.device("meta"):
        network = TinyNetForImageClassification(TinyNetConfig.from_variant(variant, num_labels=1))
    expected = {}
    for name, tensor in network.state_dict().items():
        shape = list(tensor.shape)
        expected[checkpoint.name_in_file(timm_name(name))] = (
            [num_labels, *shape[1:]] if name.startswith("classifier.") else shape
        )
    found = {name: list(tensor.shape) for name, tensor in checkpoint.tensors.items()}
    wrong = [f"{name!r} is missing" for name in expected if name not in found and not name.endswith(COUNTER)]
    wrong += [
        f"{name!r} has shape {found[name]} instead of {shape}"
        for name, shape in expected.items()
        if found.get(name, shape) != shape
    ]
    return wrong + [f"{name!r} is unknown" for name in found if name not in expected]


def timm_name(name: str) -> str:
    return name.removeprefix(f"{TinyNetForImageClassification.base_model_prefix}.")


# Building and writing


def configure(checkpoint: Checkpoint, class_names: list[str] | None, image_size: int | None) -> TinyNetConfig:
    """
    The configuration of the recognized network, with what the file states and what the caller does.

    Raises:
        ConversionError: See `recognize`; or the settings do not fit the network.
    """
    variant, num_labels = recognize(checkpoint)
    fields: dict[str, Any] = {**checkpoint.settings, "num_labels": num_labels}
    if image_size is not None:
        fields["image_size"] = image_size
    if class_names is not None:
        if len(class_names) != num_labels:
            raise ConversionError(
                f"--class_names gives {len(class_names):,} names, and the checkpoint has {num_labels:,} classes"
            )
        fields["id2label"] = dict(enumerate(class_names))
        fields["label2id"] = {name: index for index, name in enumerate(class_names)}
    try:
        config = TinyNetConfig.from_variant(variant, **fields)
    except (ValueError, StrictDataclassError) as error:
        raise ConversionError(str(error.__cause__ or error)) from error
    if config.resize_size**2 > MAX_IMAGE_PIXELS:
        raise ConversionError(
            f"image_size {config.image_size:,} with crop_pct {config.crop_pct} asks for images of "
            f"{config.resize_size:,} px a side, and Pillow takes those above {math.isqrt(MAX_IMAGE_PIXELS):,} for an "
            "attack"
        )
    return config


def build(checkpoint: Checkpoint, config: TinyNetConfig) -> TinyNetForImageClassification:
    """
    The network with the checkpoint's tensors, in float32. A counter that is not in the file starts at 0.

    Raises:
        ConversionError: Numbers are not finite or out of their range, or the network's answers are.
    """
    with torch.device("meta"):
        network = TinyNetForImageClassification(config)
    state_dict = {}
    for name in network.state_dict():
        name_in_file = checkpoint.name_in_file(timm_name(name))
        tensor = checkpoint.tensors.get(name_in_file, torch.tensor(0))
        dtype = torch.int64 if name.endswith(COUNTER) else torch.float32
        # A copy: a few numbers of the file can be the storage of many tensors.
        tensor = tensor.to(dtype, copy=True, memory_format=torch.contiguous_format)
        if not tensor.isfinite().all():
            raise ConversionError(f"{name_in_file!r} holds infinite numbers or NaN: the training had diverged")
        if name.endswith(("running_var", COUNTER)) and (tensor < 0).any():
            raise ConversionError(f"{name_in_file!r} holds {tensor.min():g}, and cannot be negative: it is damaged")
        state_dict[name] = tensor
    network.load_state_dict(state_dict, strict=True, assign=True)
    network.eval()
    side = 2 * 32  # two fields of the last stage
    image = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        if not network(image).logits.isfinite().all():
            raise ConversionError("the network answers infinite numbers or NaN: its tensors are damaged or diverged")
    return network


def write(network: TinyNetForImageClassification, folder: Path) -> str:
    """
    Saves network and image processor, reads both back, and compares: tensors bit by bit, and all settings.

    Returns:
        The SHA-256 of the weights file, in hexadecimal.

    Raises:
        RuntimeError: What was read back is something else.
    """
    processor = TinyNetImageProcessor.from_config(network.config)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".convert-") as unchecked:
        network.save_pretrained(unchecked)
        processor.save_pretrained(unchecked)
        saved = TinyNetForImageClassification.from_pretrained(unchecked).state_dict()
        for name, tensor in network.state_dict().items():
            if tensor.dtype != saved[name].dtype or tensor.numpy().tobytes() != saved[name].numpy().tobytes():
                raise RuntimeError(f"{name} came back from {WEIGHTS_FILE} as something else")
        if TinyNetImageProcessor.from_pretrained(unchecked).to_dict() != processor.to_dict():
            raise RuntimeError("the image processor came back as something else")
        del saved  # unmaps the file, which Windows otherwise refuses to move
        # The weights last: without them nobody takes the folder for a model.
        for path in sorted(Path(unchecked).iterdir(), key=lambda path: path.name == WEIGHTS_FILE):
            path.rename(folder / path.name)
    with (folder / WEIGHTS_FILE).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_or_nothing(network: TinyNetForImageClassification, folder: Path) -> str:
    """
    `write` into a folder that is empty or does not exist; folders made for it go if it fails.

    Raises:
        ConversionError: The folder cannot be made or written.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return write(network, folder)
    except (OSError, SafetensorError) as error:
        for path in missing:
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()
        raise ConversionError(f"{folder} cannot be written: {getattr(error, 'strerror', None) or error}") from error


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
    config = configure(checkpoint, names, image_size)
    network = build(checkpoint, config)
    sha256 = write_or_nothing(network, folder)

    report(checkpoint, network)
    print(f"wrote {folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}")
    print(f"sha256 of {WEIGHTS_FILE}: {sha256}")


def report(checkpoint: Checkpoint, network: TinyNetForImageClassification) -> None:
    """What became of the file, and where the network and its preprocessing differ from it and from the published."""
    config = network.config
    used, added = len(checkpoint.tensors), len(network.state_dict()) - len(checkpoint.tensors)
    print(f"read {checkpoint.framework} checkpoint: {used + len(checkpoint.ignored)} entries")
    if checkpoint.checksum:
        print(f"checked {checkpoint.checksum}")
    else:
        print("checksum: this file has none, so that a changed bit among its numbers cannot be noticed")
    for note in checkpoint.notes:
        print(note)
    if checkpoint.ignored:
        print(f"ignored {len(checkpoint.ignored)} of them, the training's state, such as {checkpoint.ignored[0]!r}")
    print(f"used {used} of them, the network's tensors: {config.parameter_count:,} parameters, BatchNorm's statistics")
    for dtype in sorted({str(tensor.dtype) for tensor in checkpoint.tensors.values() if tensor.is_floating_point()}):
        if dtype != str(torch.float32):
            rounded = ", rounded" if dtype == str(torch.float64) else ""
            print(f"converted {dtype.removeprefix('torch.')} to float32{rounded}")
    if added:
        print(f"added {added} {COUNTER} that the file lacks, as 0")
    labels = f"{config.id2label[0]!r} to {config.id2label[config.num_labels - 1]!r}"
    classes = "class" if config.num_labels == 1 else "classes"
    print(f"recognised {config.variant} with {config.num_labels:,} {classes}, {labels}")
    print(f"model difference: none, all {used + added} tensors read back bit by bit the same")
    report_settings(config, stated=checkpoint.settings)


def report_settings(config: TinyNetConfig, stated: dict[str, Any]) -> None:
    published = TinyNetConfig.from_variant(config.variant)

    def differences_in(names: tuple[str, ...]) -> str:
        return "; ".join(
            f"{name} {getattr(config, name)}, and the published is {getattr(published, name)}"
            for name in names
            if getattr(config, name) != getattr(published, name)
        )

    if stated:
        print(f"the file states {', '.join(stated)}")
    if layers := differences_in(LAYERS):
        print(f"difference in the layers: {layers}")
    if preprocessing := differences_in(PREPROCESSING):
        print(f"preprocessing difference: {preprocessing}")
    else:
        print("preprocessing difference: none, it is the published one and reads back so")
    print(
        f"preprocessing: shorter side to {config.resize_size} px (bicubic, antialiased), "
        f"central {config.image_size} px, mean {config.image_mean}, std {config.image_std}"
    )
    if "batch_norm_eps" not in stated:
        print(f"BatchNorm's eps, which the file does not hold: {config.batch_norm_eps:g}, as published")


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
