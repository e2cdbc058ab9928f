"""Loading: stem weights for one number of input channels become weights for another, as in timm."""

import math
from typing import Any

import torch
from transformers.core_model_loading import ConversionOps
from transformers.utils import logging

from .configuration_tinynet import TinyNetConfig

logger = logging.get_logger(__name__)


def adapt_input_channels(weight: torch.Tensor, num_channels: int) -> torch.Tensor:
    """
    The weight of a convolution for another number of input channels: summed for one channel, else repeated in order
    and scaled so that an input that is the same in all channels gives the same output.

    Args:
        weight (`torch.Tensor`): (out_channels, in_channels, height, width).
        num_channels (`int`): Input channels to adapt it to.

    Returns:
        `torch.Tensor`: (out_channels, num_channels, height, width), in the data type of `weight`.

    Source: `adapt_input_conv` in timm's `models/_manipulate.py`.
    """
    in_channels = weight.shape[1]
    if num_channels == in_channels:
        return weight
    in_float = weight.float()
    if num_channels == 1:
        return in_float.sum(dim=1, keepdim=True).to(weight.dtype)
    repeated = in_float.repeat(1, math.ceil(num_channels / in_channels), 1, 1)[:, :num_channels]
    return (repeated * (in_channels / num_channels)).to(weight.dtype)


class StemConversion(ConversionOps):
    """
    Adapts the stem to `config.num_channels` when that was chosen by whoever loads the model. A file that contradicts
    its own config.json is left as it is, and refused by `from_pretrained`. Saving changes nothing.
    """

    def __init__(self, is_loading: bool = True):
        self.is_loading = is_loading

    @torch.no_grad()
    def convert(
        self,
        input_dict: dict[str, Any],
        source_patterns: list[str],
        target_patterns: list[str],
        config: Any = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        (tensors,) = input_dict.values()
        weight = tensors[0] if isinstance(tensors, list) else tensors
        # Inside another model, such as a detector, this is the configuration of that one. By model_type, not by class:
        # remote code brings a class of its own, and the conversion that was registered last serves both.
        is_tinynet = getattr(config, "model_type", None) == TinyNetConfig.model_type
        is_own_choice = is_tinynet and getattr(config, "_channels_of_file", None) != config.num_channels
        if self.is_loading and is_own_choice and weight.shape[1] != config.num_channels:
            logger.warning(
                f"The stem's weights for {weight.shape[1]} input channels are adapted to {config.num_channels}:"
                f" {'summed' if config.num_channels == 1 else 'repeated and scaled'}, as in timm."
            )
            weight = adapt_input_channels(weight, config.num_channels)
        return {target_patterns[0]: weight}

    @property
    def reverse_op(self) -> ConversionOps:
        return StemConversion(is_loading=not self.is_loading)


__all__ = ["StemConversion", "adapt_input_channels"]
