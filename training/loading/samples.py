"""From a stored row to what the loader batches: decoding, the per-sample transform, and the check of the label."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from training.data.decoding import decode_rgb
from training.errors import DataError

# `transform(image, key)`: uint8 (3, H, W) and (seed, epoch, index) to uint8 (3, S, S), random by nothing but the key.
Transform = Callable[[torch.Tensor, tuple[int, int, int]], torch.Tensor]

REPLACEMENT_TRIES = 10  # other images to try in place of one that cannot be decoded


class LabelError(DataError):
    """A sample's label is not one of the dataset's classes."""

    told_by = "each"


@dataclass(frozen=True)
class SampleReader:
    """Makes a sample of a stored row. What datasets of stored splits and of streams have in common.

    Args:
        image_column: of encoded images, `Image(decode=False)`.
        label_column: of integer labels.
        transform: see `Transform`.
        num_classes: labels must lie below it.
    """

    image_column: str
    label_column: str
    transform: Transform
    num_classes: int

    def images_and_labels(self, rows: dict[str, list[Any]]) -> Iterator[tuple[dict[str, Any], int]]:
        """(encoded image, label) of each row."""
        return zip(rows[self.image_column], rows[self.label_column], strict=True)

    def sample(self, image: dict[str, Any], label: int, key: tuple[int, int, int]) -> dict[str, Any]:
        """One sample: `{"pixel_values": uint8 (3, S, S), "labels": int, "index": int, "replaced": 0}`.

        Args:
            image: as for `training.data.decoding.decode_rgb`.
            key: (seed, epoch, index).

        Raises:
            ImageDecodeError: the image cannot be decoded.
            LabelError: the label is out of range; on a GPU it would end the process without saying which label.
        """
        index = key[2]
        if not isinstance(label, int) or not 0 <= label < self.num_classes:
            raise LabelError(f"label {label!r} of sample {index} is not one of the {self.num_classes} classes")
        pixels = self.transform(decode_rgb(image, name=f"sample {index}"), key)
        return {"pixel_values": pixels, "labels": int(label), "index": index, "replaced": 0}
