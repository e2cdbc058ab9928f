# Copyright 2026 The modeling-tinynet contributors.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""TinyNet's configuration: EfficientNet-B0's stage table, and how the tiny formula twists it."""

import itertools
import math
import os
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.backbone_utils import BackboneConfigMixin
from transformers.utils import logging

logger = logging.get_logger(__name__)

# Resolution, width and depth of the five published networks (arXiv 2010.14819, Table 2); image_size = int(224 * r).
TINYNET_VARIANTS: dict[str, dict[str, float | int]] = {
    "tinynet_a": {"image_size": 192, "width_multiplier": 1.0, "depth_multiplier": 1.2},
    "tinynet_b": {"image_size": 188, "width_multiplier": 0.75, "depth_multiplier": 1.1},
    "tinynet_c": {"image_size": 184, "width_multiplier": 0.54, "depth_multiplier": 0.85},
    "tinynet_d": {"image_size": 152, "width_multiplier": 0.54, "depth_multiplier": 0.695},
    "tinynet_e": {"image_size": 106, "width_multiplier": 0.51, "depth_multiplier": 0.6},
}

_CHANNEL_DIVISOR = 8
_STEM_STRIDE = 2


def _round_channels(channels: float) -> int:
    """The nearest multiple of 8, at least 8, and never more than 10 % below `channels` (EfficientNet's rule)."""
    rounded = max(_CHANNEL_DIVISOR, int(channels + _CHANNEL_DIVISOR / 2) // _CHANNEL_DIVISOR * _CHANNEL_DIVISOR)
    return rounded if rounded >= 0.9 * channels else rounded + _CHANNEL_DIVISOR


def _imagenet_id2label() -> dict[int, str]:
    """The 1,000 class names of ImageNet-1k, as torchvision ships them beside its own weights."""
    from torchvision.models import ResNet18_Weights

    return dict(enumerate(ResNet18_Weights.IMAGENET1K_V1.meta["categories"]))


@strict
class TinyNetConfig(BackboneConfigMixin, PreTrainedConfig):
    r"""
    The configuration of a TinyNet (Han et al., "Model Rubik's Cube: Twisting Resolution, Depth and Width for
    TinyNets", NeurIPS 2020, arXiv 2010.14819). `TinyNetConfig()` is TinyNet-A with ImageNet-1k's 1,000 classes;
    [`TinyNetConfig.from_variant`] gives the other published networks. The lists hold one entry per stage of
    EfficientNet-B0's table, before the multipliers are applied; what follows from them (`depths`, `hidden_sizes`,
    `macs`, `parameter_count`, ...) is a property, computed without building the network.

    Args:
        num_channels (`int`): Channels of the input image.
        image_size (`int`): Side of the square input in pixels. The network takes any size; this one is what the
            image processor crops to and what `macs` is counted at. At least the network's stride, 32.
        width_multiplier (`float`): Factor on the channels of the stages; stem and head keep their width.
        depth_multiplier (`float`): Factor on the number of blocks of each stage.
        stem_channels (`int`): Channels after the stem convolution, which is not scaled.
        head_channels (`int`): Channels after the head convolution; scaled only by a width multiplier above 1.
        kernel_sizes, strides, expand_ratios, out_channels, num_block_repeats (`list[int]`): The stage table.
        hidden_act (`str`): Activation, a key of `transformers.activations.ACT2FN`.
        squeeze_excite_ratio (`float`): Width of a squeeze-and-excite bottleneck over its block's input channels.
        batch_norm_eps, batch_norm_momentum (`float`): As in `torch.nn.BatchNorm2d`.
        dropout_rate (`float`): Dropout before the classifier.
        drop_path_rate (`float`): Stochastic depth of the last block; block i of n has `drop_path_rate * i / n`.
        image_mean, image_std (`list[float]`): Per channel, of pixels in [0, 1]: the evaluation transform.
        crop_pct (`float`): The evaluation transform resizes the shorter side to `floor(image_size / crop_pct)`.

    Raises:
        ValueError: A field has a value no network can be built from; the message names field and value.

    Example:

    ```python
    >>> from modeling_tinynet import TinyNetConfig

    >>> config = TinyNetConfig.from_variant("tinynet_e", num_labels=10)
    >>> config.depths, config.hidden_sizes
    ([1, 1, 1, 2, 2, 2, 1], [8, 16, 24, 40, 56, 96, 160])
    ```
    """

    model_type = "tinynet"

    num_channels: int = 3
    image_size: int = 192
    width_multiplier: float | int = 1.0
    depth_multiplier: float | int = 1.2
    stem_channels: int = 32
    head_channels: int = 1280
    kernel_sizes: list[int] | tuple[int, ...] = (3, 3, 5, 3, 5, 5, 3)
    strides: list[int] | tuple[int, ...] = (1, 2, 2, 2, 1, 2, 1)
    expand_ratios: list[int] | tuple[int, ...] = (1, 6, 6, 6, 6, 6, 6)
    out_channels: list[int] | tuple[int, ...] = (16, 24, 40, 80, 112, 192, 320)
    num_block_repeats: list[int] | tuple[int, ...] = (1, 2, 2, 3, 3, 4, 1)
    hidden_act: str = "silu"
    squeeze_excite_ratio: float | int = 0.25
    batch_norm_eps: float | int = 1e-5
    batch_norm_momentum: float | int = 0.1
    dropout_rate: float | int = 0.2
    drop_path_rate: float | int = 0.0
    image_mean: list[float | int] | tuple[float | int, ...] = (0.485, 0.456, 0.406)
    image_std: list[float | int] | tuple[float | int, ...] = (0.229, 0.224, 0.225)
    crop_pct: float | int = 0.875
    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        for name in self._list_fields:
            setattr(self, name, list(getattr(self, name)))
        # Called here too: @strict runs them afterwards, and wraps their ValueError into an error of its own.
        self.validate_stage_table()
        self.validate_ranges()
        self.stage_names = ["stem"] + [f"stage{index}" for index in range(1, len(self.out_channels) + 1)]
        kwargs.pop("stage_names", None)
        self.set_output_features_output_indices(
            out_features=kwargs.pop("out_features", None), out_indices=kwargs.pop("out_indices", None)
        )
        if self.id2label is None and kwargs.setdefault("num_labels", 1000) == 1000:
            self.id2label: dict[int, str] | None = _imagenet_id2label()
        if self.id2label is not None and self.label2id is None:  # type: ignore[has-type]
            self.label2id = {name: int(index) for index, name in self.id2label.items()}
        super().__post_init__(**kwargs)

    @classmethod
    def from_variant(cls, variant: str, **overrides: Any) -> "TinyNetConfig":
        """
        The configuration of a published network, `tinynet_a` to `tinynet_e`, with any field overridden.

        Raises:
            ValueError: `variant` is not one of the five.
        """
        if variant not in TINYNET_VARIANTS:
            raise ValueError(f"variant must be one of {', '.join(TINYNET_VARIANTS)}, got {variant!r}")
        return cls(**{**TINYNET_VARIANTS[variant], **overrides})

    _stage_table = ("kernel_sizes", "strides", "expand_ratios", "out_channels", "num_block_repeats")
    _list_fields = (*_stage_table, "image_mean", "image_std")

    def validate_stage_table(self) -> None:
        lengths = {name: len(getattr(self, name)) for name in self._stage_table}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"the lists of the stage table must be equally long, got lengths {lengths}")
        for name in self._stage_table:
            values = getattr(self, name)
            if not values or min(values) < 1:
                raise ValueError(f"{name} must hold positive numbers, one for each stage, got {list(values)}")
        if any(kernel_size % 2 == 0 for kernel_size in self.kernel_sizes):
            raise ValueError(f"kernel_sizes must be odd, got {list(self.kernel_sizes)}")

    def validate_ranges(self) -> None:
        for name in (
            "num_channels",
            "width_multiplier",
            "depth_multiplier",
            "stem_channels",
            "head_channels",
            "squeeze_excite_ratio",
            "batch_norm_eps",
        ):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        for name in ("dropout_rate", "drop_path_rate"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 0 and below 1, got {getattr(self, name)}")
        for name in ("crop_pct", "batch_norm_momentum"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name} must be above 0 and at most 1, got {getattr(self, name)}")
        if self.image_size < (smallest := _STEM_STRIDE * math.prod(self.strides)):
            raise ValueError(
                f"image_size must be at least {smallest} pixels, the network's stride, got {self.image_size}"
            )
        if not min(self.image_std, default=0) > 0:
            raise ValueError(f"image_std must hold positive numbers, got {self.image_std}")
        for name in ("image_mean", "image_std"):
            if len(getattr(self, name)) != self.num_channels:
                raise ValueError(
                    f"{name} must hold one number for each of the {self.num_channels} channels,"
                    f" got {getattr(self, name)}"
                )

    @property
    def variant(self) -> str | None:
        """The published network this one is in width and depth, whatever its input size and head; else None."""
        default = type(self)
        if any(list(getattr(self, name)) != list(getattr(default, name)) for name in self._stage_table):
            return None
        if any(
            getattr(self, name) != getattr(default, name)
            for name in ("stem_channels", "head_channels", "hidden_act", "squeeze_excite_ratio")
        ):
            return None
        multipliers = (self.width_multiplier, self.depth_multiplier)
        for variant, fields in TINYNET_VARIANTS.items():
            if multipliers == (fields["width_multiplier"], fields["depth_multiplier"]):
                return variant
        return None

    @property
    def depths(self) -> list[int]:
        """Blocks in each stage: `max(1, round(repeats * depth_multiplier))`."""
        return [max(1, round(repeats * self.depth_multiplier)) for repeats in self.num_block_repeats]

    @property
    def hidden_sizes(self) -> list[int]:
        """Output channels of each stage: `out_channels * width_multiplier`, rounded to multiples of 8."""
        return [_round_channels(channels * self.width_multiplier) for channels in self.out_channels]

    @property
    def hidden_size(self) -> int:
        """Channels after the head convolution, which is the length of the pooled features."""
        return max(self.head_channels, _round_channels(self.head_channels * self.width_multiplier))

    @property
    def num_hidden_layers(self) -> int:
        """The number of stages, which is the number of hidden states less one (the stem's)."""
        return len(self.out_channels)

    @property
    def resize_size(self) -> int:
        """Shorter side in pixels that the evaluation transform resizes to before it crops `image_size`."""
        return math.floor(self.image_size / self.crop_pct)

    def squeeze_channels(self, in_channels: int) -> int:
        """Width of the squeeze-and-excite bottleneck of a block with `in_channels` input channels."""
        return max(1, round(in_channels * self.squeeze_excite_ratio))

    @property
    def block_shapes(self) -> list[list[tuple[int, int, int, int, int]]]:
        """For each block of each stage: (in_channels, expanded channels, out_channels, kernel size, stride)."""
        stages, in_channels = [], self.stem_channels
        table = zip(self.hidden_sizes, self.depths, self.kernel_sizes, self.strides, self.expand_ratios, strict=True)
        for out_channels, depth, kernel_size, stride, expand_ratio in table:
            stage = []
            for index in range(depth):
                expanded = _round_channels(in_channels * expand_ratio)
                stage.append((in_channels, expanded, out_channels, kernel_size, stride if index == 0 else 1))
                in_channels = out_channels
            stages.append(stage)
        return stages

    @property
    def parameter_count(self) -> int:
        """Trainable parameters of `TinyNetForImageClassification`, head included."""
        count = self.num_channels * self.stem_channels * 9 + 2 * self.stem_channels
        for in_channels, expanded, out_channels, kernel_size, _ in itertools.chain(*self.block_shapes):
            if expanded != in_channels:
                count += in_channels * expanded + 2 * expanded
            squeezed = self.squeeze_channels(in_channels)
            count += expanded * kernel_size**2 + 2 * expanded
            count += 2 * expanded * squeezed + squeezed + expanded
            count += expanded * out_channels + 2 * out_channels
        count += self.hidden_sizes[-1] * self.hidden_size + 2 * self.hidden_size
        return count + (self.hidden_size + 1) * self.num_labels

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one forward pass at `image_size`: all convolutions and the classifier."""
        side = math.ceil(self.image_size / _STEM_STRIDE)
        count = self.num_channels * self.stem_channels * 9 * side**2
        for in_channels, expanded, out_channels, kernel_size, stride in itertools.chain(*self.block_shapes):
            if expanded != in_channels:
                count += in_channels * expanded * side**2
            side = math.ceil(side / stride)
            count += expanded * kernel_size**2 * side**2
            count += 2 * expanded * self.squeeze_channels(in_channels)
            count += expanded * out_channels * side**2
        count += self.hidden_sizes[-1] * self.hidden_size * side**2
        return count + self.hidden_size * self.num_labels

    def to_diff_dict(self) -> dict[str, Any]:
        """With the labels, always: transformers leaves out two unnamed ones, its own default but not TinyNet's."""
        return {**super().to_diff_dict(), "id2label": self.id2label, "label2id": self.label2id}

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """As `PreTrainedConfig.get_config_dict`, and reads the config.json of timm-format repositories too."""
        config_dict, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        if "architecture" in config_dict:
            config_dict = _from_timm(config_dict)
        return config_dict, kwargs


# What timm's create_model was called with, to our field.
_TIMM_MODEL_ARGS = {
    "in_chans": "num_channels",
    "num_classes": "num_labels",
    "drop_rate": "dropout_rate",
    "drop_path_rate": "drop_path_rate",
    "bn_eps": "batch_norm_eps",
    "bn_momentum": "batch_norm_momentum",
}


def _from_timm(timm_config: dict[str, Any]) -> dict[str, Any]:
    """
    Our fields from a config.json that timm wrote (`timm.models._hub.save_config_for_hf`). Older files keep the
    fields of `pretrained_cfg` at the top level; newer ones carry the model's arguments in `model_args`.

    Raises:
        ValueError: The file describes another network than the five TinyNets, or one with changed building blocks.
    """
    architecture = timm_config["architecture"]
    if architecture not in TINYNET_VARIANTS:
        raise ValueError(f"architecture must be one of {', '.join(TINYNET_VARIANTS)}, got {architecture!r}")
    pretrained_cfg = timm_config.get("pretrained_cfg", timm_config)
    model_args = {"global_pool": timm_config.get("global_pool"), **timm_config.get("model_args", {})}
    if model_args.pop("global_pool") not in (None, "avg") or set(model_args) - set(_TIMM_MODEL_ARGS):
        raise ValueError(
            f"model_args {model_args} or global_pool {timm_config.get('global_pool')!r} change the network; it must "
            f"pool by averaging, and only {list(_TIMM_MODEL_ARGS)} can differ"
        )

    fields = {
        "model_type": TinyNetConfig.model_type,
        **TINYNET_VARIANTS[architecture],
        "num_labels": timm_config.get("num_classes", pretrained_cfg.get("num_classes", 1000)),
    }
    if "input_size" in pretrained_cfg:
        fields["num_channels"], fields["image_size"], _ = pretrained_cfg["input_size"]
    for theirs, ours in (("mean", "image_mean"), ("std", "image_std"), ("crop_pct", "crop_pct")):
        if theirs in pretrained_cfg:
            fields[ours] = pretrained_cfg[theirs]
    fields |= {_TIMM_MODEL_ARGS[name]: value for name, value in model_args.items() if value is not None}
    if (class_names := _timm_class_names(timm_config, pretrained_cfg)) is not None:
        if len(class_names) != fields["num_labels"]:
            raise ValueError(f"config.json names {len(class_names)} classes but has {fields['num_labels']}")
        fields["id2label"] = dict(enumerate(class_names))
    return fields


def _timm_class_names(*sources: dict[str, Any]) -> list[str] | None:
    """The names that timm stored: a list, or a dictionary by index; WordNet ids are described by a second one."""

    def first(*keys: str) -> Any:
        return next((source[key] for source in sources for key in keys if source.get(key)), None)

    names, descriptions = first("label_names", "labels"), first("label_descriptions") or {}
    if isinstance(names, dict):
        names = [names[index] for index in sorted(names, key=int)]
    return None if names is None else [descriptions.get(name, name) for name in names]


__all__ = ["TINYNET_VARIANTS", "TinyNetConfig"]
