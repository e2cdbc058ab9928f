"""What of a run's files is said or published, and what each value must be: the check that damaged files meet.

A kind is one of the words below, a tuple of a kind and None (null is allowed), a set of texts, a list of one kind, or
a dictionary of keys; a key that ends in `?` may be missing, and `*` stands for all other keys.
"""

import math
from collections.abc import Callable
from typing import Any

from hub_card.run_files import PublishError

TEXT, COUNT, NUMBER, FLAG = "text", "a whole number of at least 0", "a number", "true or false"
DIGITS, SETTING = "a whole number from 0 to 9", "a value or a list of values"


def is_text(value: Any) -> bool:
    return isinstance(value, str) and not any("\ud800" <= letter <= "\udfff" for letter in value)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _is_setting(value: Any) -> bool:
    items = value if isinstance(value, list) else [value]
    return all(item is None or isinstance(item, bool) or _is_number(item) or is_text(item) for item in items)


KINDS: dict[str, Callable[[Any], bool]] = {
    TEXT: is_text,
    COUNT: lambda value: type(value) is int and value >= 0,
    NUMBER: _is_number,
    DIGITS: lambda value: type(value) is int and 0 <= value <= 9,
    FLAG: lambda value: isinstance(value, bool),
    SETTING: _is_setting,
}

COUNTS = {"n": COUNT, "top_1_correct": COUNT, "top_5_correct": COUNT, "top_1": NUMBER, "top_5": NUMBER}
METRIC = {
    "name": TEXT,
    "label": TEXT,
    "ratio": ({"part": TEXT, "whole": TEXT}, None),
    "percent": FLAG,
    "digits": DIGITS,
    "hub_type": TEXT,
    "hub_args": {"*": SETTING},
}
CLASS_COUNTS = {"class": TEXT, "top_1_correct": COUNT, "n": COUNT}
SUMMARY = {
    "model": TEXT,
    "dataset": TEXT,
    "is_local": {"model": FLAG, "dataset": FLAG},
    "num_train": COUNT,
    "num_validation": COUNT,
    "num_classes": COUNT,
    "parameters": COUNT,
    "macs": COUNT,
    "image_size": COUNT,
    "epochs": COUNT,
    "steps": COUNT,
    "best": COUNTS
    | {
        "weights": {"raw", "ema"},
        "epoch": COUNT,
        "per_class?": [CLASS_COUNTS],
    },
    "metrics?": [METRIC],
    "class_metrics?": [METRIC],
    "images_per_s": (NUMBER, None),
    "elapsed_s": NUMBER,
    "changes?": [TEXT],
    "processes": COUNT,
    "precision": TEXT,
    "environment": {
        "commit": (TEXT, None),
        "date": TEXT,
        "processor": TEXT,
        "cpu_cores": (COUNT, None),
        "gpu": (TEXT, None),
        "versions": {"*": (TEXT, None)},
    },
}
RECIPE = {"model": TEXT, "dataset": TEXT, "schedule": TEXT, "optimizer": TEXT, "*": SETTING}
RECORD = {"kind": {"step", "epoch"}, "step": COUNT, "epoch": NUMBER, "raw?": (COUNTS, None), "ema?": (COUNTS, None)}
DTYPE = ({"float32", "float16", "bfloat16", "float64"}, None)  # transformers looks the text up in torch
NETWORK = {"model_type": {"tinynet"}, "id2label": {"*": TEXT}, "dtype?": DTYPE, "torch_dtype?": DTYPE}
PROCESSOR = {
    **{f"do_{what}?": FLAG for what in ("resize", "center_crop", "rescale", "normalize", "convert_rgb")},
    "do_pad?": (FLAG, None),
    "size?": {"*": (COUNT, None)},
    "crop_size?": {"*": (COUNT, None)},
    "resample?": COUNT,
    "rescale_factor?": NUMBER,
    "image_processor_type?": TEXT,
}


def metric_values(metrics: list[dict[str, Any]]) -> dict[str, Any]:
    """The kinds of what an evaluation holds of these metrics: all may be missing, in what an earlier start wrote."""
    counts = [count for metric in metrics if metric["ratio"] for count in metric["ratio"].values()]
    return {f"{metric['name']}?": (NUMBER, None) for metric in metrics} | {f"{count}?": COUNT for count in counts}


def check(value: Any, kind: Any, file: str, name: str = "") -> None:
    """Compares a value of a file with its kind.

    Args:
        file: as the message names it.
        name: of the value in the file, like `best.top_1`; empty for all of it.

    Raises:
        PublishError: naming the file, the value's name, what it must be, and what it is.
    """
    place = f"{file}: {name}" if name else file
    if isinstance(kind, tuple):
        if value is None:
            return
        kind = kind[0]
    if isinstance(kind, dict):
        if not isinstance(value, dict):
            raise _wrong(place, "a mapping", value)
        _check_keys(value, kind, file, name)
    elif isinstance(kind, list):
        if not isinstance(value, list):
            raise _wrong(place, "a list", value)
        for index, item in enumerate(value):
            check(item, kind[0], file, f"{name}[{index}]")
    elif isinstance(kind, set):
        if not (isinstance(value, str) and value in kind):
            raise _wrong(place, " or ".join(sorted(kind)), value)
    elif not KINDS[kind](value):
        raise _wrong(place, kind, value)


def _check_keys(value: dict[str, Any], kinds: dict[str, Any], file: str, name: str) -> None:
    prefix = f"{name}." if name else ""
    known = {key.removesuffix("?"): kind for key, kind in kinds.items()}
    for key in kinds:
        if key != "*" and not key.endswith("?") and key not in value:
            raise PublishError(f"{file} has no {prefix}{key}: restore the file, or train again")
    for key, item in value.items():
        if key in known and key != "*":
            check(item, known[key], file, prefix + key)
        elif "*" in known:
            check(key, TEXT, file, f"the key {prefix}{key!r}")
            check(item, known["*"], file, f"{prefix}{key}")


def _wrong(place: str, kind: str, value: Any) -> PublishError:
    shown = repr(value)
    shown = shown if len(shown) <= 60 else f"{shown[:60]}..."
    return PublishError(f"{place} must be {kind}, got {shown}: restore the file, or train again")
