"""From a checkpoint to the network that its tensors are of."""

import math
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError

from conversion.checkpoint import COUNTER, Checkpoint, ConversionError
from modeling_tinynet import TINYNET_VARIANTS, TinyNetConfig, TinyNetForImageClassification

MAX_NAMED_TENSORS = 3  # in an error
# Above this number of pixels Pillow warns of a decompression bomb: no image can be meant to be resized to more.
MAX_IMAGE_PIXELS = 89_478_485


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


def configure(
    checkpoint: Checkpoint, variant: str, num_labels: int, class_names: list[str] | None, image_size: int | None
) -> TinyNetConfig:
    """
    The configuration of the recognized network, with what the file states and what the caller does.

    Raises:
        ConversionError: The settings do not fit the network.
    """
    fields: dict[str, Any] = {**checkpoint.settings, "num_labels": num_labels}
    if image_size is not None:
        fields["image_size"] = image_size
    if class_names is not None:
        if len(class_names) != num_labels:
            raise ConversionError(
                f"--class_names gives {len(class_names):,} names, and the checkpoint has {num_labels:,} classes"
            )
        fields["id2label"] = dict(enumerate(class_names))
        fields["label2id"] = {name: index for index, name in enumerate(class_names)}
    try:
        config = TinyNetConfig.from_variant(variant, **fields)
    except (ValueError, StrictDataclassError) as error:
        raise ConversionError(str(error.__cause__ or error)) from error
    if config.resize_size**2 > MAX_IMAGE_PIXELS:
        raise ConversionError(
            f"image_size {config.image_size:,} with crop_pct {config.crop_pct} asks for images of "
            f"{config.resize_size:,} px a side, and Pillow takes those above {math.isqrt(MAX_IMAGE_PIXELS):,} for an "
            "attack"
        )
    return config


def build(checkpoint: Checkpoint, config: TinyNetConfig) -> TinyNetForImageClassification:
    """
    The network with the checkpoint's tensors, in float32. A counter that is not in the file starts at 0.

    Raises:
        ConversionError: Numbers are not finite or out of their range, or the network's answers are.
    """
    with torch.device("meta"):
        network = TinyNetForImageClassification(config)
    state_dict = {}
    for name in network.state_dict():
        name_in_file = checkpoint.name_in_file(timm_name(name))
        tensor = checkpoint.tensors.get(name_in_file, torch.tensor(0))
        dtype = torch.int64 if name.endswith(COUNTER) else torch.float32
        # A copy: a few numbers of the file can be the storage of many tensors.
        tensor = tensor.to(dtype, copy=True, memory_format=torch.contiguous_format)
        if not tensor.isfinite().all():
            raise ConversionError(f"{name_in_file!r} holds infinite numbers or NaN: the training had diverged")
        if name.endswith(("running_var", COUNTER)) and (tensor < 0).any():
            raise ConversionError(f"{name_in_file!r} holds {tensor.min():g}, and cannot be negative: it is damaged")
        state_dict[name] = tensor
    network.load_state_dict(state_dict, strict=True, assign=True)
    network.eval()
    side = 2 * 32  # two fields of the last stage
    image = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        if not network(image).logits.isfinite().all():
            raise ConversionError("the network answers infinite numbers or NaN: its tensors are damaged or diverged")
    return network
