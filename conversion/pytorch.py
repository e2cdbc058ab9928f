"""PyTorch's files and .safetensors, as timm, torchvision's scripts, Lightning, Accelerate and people write them."""

import argparse
import io
import json
import re
import shutil
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError

from conversion.checkpoint import COUNTER, Checkpoint, ConversionError, checked_tensor, one_set_only
from conversion.mindspore import read_mindspore_safetensors
from conversion.timm_settings import timm_settings
from modeling_tinynet import TINYNET_VARIANTS, TinyNetConfig, TinyNetForImageClassification

STEM = "conv_stem.weight"  # which every TinyNet has
COMPILED = "_orig_mod"  # torch.compile's, which stands wherever a compiled module does
AVERAGED_COUNT = "n_averaged"  # torch.optim.swa_utils.AveragedModel's counter, beside `module.`
MAX_WRAPPERS = 8
FOLDER_FILES = {"model.safetensors", "pytorch_model.bin"}  # what from_pretrained looks for beside a config.json


# Files


def read_pickled(path: Path, ema: bool) -> Checkpoint:
    """
    What `torch.save` writes: a state dict, or a dictionary with one, and the training's state beside it.

    Args:
        ema: Take the weights that are named as an exponential moving average, and not the others.

    Raises:
        ConversionError: It is damaged, holds no weights or no single set of them, or other objects than tensors; or
            `timm_settings` refuses.
    """
    with path.open("rb") as file:
        is_zip = file.read(4) == b"PK\3\4"
    source, checksum = checked_archive(path) if is_zip else (path, None)
    # timm stores its command line, a bag of plain values.
    with torch.serialization.safe_globals([argparse.Namespace]):
        try:
            content = torch.load(source, map_location="cpu", weights_only=True)
        except Exception as error:  # of a dozen kinds, by what the file holds
            raise ConversionError(unreadable(path, source)) from error
    weights, ignored, notes = find_weights(path, content, ema)
    settings, more = ({}, []) if weights is content else timm_settings(content.get("args"))
    return make_checkpoint("PyTorch", weights, ignored, checksum, settings, notes + more)


def read_safetensors(path: Path) -> Checkpoint:
    """
    Raises:
        ConversionError: It is damaged, or belongs to a folder that needs no conversion.
    """
    if path.name in FOLDER_FILES and is_model_folder(path.parent):
        raise ConversionError(f"{path} needs no conversion: from_pretrained reads the folder {path.parent} as it is")
    data = path.read_bytes()  # safetensors opens no file whose name is not UTF-8
    try:
        weights = safetensors.torch.load(data)
    except SafetensorError as error:
        raise ConversionError(f"{path} is truncated or damaged, or no safetensors file") from error
    metadata = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")]).get("__metadata__") or {}
    if metadata.get("format") == "ms":
        return read_mindspore_safetensors(path, weights, metadata.get("crc_num"))
    return make_checkpoint("safetensors", weights, [], None, {}, [])


def is_model_folder(folder: Path) -> bool:
    """Whether `from_pretrained` reads a TinyNet from it, its settings and class names too."""
    try:
        config = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and (
        config.get("model_type") == TinyNetConfig.model_type or config.get("architecture") in TINYNET_VARIANTS
    )


def checked_archive(path: Path) -> tuple[io.BytesIO, str | None]:
    """
    A zip archive's parts, each compared with its CRC-32, in a new archive: `torch.load` does not compare, and has a
    reader of its own, to which one changed bit of the directory can mean memory that nobody has written to. What
    `torch.save` does not do is refused, compression and parts stored twice: a small file cannot become a large one.

    Returns:
        The new archive, and which checksums were right: None if `torch.serialization.set_crc32_options(False)` was
        set, with which there are none.

    Raises:
        ConversionError: A part is damaged, or PyTorch did not write the archive.
    """
    sound = io.BytesIO()
    try:
        with zipfile.ZipFile(path) as archive, zipfile.ZipFile(sound, "w") as copy:
            parts = archive.infolist()
            if reason := foreign(parts, path.stat().st_size):
                raise ConversionError(f"{path} {reason}")
            has_checksums = any(part.CRC != 0 for part in parts)
            for part in parts:
                if not has_checksums:
                    part.CRC = None  # type: ignore[assignment]  # not compared, then
                new = zipfile.ZipInfo(part.filename)
                new.file_size = part.file_size
                with archive.open(part) as source, copy.open(new, "w") as target:
                    shutil.copyfileobj(source, target)  # compares at the end
    except ConversionError:
        raise
    except Exception as error:  # of a dozen kinds, by where the file is damaged
        raise ConversionError(f"{path} is damaged: its parts and their checksums do not fit") from error
    sound.seek(0)
    return sound, f"the CRC-32 of all {len(parts)} parts" if has_checksums else None


def foreign(parts: list[zipfile.ZipInfo], file_size: int) -> str | None:
    """Why `torch.save` cannot have written an archive of these parts, as the end of a sentence."""
    names = [part.filename for part in parts]
    if any(name.endswith("/constants.pkl") for name in names):
        return "is a TorchScript archive: save the network's state_dict() instead"
    if not any(name.endswith("/data.pkl") for name in names):
        return "is a zip archive that torch.save did not write: unpack it"
    if any(part.compress_type != zipfile.ZIP_STORED for part in parts):
        return "is compressed, which torch.save does not do: load it and save it anew"
    if sum(part.file_size for part in parts) > file_size or len(set(names)) < len(names):
        return "is damaged: its parts overlap"
    return None


def unreadable(path: Path, source: Path | io.BytesIO) -> str:
    """The sentence for a file that `torch.load` does not read, which names an object in it if that is why."""
    why = "which are not read because they can run code: save the network's state_dict() alone"
    try:
        if isinstance(source, io.BytesIO):
            source.seek(0)
        objects = torch.serialization.get_unsafe_globals_in_checkpoint(source)
    except Exception:  # damaged, or of the older format: refused anyway, only without a name
        objects = []
    if objects:
        return f"{path} holds other objects than tensors and plain values, such as {min(objects)!r}, {why}"
    return f"{path} is damaged, or holds other objects than tensors and plain values, {why}"


# Contents


def find_weights(path: Path, content: Any, ema: bool) -> tuple[dict[Any, Any], list[str], list[str]]:
    """
    Returns:
        The weights, what else is there, and a note if there was a choice.

    Raises:
        ConversionError: There are none, or several and no telling which are meant.
    """
    if not isinstance(content, dict) or not content:
        raise ConversionError(f"{path} holds no state dict but {type(content).__name__}")
    sets = {key: value for key, value in content.items() if has_tensors(value)}
    networks = [key for key, value in sets.items() if any(str(name).endswith(STEM) for name in value)]
    candidates = networks or list(sets)
    if not candidates or any(str(name).endswith(STEM) for name in content):
        if ema:
            raise one_set_only(path)
        if not has_tensors(content):
            entries = ", ".join(repr(key) for key in list(content)[:3])
            raise ConversionError(f"{path} holds no state dict; its first entries are {entries}")
        return content, [], []

    averaged = [key for key in candidates if "ema" in re.split(r"[^a-z]", str(key).lower())]
    plain = [key for key in candidates if key not in averaged]
    if ema and not averaged:
        raise ConversionError(f"{path} holds no weights named as an EMA, only under {quoted(plain)}: omit --ema")
    meant = averaged if ema or not plain else plain
    if len(meant) > 1:
        raise ConversionError(f"{path} holds weights under {quoted(meant)}: save one of them alone")
    notes = []
    if averaged:
        other = f"; the file holds {quoted(plain if ema else averaged)} too" if plain else ""
        hint = ", which --ema takes" if plain and not ema else ""
        notes.append(f"took the weights under {meant[0]!r}{other}{hint}")
    return content[meant[0]], [str(key) for key in content if key != meant[0]], notes


def has_tensors(value: Any) -> bool:
    return isinstance(value, dict) and any(isinstance(tensor, torch.Tensor) for tensor in value.values())


def quoted(keys: Iterable[Any]) -> str:
    return " and ".join(repr(key) for key in keys)


def make_checkpoint(
    framework: str,
    weights: dict[Any, Any],
    ignored: list[str],
    checksum: str | None,
    settings: dict[str, Any],
    notes: list[str],
) -> Checkpoint:
    """
    Raises:
        ConversionError: One of the weights is no dense tensor of numbers, or two have one name without the wrappers'.
    """
    weights = dict(weights)
    for name, value in weights.items():
        if not isinstance(name, str):
            raise ConversionError(f"the name of a tensor must be text, and is {type(name).__name__}")
        if not isinstance(value, torch.Tensor):
            raise ConversionError(f"{name!r} is not a tensor but {type(value).__name__}")
    if weights.pop(AVERAGED_COUNT, None) is not None:
        ignored = [*ignored, AVERAGED_COUNT]
    tensors: dict[str, torch.Tensor] = {}
    rounded = 0
    for name, bare in zip(weights, without_wrappers(list(weights)), strict=True):
        if name.endswith(COUNTER) and weights[name].is_floating_point():
            rounded += 1  # by a cast of the whole dictionary, and above 65,504 infinite in half precision
            ignored = [*ignored, name]
        elif bare in tensors:
            raise ConversionError(f"{name!r} is there twice, under another wrapper's prefix too")
        else:
            tensors[bare] = checked_tensor(bare, weights[name])
    if rounded:
        notes = [*notes, f"left out {rounded} {COUNTER}, which the file holds rounded and inference does not need"]
    return Checkpoint(framework, tensors, ignored, lambda name: name, checksum, settings, notes)


def without_wrappers(names: list[str]) -> list[str]:
    """
    The names as timm has them. What all begin with is a wrapper's (`module.`, `model.`, in any order), `_orig_mod.` is
    torch.compile's anywhere, and `tinynet.` is this package's for all tensors but the classifier's.
    """
    own = f"{TinyNetForImageClassification.base_model_prefix}."
    if any(COMPILED in name for name in names):
        names = [".".join(part for part in name.split(".") if part != COMPILED) for name in names]
    for _ in range(MAX_WRAPPERS):
        wrapper = names[0].partition(".")[0] + "." if names else own
        if len(names) < 2 or wrapper == own or not all(name.startswith(wrapper) for name in names):
            break
        names = [name.removeprefix(wrapper) for name in names]
    return [name.removeprefix(own) for name in names]
