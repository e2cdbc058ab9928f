"""The settings of a network in a checkpoint of timm's train.py: its command line, which no tensor shows."""

import argparse
import reprlib
from typing import Any

from conversion.checkpoint import ConversionError

# Options of timm's train.py to TinyNetConfig's fields, where the value is the same. Unset, they are None.
FIELDS = {
    "mean": "image_mean",
    "std": "image_std",
    "crop_pct": "crop_pct",
    "bn_eps": "batch_norm_eps",
    "bn_momentum": "batch_norm_momentum",
    "drop": "dropout_rate",
    "drop_path": "drop_path_rate",
}
TENSORFLOW_EPS = 1e-3  # of the BatchNorm that --bn-tf asked for
# Options that change what the network computes, and the only values that TinyNet has.
FIXED = {"gp": "avg", "model_kwargs": {}}


def timm_settings(arguments: Any) -> tuple[dict[str, Any], list[str]]:
    """
    Returns:
        TinyNetConfig's fields that were set, none if these are not the options of timm's train.py; and a note on what
        no field can express.

    Raises:
        ConversionError: An option made another network of it.
    """
    if not isinstance(arguments, argparse.Namespace):
        return {}, []
    options = vars(arguments)
    if not {"model", "crop_pct", "bn_eps"} <= options.keys():
        return {}, []
    for name, ours in FIXED.items():
        if options.get(name) and options[name] != ours:
            raise ConversionError(f"it was trained with timm's {written(options, name)}, which no TinyNet has")
    notes = []
    if options.get("interpolation") not in (None, "", "bicubic"):
        notes.append(f"preprocessing difference: it was trained with timm's {written(options, 'interpolation')}")
    fields = {ours: numbers(options, name) for name, ours in FIELDS.items() if options.get(name) is not None}
    for name in ("image_mean", "image_std"):
        value = fields.get(name)
        if isinstance(value, list) and len(value) == 1:
            fields[name] = value * 3  # timm takes one number for all channels
    if options.get("bn_tf"):
        fields.setdefault("batch_norm_eps", TENSORFLOW_EPS)
    if options.get("input_size"):
        size = numbers(options, "input_size")
        if not isinstance(size, list) or len(size) != 3 or size[1] != size[2]:
            raise ConversionError(f"it was trained with timm's {written(options, 'input_size')}, which is no square")
        fields["image_size"] = size[1]
    elif options.get("img_size"):
        fields["image_size"] = numbers(options, "img_size")
    return fields, notes


def numbers(options: dict[str, Any], name: str) -> int | float | list[int | float]:
    """
    Raises:
        ConversionError: The option is neither a number nor one to three of them.
    """
    value = options[name]
    several = list(value) if isinstance(value, list | tuple) else [value]
    if not 1 <= len(several) <= 3 or not all(isinstance(number, int | float) for number in several):
        raise ConversionError(f"it states timm's {written(options, name)}, which must be a number or one per channel")
    return several if isinstance(value, list | tuple) else value


def written(options: dict[str, Any], name: str) -> str:
    """As on the command line. Abbreviated: a small file can hold values whose text would fill the memory."""
    return f"--{name.replace('_', '-')} {reprlib.repr(options[name])}"
