"""From a stored row to what the loader batches: decoding, the per-sample transform, and the check of the label."""

from collections.abc import Callable
from typing import Any

import torch

from training.data.decoding import decode_rgb
from training.errors import DataError

# `transform(image, key)`: uint8 (3, H, W) and (seed, epoch, index) to uint8 (3, S, S), random by nothing but the key.
Transform = Callable[[torch.Tensor, tuple[int, int, int]], torch.Tensor]

REPLACEMENT_TRIES = 10  # others to take in the place of an image that cannot be decoded


class LabelError(DataError):
    """A sample's label is none of the dataset's classes."""

    told_by = "each"


def make_sample(
    image: dict[str, Any], label: int, transform: Transform, num_classes: int, key: tuple[int, int, int]
) -> dict[str, Any]:
    """One sample: `{"pixel_values": uint8 (3, S, S), "labels": int, "index": int, "replaced": 0}`.

    Args:
        image: as for `training.data.decoding.decode_rgb`.
        label: must lie below `num_classes`.
        key: (seed, epoch, index).

    Raises:
        ImageDecodeError: the image cannot be decoded.
        LabelError: the label is out of range; on a GPU it would end the process without a word of which.
    """
    index = key[2]
    if not isinstance(label, int) or not 0 <= label < num_classes:
        raise LabelError(f"label {label!r} of sample {index} is none of the {num_classes} classes")
    pixels = transform(decode_rgb(image, name=f"sample {index}"), key)
    return {"pixel_values": pixels, "labels": int(label), "index": index, "replaced": 0}
