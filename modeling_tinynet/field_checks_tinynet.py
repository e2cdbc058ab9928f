"""What the fields of a TinyNetConfig may be called and may hold: one sentence for each mistake."""

import difflib
import math
import numbers
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

from transformers import PreTrainedConfig
from transformers.activations import ACT2FN

STAGE_TABLE = ("kernel_sizes", "strides", "expand_ratios", "out_channels", "num_block_repeats")

# What timm's create_model takes, to our field.
TIMM_MODEL_ARGS = {
    "in_chans": "num_channels",
    "num_classes": "num_labels",
    "drop_rate": "dropout_rate",
    "drop_path_rate": "drop_path_rate",
    "bn_eps": "batch_norm_eps",
    "bn_momentum": "batch_norm_momentum",
}

_POSITIVE = (
    "num_channels",
    "width_multiplier",
    "depth_multiplier",
    "stem_channels",
    "head_channels",
    "squeeze_excite_ratio",
    "batch_norm_eps",
)
_RATES = ("dropout_rate", "drop_path_rate")
_FRACTIONS = ("crop_pct", "batch_norm_momentum")

# As alike as image_sise is to image_size; less alike are the names that transformers adds to every configuration.
_MISSPELLED = 0.85


def check_value(name: str, value: Any) -> None:
    """
    Checks what can be checked of one field alone; its type is already right.

    Raises:
        ValueError: No network can be built with `value`.
    """
    if name in _POSITIVE and not 0 < value < math.inf:
        raise ValueError(f"{name} must be positive, got {value}")
    if name in _RATES and not 0 <= value < 1:
        raise ValueError(f"{name} must be at least 0 and below 1, got {value}")
    if name in _FRACTIONS and not 0 < value <= 1:
        raise ValueError(f"{name} must be above 0 and at most 1, got {value}")
    if name in STAGE_TABLE and (not value or min(value) < 1):
        raise ValueError(f"{name} must hold positive numbers, one for each stage, got {list(value)}")
    if name == "kernel_sizes" and any(kernel_size % 2 == 0 for kernel_size in value):
        raise ValueError(f"kernel_sizes must be odd, got {list(value)}")
    if name == "image_mean" and not all(map(math.isfinite, value)):
        raise ValueError(f"image_mean must hold finite numbers, got {list(value)}")
    if name == "image_std" and not all(0 < number < math.inf for number in value):
        raise ValueError(f"image_std must hold positive, finite numbers, got {list(value)}")
    if name == "hidden_act" and value not in ACT2FN:
        close = difflib.get_close_matches(value, ACT2FN, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ", such as 'silu' or 'relu'"
        raise ValueError(f"hidden_act must be a key of transformers.activations.ACT2FN, got {value!r}{hint}")
    if name == "num_labels" and not (isinstance(value, numbers.Integral) and int(value) >= 0):
        raise ValueError(f"num_labels must be a whole number, 0 for a network without a classifier, got {value!r}")
    if name == "id2label" and not isinstance(value, Mapping | None):
        raise ValueError(f"id2label must be a dictionary from the number of a class to its label, got {value!r}")
    if name == "id2label" and value is not None and sorted(map(str, value)) != sorted(map(str, range(len(value)))):
        raise ValueError(f"id2label must name the classes 0 to {len(value) - 1}, got the numbers {list(value)}")
    if name == "label2id" and value is not None and not all(str(index).isdecimal() for index in value.values()):
        raise ValueError(f"label2id must give each label the number of its class, got {value}")


def check_names(names: Iterable[str], config_class: type) -> None:
    """
    Checks the names of keyword arguments that are no fields of `config_class`; transformers keeps any of them.

    Raises:
        ValueError: The name is timm's for one of the fields, or nearly one of them, or that of a computed value.
    """
    fields = config_class.__dataclass_fields__  # type: ignore[attr-defined]
    known = [*fields, "num_labels", "out_features", "out_indices"]
    # Not those that transformers gives to every configuration: other versions of it have others, of similar names.
    inherited = set(PreTrainedConfig.__dataclass_fields__) - {"id2label", "label2id"}
    own = [name for name in known if name not in inherited]
    for name in names:
        if name in known:
            continue
        if name in TIMM_MODEL_ARGS:
            raise ValueError(f"{name} is timm's name for {TIMM_MODEL_ARGS[name]}; pass {TIMM_MODEL_ARGS[name]}")
        attribute = getattr(config_class, name, None)
        if isinstance(attribute, property) and attribute.fset is None:
            raise ValueError(f"{name} is computed from the other fields and cannot be set")
        if attribute is None and (close := difflib.get_close_matches(name, own, n=1, cutoff=_MISSPELLED)):
            raise ValueError(f"{config_class.__name__} has no field {name}; did you mean {close[0]}?")


def check_labels(id2label: Mapping[int, str], label2id: Mapping[str, int | str]) -> None:
    """
    Raises:
        ValueError: The two disagree on a class.
    """
    for index, label in id2label.items():
        if label not in label2id:
            raise ValueError(f"label2id lacks {label!r}, the label of class {index} in id2label")
    for label, number in label2id.items():
        if (theirs := id2label.get(int(number))) != label:
            raise ValueError(f"label2id gives {label!r} the number {number}, but in id2label that is {theirs!r}")


def for_channels(values: Sequence[float], num_channels: int) -> list[float]:
    """A mean or standard deviation for `num_channels` channels: unless it is for as many, its mean, as in timm."""
    return list(values) if len(values) == num_channels else [fmean(values)] * num_channels


__all__ = ["STAGE_TABLE", "TIMM_MODEL_ARGS", "check_labels", "check_names", "check_value", "for_channels"]
