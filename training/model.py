"""The network of a run: a fresh variant, or a saved one with its classifier fitted to the data set's classes."""

from typing import Any

import torch

from modeling_tinynet import TINYNET_VARIANTS, TinyNetConfig, TinyNetForImageClassification


def model_config(model: str, class_names: list[str], **overrides: Any) -> TinyNetConfig:
    """The configuration of `model` for these classes.

    Args:
        model: tinynet_a to tinynet_e for a fresh network; else a saved folder, a timm-format folder or a Hub id.
        class_names: in the order of the labels.
        overrides: fields of `TinyNetConfig`; those that are None keep the model's own value.

    Raises:
        ValueError: a field has a value no network can be built from.
        OSError: there is no such folder or Hub repository.
    """
    fields = {name: value for name, value in overrides.items() if value is not None}
    fields["id2label"] = dict(enumerate(class_names))
    fields["label2id"] = {name: index for index, name in enumerate(class_names)}
    if model in TINYNET_VARIANTS:
        return TinyNetConfig.from_variant(model, **fields)
    return TinyNetConfig.from_pretrained(model, **fields)


def build_model(model: str, config: TinyNetConfig, *, seed: int) -> TinyNetForImageClassification:
    """The network in float32: drawn from `seed`, or loaded, with a new head where the saved one does not fit."""
    torch.manual_seed(seed)
    if model in TINYNET_VARIANTS:
        return TinyNetForImageClassification(config)
    return TinyNetForImageClassification.from_pretrained(
        model, config=config, ignore_mismatched_sizes=True, dtype=torch.float32
    )
