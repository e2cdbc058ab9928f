"""TinyNet checkpoints from elsewhere to a `from_pretrained` folder: Huawei's PyTorch .pth and MindSpore's .ckpt.

python convert.py ema_best.ckpt converted --class_names names.txt

Every tensor of the file is used or named in an error, and its shapes tell which of the five networks it is. What no
checkpoint holds is taken as published: BatchNorm's eps, and the preprocessing. MindSpore is not needed, and code in a
pickle never runs.
"""

import argparse
import hashlib
import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from safetensors import SafetensorError
from transformers.utils import logging

from modeling_tinynet import TINYNET_VARIANTS, TinyNetConfig, TinyNetForImageClassification, TinyNetImageProcessor
from training.unicode_text import escape_what_stdout_lacks

WEIGHTS_FILE = "model.safetensors"
COUNTER = "num_batches_tracked"  # BatchNorm's, which PyTorch has had since 0.4.1 and MindSpore has not
MAX_MESSAGE_BYTES = 2**31 - 1  # protobuf's limit
MAX_NAMED_TENSORS = 3  # in an error

# MindSpore's names of what timm calls so. The stages lie in a cell of their own there, blocks.layer.
MINDSPORE_BATCH_NORM = {
    "weight": "gamma",
    "bias": "beta",
    "running_mean": "moving_mean",
    "running_var": "moving_variance",
}
# What its RMSProp and SGD keep: the original trainer's last.ckpt holds the optimizer too, its ema_*.ckpt do not.
MINDSPORE_OPTIMIZER_VALUES = {"global_step", "learning_rate", "momentum"}
MINDSPORE_OPTIMIZER_TENSORS = {"mean_square", "moment", "accum", "stat"}  # one for each parameter, prefixed so


class ConversionError(ValueError):
    """The checkpoint cannot be converted. The message is one sentence and says what is wrong with it."""


@dataclass(frozen=True)
class Checkpoint:
    framework: str
    tensors: dict[str, torch.Tensor]  # the network's, under the file's names
    ignored: list[str]  # what else the file holds
    name_in_file: Callable[[str], str]  # of the tensor that timm calls so


# Reading


def read_checkpoint(path: Path) -> Checkpoint:
    """
    Raises:
        ConversionError: There is no such file, it is no checkpoint, it is damaged, or a tensor in it is not float32.
    """
    if not path.is_file():
        raise ConversionError(f"{path} is not a file" if path.exists() else f"{path} does not exist")
    with path.open("rb") as file:
        start = file.read(2)
    if start == b"PK" or start[:1] == b"\x80":  # a zip archive; a pickle, which older versions of PyTorch wrote
        return read_pytorch(path)
    if start[:1] == b"\n":  # protobuf's mark of field 1
        return read_mindspore(path)
    raise ConversionError(f"{path} is neither a PyTorch nor a MindSpore checkpoint")


def read_pytorch(path: Path) -> Checkpoint:
    """A state dict, or a dictionary with one under `state_dict`; with or without DataParallel's prefix `module.`."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of a dozen kinds, by where the file is damaged
        raise ConversionError(
            f"{path} is damaged, or holds other objects than tensors and plain values, which are not read because "
            "they can run code"
        ) from error
    ignored = []
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        wrapper, content = content, content["state_dict"]
        for key, value in wrapper.items():
            if value is content:
                continue
            if isinstance(value, dict) and any(isinstance(tensor, torch.Tensor) for tensor in value.values()):
                raise ConversionError(f"{path} holds tensors in {key!r} beside 'state_dict': save one of them alone")
            ignored.append(str(key))
    if not isinstance(content, dict) or not content:
        raise ConversionError(f"{path} holds no state dict")
    if all(isinstance(name, str) and name.startswith("module.") for name in content):
        content = {name.removeprefix("module."): value for name, value in content.items()}

    tensors = {}
    for name, tensor in content.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise ConversionError(f"{name!r} is not a tensor but {type(tensor).__name__}")
        dtype = torch.int64 if name.endswith(COUNTER) else torch.float32
        if tensor.dtype != dtype:
            raise ConversionError(f"{name!r} is {tensor.dtype}, and must be {dtype}")
        # Strides of 0 or a device without memory let a few bytes claim any shape.
        if (
            tensor.layout != torch.strided
            or tensor.device.type != "cpu"
            or tensor.nbytes > tensor.untyped_storage().nbytes()
        ):
            raise ConversionError(f"{name!r} holds fewer numbers than its shape {list(tensor.shape)} says")
        tensors[name] = tensor.detach().clone(memory_format=torch.contiguous_format)
    return Checkpoint("PyTorch", tensors, ignored, name_in_file=lambda name: name)


def read_mindspore(path: Path) -> Checkpoint:
    """What `mindspore.save_checkpoint` writes, of a network or of a network in training."""
    try:
        from google.protobuf.message import DecodeError
    except ModuleNotFoundError:
        raise ConversionError("MindSpore's checkpoints need protobuf: pip install 'protobuf>=5'") from None

    if path.stat().st_size > MAX_MESSAGE_BYTES:
        raise ConversionError(f"{path} is larger than the 2 GiB that a MindSpore checkpoint can have")
    message = mindspore_message()
    try:
        message.ParseFromString(path.read_bytes())
        complete = message.IsInitialized() and len(message.value) > 0
    except DecodeError:
        complete = False
    if not complete:
        raise ConversionError(f"{path} is truncated or damaged, or no MindSpore checkpoint")

    tags = [entry.tag.decode(errors="backslashreplace") for entry in message.value]
    names = set(tags)
    tensors, ignored = {}, []
    for tag, entry in zip(tags, message.value, strict=True):
        prefix, _, name = tag.partition(".")
        if tag in MINDSPORE_OPTIMIZER_VALUES or (prefix in MINDSPORE_OPTIMIZER_TENSORS and name in names):
            ignored.append(tag)
        elif tag in tensors:
            raise ConversionError(f"{path} holds {tag!r} twice")
        else:
            tensors[tag] = mindspore_tensor(tag, entry.tensor)
    return Checkpoint("MindSpore", tensors, ignored, mindspore_name)


def mindspore_message() -> Any:
    """
    An empty message of MindSpore's `checkpoint.proto`, described here instead of by a generated module. Its strings
    are bytes here, which is the same in the file: in a damaged one they need not be UTF-8.
    """
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="checkpoint.proto", syntax="proto2")
    tensor = file.message_type.add(name="TensorProto")
    tensor.field.add(name="dims", number=1, label=field.LABEL_REPEATED, type=field.TYPE_INT64)
    tensor.field.add(name="tensor_type", number=2, label=field.LABEL_REQUIRED, type=field.TYPE_BYTES)
    tensor.field.add(name="tensor_content", number=3, label=field.LABEL_REQUIRED, type=field.TYPE_BYTES)
    checkpoint = file.message_type.add(name="Checkpoint")
    value = checkpoint.nested_type.add(name="Value")
    value.field.add(name="tag", number=1, label=field.LABEL_REQUIRED, type=field.TYPE_BYTES)
    value.field.add(
        name="tensor", number=2, label=field.LABEL_REQUIRED, type=field.TYPE_MESSAGE, type_name=".TensorProto"
    )
    checkpoint.field.add(
        name="value", number=1, label=field.LABEL_REPEATED, type=field.TYPE_MESSAGE, type_name=".Checkpoint.Value"
    )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("Checkpoint"))()


def mindspore_tensor(tag: str, tensor: Any) -> torch.Tensor:
    if tensor.tensor_type != b"Float32":
        dtype = tensor.tensor_type.decode(errors="backslashreplace")
        raise ConversionError(f"{tag!r} is {dtype!r}, and must be 'Float32'")
    dims, content = list(tensor.dims[:5]), tensor.tensor_content
    # Before anything of the declared size is made of it; a convolution has 4 dimensions.
    if len(dims) not in range(1, 5) or min(dims) < 1 or math.prod(dims) * torch.float32.itemsize != len(content):
        raise ConversionError(f"{tag!r} declares the shape {dims}, which its {len(content):,} bytes do not fill")
    return torch.frombuffer(bytearray(content), dtype=torch.float32).reshape(dims)


def mindspore_name(name: str) -> str:
    """MindSpore's name of the tensor that timm calls `name`: blocks.layer.0.0.bn1.gamma for blocks.0.0.bn1.weight."""
    module, _, parameter = name.rpartition(".")
    if module.rpartition(".")[2].startswith("bn"):
        parameter = MINDSPORE_BATCH_NORM.get(parameter, parameter)
    if module.startswith("blocks."):
        module = f"blocks.layer.{module.removeprefix('blocks.')}"
    return f"{module}.{parameter}"


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


def read_class_names(path: Path, num_labels: int) -> list[str]:
    """One name a line, in the order of the classifier's outputs."""
    try:
        names = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConversionError(f"class names cannot be read from {path}: {error}") from error
    if not all(name.strip() for name in names):
        raise ConversionError(f"{path} has an empty line among the class names")
    if len(names) != num_labels:
        raise ConversionError(f"{path} names {len(names):,} classes, and the checkpoint has {num_labels:,}")
    return [name.strip() for name in names]


def build(checkpoint: Checkpoint, config: TinyNetConfig) -> TinyNetForImageClassification:
    """The network with the checkpoint's tensors. A counter that is not in the file starts at 0."""
    for name, tensor in checkpoint.tensors.items():
        if not tensor.isfinite().all():
            raise ConversionError(f"{name!r} holds infinite numbers or NaN: the training had diverged")
    with torch.device("meta"):
        network = TinyNetForImageClassification(config)
    state_dict = {
        name: checkpoint.tensors.get(checkpoint.name_in_file(timm_name(name)), torch.tensor(0))
        for name in network.state_dict()
    }
    network.load_state_dict(state_dict, strict=True, assign=True)
    return network.eval()


def write(network: TinyNetForImageClassification, folder: Path) -> str:
    """
    Saves network and image processor, reads both back, and compares: tensors bit by bit, and all settings.

    Returns:
        The SHA-256 of the weights file, in hexadecimal.

    Raises:
        RuntimeError: What was read back is something else.
    """
    processor = TinyNetImageProcessor.from_config(network.config)
    folder.mkdir(parents=True, exist_ok=True)
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
        for path in Path(unchecked).iterdir():
            path.rename(folder / path.name)
    with (folder / WEIGHTS_FILE).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def convert(path: Path, folder: Path, class_names: Path | None = None, image_size: int | None = None) -> None:
    """
    Converts the checkpoint at `path` into `folder`, which must be empty or not exist, and prints what it did.

    Args:
        class_names (`Path`, *optional*): A text file with one name a line. Without it, 1,000 classes are ImageNet's.
        image_size (`int`, *optional*): Side of the network's input in pixels, if it was not trained at the published.

    Raises:
        ConversionError: See `read_checkpoint` and `recognize`; or `folder`, `class_names` or `image_size` do not fit.
            Nothing was written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConversionError(f"{folder} exists already: name an empty folder or a new one")
    checkpoint = read_checkpoint(path)
    variant, num_labels = recognize(checkpoint)
    overrides: dict[str, Any] = {"num_labels": num_labels}
    if image_size is not None:
        overrides["image_size"] = image_size
    if class_names is not None:
        overrides["id2label"] = dict(enumerate(read_class_names(class_names, num_labels)))
        overrides["label2id"] = {name: index for index, name in overrides["id2label"].items()}
    try:
        config = TinyNetConfig.from_variant(variant, **overrides)
    except ValueError as error:
        raise ConversionError(str(error)) from error
    network = build(checkpoint, config)
    sha256 = write(network, folder)

    report(checkpoint, network)
    print(f"wrote {folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}")
    print(f"sha256 of {WEIGHTS_FILE}: {sha256}")


def report(checkpoint: Checkpoint, network: TinyNetForImageClassification) -> None:
    """What became of the file, and where the network and its preprocessing differ from it and from the published."""
    config = network.config
    image_size = TINYNET_VARIANTS[config.variant]["image_size"]
    used, added = len(checkpoint.tensors), len(network.state_dict()) - len(checkpoint.tensors)
    print(f"read {checkpoint.framework} checkpoint: {used + len(checkpoint.ignored)} entries")
    if checkpoint.ignored:
        print(f"ignored {len(checkpoint.ignored)} of them, the training's state, such as {checkpoint.ignored[0]!r}")
    print(f"used {used} of them, the network's tensors: {config.parameter_count:,} parameters, BatchNorm's statistics")
    if added:
        print(f"added {added} {COUNTER} that the file lacks, as 0")
    labels = f"{config.id2label[0]!r} to {config.id2label[config.num_labels - 1]!r}"
    print(f"recognised {config.variant} with {config.num_labels:,} classes, {labels}")
    print(f"model difference: none, all {used + added} tensors read back bit by bit the same")
    if config.image_size == image_size:
        print("preprocessing difference: none, it is the published one and reads back so")
    else:
        print(f"preprocessing difference: image size {config.image_size} px, and the published is {image_size} px")
    print(
        f"preprocessing: shorter side to {config.resize_size} px (bicubic, antialiased), "
        f"central {config.image_size} px, mean {config.image_mean}, std {config.image_std}"
    )
    print(f"BatchNorm's eps, which no checkpoint holds: {config.batch_norm_eps:g}, as published")


# Command line


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}\n")  # one sentence, as train.py and eval.py have it


def build_parser() -> Parser:
    parser = Parser(
        description=__doc__.partition("\n")[0],
        epilog="Exit code 2: the checkpoint cannot be converted, and nothing was written.",
    )
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="PyTorch's .pth or MindSpore's .ckpt")
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
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    parser = build_parser()
    options = parser.parse_args(argv)
    logging.disable_progress_bar()  # of the reading back
    try:
        convert(options.checkpoint, options.folder, options.class_names, options.image_size)
    except (ConversionError, OSError, SafetensorError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    escape_what_stdout_lacks()
    main()
