"""MindSpore's files, read without MindSpore, and its names for what timm calls otherwise."""

import functools
import math
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from conversion.checkpoint import Checkpoint, ConversionError, checked_tensor

MAX_MESSAGE_BYTES = 2**31 - 1  # protobuf's limit
# `mindspore.save_checkpoint(crc_check=True)` ends the file with this and a CRC-32 of all before it, in ten bytes.
CHECKSUM_MARK, CHECKSUM_BYTES = b"crc_num", 10
DTYPES = {
    b"Float32": torch.float32,
    b"Float16": torch.float16,
    b"BFloat16": torch.bfloat16,
    b"Float64": torch.float64,
}

# MindSpore's names of what timm calls so. The stages lie in a cell of their own there, blocks.layer.
BATCH_NORM = {
    "weight": "gamma",
    "bias": "beta",
    "running_mean": "moving_mean",
    "running_var": "moving_variance",
}
# What its RMSProp and SGD keep: the original trainer's last.ckpt holds the optimizer too, its ema_*.ckpt do not.
OPTIMIZER_VALUES = {"global_step", "learning_rate", "momentum"}
OPTIMIZER_TENSORS = {"mean_square", "moment", "accum", "stat"}  # one for each parameter, prefixed so


def read_mindspore(path: Path) -> Checkpoint:
    """
    What `mindspore.save_checkpoint` writes, of a network or of a network in training.

    Raises:
        ConversionError: It is damaged, too large, or no MindSpore checkpoint; or protobuf is not installed.
    """
    try:
        from google.protobuf.message import DecodeError
    except ModuleNotFoundError:
        raise ConversionError("MindSpore's checkpoints need protobuf: pip install 'protobuf>=5'") from None

    if path.stat().st_size > MAX_MESSAGE_BYTES:
        raise ConversionError(f"{path} is larger than the 2 GiB that a MindSpore checkpoint can have")
    data, checksum = without_checksum(path, path.read_bytes())
    message = empty_message()
    try:
        message.ParseFromString(data)
        complete = message.IsInitialized() and len(message.value) > 0
    except DecodeError:
        complete = False
    if not complete:
        raise ConversionError(f"{path} is truncated or damaged, or no MindSpore checkpoint")

    entries = [
        (tag := entry.tag.decode(errors="backslashreplace"), functools.partial(read_tensor, tag, entry.tensor))
        for entry in message.value
    ]
    return mindspore_checkpoint(path, entries, checksum)


def read_mindspore_safetensors(path: Path, tensors: dict[str, torch.Tensor], crc: str | None) -> Checkpoint:
    """
    The same with `format="safetensors"`.

    Args:
        crc: The file's `crc_num`: of each name and its numbers, in the order of the names.

    Raises:
        ConversionError: It is damaged.
    """
    if crc is not None:
        found = 0
        for name in sorted(tensors):
            found = zlib.crc32(
                tensors[name].flatten().view(torch.uint8).numpy().data, zlib.crc32(name.encode(), found)
            )
        if str(found) != crc:
            raise ConversionError(f"{path} is damaged: its checksum is of other bytes")
    entries = [(name, functools.partial(checked_tensor, name, tensor)) for name, tensor in tensors.items()]
    return mindspore_checkpoint(path, entries, None if crc is None else "the file's CRC-32")


def mindspore_checkpoint(
    path: Path, entries: Sequence[tuple[str, Callable[[], torch.Tensor]]], checksum: str | None
) -> Checkpoint:
    """
    Args:
        entries: Each name with a function that reads its tensor, since an optimizer's may be of any kind.

    Raises:
        ConversionError: A tensor is there twice, or its function raises.
    """
    names = {name for name, _ in entries}
    tensors: dict[str, torch.Tensor] = {}
    ignored = []
    for name, read in entries:
        prefix, _, parameter = name.partition(".")
        if name in OPTIMIZER_VALUES or (prefix in OPTIMIZER_TENSORS and parameter in names):
            ignored.append(name)
        elif name in tensors:
            raise ConversionError(f"{path} holds {name!r} twice")
        else:
            tensors[name] = read()
    return Checkpoint("MindSpore", tensors, ignored, mindspore_name, checksum)


def without_checksum(path: Path, data: bytes) -> tuple[bytes, str | None]:
    """
    Returns:
        The protobuf message, and which checksum it passed, if the file has one.

    Raises:
        ConversionError: The checksum is of other bytes.
    """
    message, mark = data[: -CHECKSUM_BYTES - len(CHECKSUM_MARK)], data[-CHECKSUM_BYTES - len(CHECKSUM_MARK) :]
    if not mark.startswith(CHECKSUM_MARK):
        return data, None
    if zlib.crc32(message) != int.from_bytes(mark.removeprefix(CHECKSUM_MARK)):
        raise ConversionError(f"{path} is damaged: its checksum is of other bytes")
    return message, "the file's CRC-32"


def empty_message() -> Any:
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


def read_tensor(tag: str, tensor: Any) -> torch.Tensor:
    dtype = DTYPES.get(tensor.tensor_type)
    if dtype is None:
        found = tensor.tensor_type.decode(errors="backslashreplace")
        known = ", ".join(name.decode() for name in DTYPES)
        raise ConversionError(f"{tag!r} is {found!r}, and must be one of {known}")
    dims, content = list(tensor.dims[:5]), tensor.tensor_content
    # Before anything of the declared size is made of it; a convolution has 4 dimensions.
    if len(dims) not in range(1, 5) or min(dims) < 1 or math.prod(dims) * dtype.itemsize != len(content):
        raise ConversionError(f"{tag!r} declares the shape {dims}, which its {len(content):,} bytes do not fill")
    return torch.frombuffer(bytearray(content), dtype=dtype).reshape(dims)


def mindspore_name(name: str) -> str:
    """MindSpore's name of the tensor that timm calls `name`: blocks.layer.0.0.bn1.gamma for blocks.0.0.bn1.weight."""
    module, _, parameter = name.rpartition(".")
    if module.rpartition(".")[2].startswith("bn"):
        parameter = BATCH_NORM.get(parameter, parameter)
    if module.startswith("blocks."):
        module = f"blocks.layer.{module.removeprefix('blocks.')}"
    return f"{module}.{parameter}"
