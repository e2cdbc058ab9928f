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
"""PyTorch TinyNet: block -> stage -> encoder -> model, classifier, backbone. Parameters carry timm's names."""

import math

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.backbone_utils import BackboneMixin, filter_output_hidden_states
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import (
    BackboneOutput,
    BaseModelOutputWithPoolingAndNoAttention,
    ImageClassifierOutputWithNoAttention,
)
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .adapters_tinynet import warn_of_unsaved_statistics
from .configuration_tinynet import TinyNetConfig
from .stem_conversion_tinynet import StemConversion


def _depthwise_conv(channels: int, kernel_size: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(channels, channels, kernel_size, stride, padding=kernel_size // 2, groups=channels, bias=False)


def _batch_norm(config: TinyNetConfig, channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=config.batch_norm_eps, momentum=config.batch_norm_momentum)


def _may_overwrite() -> bool:
    """
    Whether an operation may write into its input: only when no gradient is recorded. Never in a trace, which is
    replayed, and checked by `torch.jit.trace`, with gradients and without.
    """
    return not (torch.is_grad_enabled() or torch.jit.is_tracing())


def _add(hidden_states: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
    """The sum, written into its first input like `TinyNetActivation` where that is allowed."""
    return hidden_states.add_(residual) if _may_overwrite() else hidden_states + residual


class TinyNetDropPath(nn.Module):
    """Stochastic depth (arXiv 1603.09382): drops whole samples of a residual branch, and rescales the others."""

    def __init__(self, drop_prob: float):
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if self.drop_prob == 0.0 or not self.training:
            return hidden_states
        keep_prob = 1.0 - self.drop_prob
        mask = hidden_states.new_empty((hidden_states.shape[0], 1, 1, 1)).bernoulli_(keep_prob).div_(keep_prob)
        return hidden_states * mask

    def extra_repr(self) -> str:
        return f"p={self.drop_prob}"


class TinyNetActivation(nn.Module):
    """
    The configured activation. SiLU overwrites its input when no gradient is recorded: the input is always the fresh
    output of a BatchNorm or convolution, and on CPU writing a second tensor costs as much as SiLU's arithmetic. A
    forward hook that keeps a BatchNorm's output must therefore clone it, or run with gradients enabled.
    """

    def __init__(self, config: TinyNetConfig):
        super().__init__()
        self.activation = ACT2FN[config.hidden_act]
        self.is_silu = config.hidden_act in ("silu", "swish")

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if self.is_silu and _may_overwrite():
            return nn.functional.silu(hidden_states, inplace=True)
        return self.activation(hidden_states)


class TinyNetSqueezeExcite(nn.Module):
    """Squeeze-and-excitation (arXiv 1709.01507): scales each channel by a gate computed from all channels' means."""

    def __init__(self, config: TinyNetConfig, channels: int, squeezed_channels: int):
        super().__init__()
        self.conv_reduce = nn.Conv2d(channels, squeezed_channels, kernel_size=1)
        self.activation = TinyNetActivation(config)
        self.conv_expand = nn.Conv2d(squeezed_channels, channels, kernel_size=1)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        # A mean, not AdaptiveAvgPool2d, whose backward pass is not deterministic on CUDA.
        gate = hidden_states.mean((2, 3), keepdim=True)
        gate = self.conv_expand(self.activation(self.conv_reduce(gate))).sigmoid()
        return hidden_states.mul_(gate) if _may_overwrite() else hidden_states * gate


class TinyNetDepthwiseSeparableBlock(GradientCheckpointingLayer):
    """The block of a stage that does not expand: depthwise convolution, squeeze-and-excite, pointwise projection."""

    def __init__(
        self,
        config: TinyNetConfig,
        in_channels: int,
        expanded_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int,
        drop_path_rate: float,
    ):
        super().__init__()
        self.conv_dw = _depthwise_conv(in_channels, kernel_size, stride)
        self.bn1 = _batch_norm(config, in_channels)
        self.activation = TinyNetActivation(config)
        self.se = TinyNetSqueezeExcite(config, in_channels, config.squeeze_channels(in_channels))
        self.conv_pw = nn.Conv2d(in_channels, out_channels, kernel_size=1, bias=False)
        self.bn2 = _batch_norm(config, out_channels)
        self.drop_path = TinyNetDropPath(drop_path_rate)
        self.has_residual = stride == 1 and in_channels == out_channels

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        residual = hidden_states
        hidden_states = self.activation(self.bn1(self.conv_dw(hidden_states)))
        hidden_states = self.bn2(self.conv_pw(self.se(hidden_states)))
        if self.has_residual:
            hidden_states = _add(self.drop_path(hidden_states), residual)
        return hidden_states


class TinyNetInvertedResidualBlock(GradientCheckpointingLayer):
    """MBConv (arXiv 1801.04381): pointwise expansion, depthwise convolution, squeeze-and-excite, projection."""

    def __init__(
        self,
        config: TinyNetConfig,
        in_channels: int,
        expanded_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int,
        drop_path_rate: float,
    ):
        super().__init__()
        self.conv_pw = nn.Conv2d(in_channels, expanded_channels, kernel_size=1, bias=False)
        self.bn1 = _batch_norm(config, expanded_channels)
        self.conv_dw = _depthwise_conv(expanded_channels, kernel_size, stride)
        self.bn2 = _batch_norm(config, expanded_channels)
        self.activation = TinyNetActivation(config)
        self.se = TinyNetSqueezeExcite(config, expanded_channels, config.squeeze_channels(in_channels))
        self.conv_pwl = nn.Conv2d(expanded_channels, out_channels, kernel_size=1, bias=False)
        self.bn3 = _batch_norm(config, out_channels)
        self.drop_path = TinyNetDropPath(drop_path_rate)
        self.has_residual = stride == 1 and in_channels == out_channels

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        residual = hidden_states
        hidden_states = self.activation(self.bn1(self.conv_pw(hidden_states)))
        hidden_states = self.activation(self.bn2(self.conv_dw(hidden_states)))
        hidden_states = self.bn3(self.conv_pwl(self.se(hidden_states)))
        if self.has_residual:
            hidden_states = _add(self.drop_path(hidden_states), residual)
        return hidden_states


class TinyNetStage(nn.ModuleList):
    """The blocks of one stage in sequence; a list itself, so that parameters are called `blocks.<stage>.<block>`."""

    def __init__(self, config: TinyNetConfig, stage_index: int):
        first_block = sum(config.depths[:stage_index])
        num_blocks = sum(config.depths)
        super().__init__()
        for index, shape in enumerate(config.block_shapes[stage_index]):
            in_channels, expanded_channels = shape[:2]
            block = (
                TinyNetInvertedResidualBlock if expanded_channels != in_channels else TinyNetDepthwiseSeparableBlock
            )
            drop_path_rate = config.drop_path_rate * (first_block + index) / num_blocks
            self.append(block(config, *shape, drop_path_rate=drop_path_rate))

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        for block in self:
            hidden_states = block(hidden_states)
        return hidden_states


class TinyNetPreTrainedModel(PreTrainedModel):
    config: TinyNetConfig
    base_model_prefix = "tinynet"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _input_embed_layer = "conv_stem"  # whose output must ask for gradients, for adapters behind checkpointed blocks
    _no_split_modules = ["TinyNetDepthwiseSeparableBlock", "TinyNetInvertedResidualBlock"]
    _can_record_outputs = {"hidden_states": TinyNetStage}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """timm's "goog" initialization: convolutions N(0, sqrt(2 / fan_out)), linear U(+-1/sqrt(out)), biases 0."""
        super()._init_weights(module)
        if isinstance(module, nn.Conv2d):
            fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
            init.normal_(module.weight, mean=0.0, std=math.sqrt(2.0 / fan_out))
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            bound = 1.0 / math.sqrt(module.out_features)
            init.uniform_(module.weight, -bound, bound)
            init.zeros_(module.bias)


# Its subclasses call `post_init`, when they are complete: once here and once there would draw other initial weights.
class TinyNetEncoder(TinyNetPreTrainedModel):  # trf-ignore: TRF013
    """
    Stem and stages. Model and backbone inherit them: as a submodule they would put a prefix before timm's names.
    """

    def __init__(self, config: TinyNetConfig):
        super().__init__(config)
        config.validate_consistency()  # of fields that may have been set since it was made
        self.conv_stem = nn.Conv2d(config.num_channels, config.stem_channels, 3, stride=2, padding=1, bias=False)
        self.bn1 = _batch_norm(config, config.stem_channels)
        self.activation = TinyNetActivation(config)
        self.blocks = nn.ModuleList(TinyNetStage(config, index) for index in range(len(config.depths)))

    def stem(self, pixel_values: torch.FloatTensor) -> torch.Tensor:
        """(batch, num_channels, height, width) to (batch, stem_channels, height / 2, width / 2)."""
        if self.training and not torch.compiler.is_compiling():
            warn_of_unsaved_statistics(self)
        return self.activation(self.bn1(self.conv_stem(pixel_values)))


class TinyNetModel(TinyNetEncoder):
    """
    TinyNet without a classifier. Parameter names are timm's, so a timm checkpoint is a checkpoint of this class.

    Source: arXiv 2010.14819; timm's `efficientnet.py::_gen_tinynet`, whose outputs it reproduces to the bit.
    """

    _keys_to_ignore_on_load_unexpected = [r"^classifier\."]

    def __init__(self, config: TinyNetConfig):
        super().__init__(config)
        self.conv_head = nn.Conv2d(config.hidden_sizes[-1], config.hidden_size, kernel_size=1, bias=False)
        self.bn2 = _batch_norm(config, config.hidden_size)
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self, pixel_values: torch.FloatTensor, **kwargs: Unpack[TransformersKwargs]
    ) -> BaseModelOutputWithPoolingAndNoAttention:
        """
        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch, num_channels, height, width)`): Normalized images.

        Returns:
            `last_hidden_state` (batch, hidden_size, height / 32, width / 32), `pooler_output` (batch, hidden_size),
            and with `output_hidden_states=True` the outputs of the stem and of each stage.
        """
        hidden_states = self.stem(pixel_values)
        for stage in self.blocks:
            hidden_states = stage(hidden_states)
        hidden_states = self.activation(self.bn2(self.conv_head(hidden_states)))
        return BaseModelOutputWithPoolingAndNoAttention(
            last_hidden_state=hidden_states, pooler_output=hidden_states.mean((2, 3))
        )


class TinyNetForImageClassification(TinyNetPreTrainedModel):
    """TinyNet with dropout and a linear classifier on its pooled features."""

    accepts_loss_kwargs = False

    def __init__(self, config: TinyNetConfig):
        super().__init__(config)
        self.tinynet = TinyNetModel(config)
        self.dropout = nn.Dropout(config.dropout_rate)
        # CODEPATH: timm's headless checkpoints (num_classes 0) have no classifier.
        self.classifier = nn.Linear(config.hidden_size, config.num_labels) if config.num_labels else nn.Identity()
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.FloatTensor,
        labels: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> ImageClassifierOutputWithNoAttention:
        """
        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch, num_channels, height, width)`): Normalized images.
            labels (`torch.Tensor`, *optional*): Class ids (batch,) for cross-entropy, or floats of shape
                (batch, num_labels) for binary cross-entropy, or floats for a mean squared error, by
                `config.problem_type`, which is worked out from the labels when not given.

        Returns:
            `logits` (batch, num_labels); `loss` when there are labels; `hidden_states` of stem and stages on request.
        """
        outputs = self.tinynet(pixel_values, return_dict=True, **kwargs)
        logits = self.classifier(self.dropout(outputs.pooler_output))
        loss = None if labels is None else self.loss_function(labels, logits, self.config, **kwargs)
        return ImageClassifierOutputWithNoAttention(loss=loss, logits=logits, hidden_states=outputs.hidden_states)


class TinyNetBackbone(BackboneMixin, TinyNetEncoder):
    """TinyNet's stem and stages as feature maps for detection and segmentation heads."""

    has_attentions = False
    _keys_to_ignore_on_load_unexpected = [r"^classifier\.", r"^(tinynet\.)?(conv_head|bn2)\."]

    def __init__(self, config: TinyNetConfig):
        super().__init__(config)
        if not config.out_features:
            raise ValueError(f"out_features or out_indices must name a stage of {config.stage_names}, got none")
        self.num_features = [config.stem_channels, *config.hidden_sizes]
        self.post_init()

    @can_return_tuple
    @filter_output_hidden_states
    def forward(self, pixel_values: torch.FloatTensor, **kwargs: Unpack[TransformersKwargs]) -> BackboneOutput:
        """
        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch, num_channels, height, width)`): Normalized images.

        Returns:
            `feature_maps`, one (batch, channels, height, width) for each name in `config.out_features`.
        """
        hidden_states = self.stem(pixel_values)
        all_hidden_states: tuple[torch.Tensor, ...] = (hidden_states,)
        for stage in self.blocks:
            hidden_states = stage(hidden_states)
            all_hidden_states += (hidden_states,)
        feature_maps = tuple(
            feature_map
            for name, feature_map in zip(self.stage_names, all_hidden_states, strict=True)
            if name in self.out_features
        )
        return BackboneOutput(feature_maps=feature_maps, hidden_states=all_hidden_states)


# Checkpoints hold timm's key names: on loading into the classifier they get its base model's prefix, and lose it again
# on saving, so that the same file loads in timm. Here, and not in the package's __init__, for remote code's sake.
_to_channels = WeightConverter("conv_stem.weight", "conv_stem.weight", operations=[StemConversion()])
register_checkpoint_conversion_mapping(
    TinyNetConfig.model_type,
    [WeightRenaming(r"^(conv_stem|bn1|blocks|conv_head|bn2)\.", r"tinynet.\1."), _to_channels],
    overwrite=True,
)
# These two have no such prefix. Without an entry of their own they would share the one above, and a detector would
# look for its backbone's weights under names that it does not have.
for headless in (TinyNetModel, TinyNetBackbone):
    register_checkpoint_conversion_mapping(headless.__name__, [_to_channels], overwrite=True)

__all__ = ["TinyNetBackbone", "TinyNetForImageClassification", "TinyNetModel", "TinyNetPreTrainedModel"]
