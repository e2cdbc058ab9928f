"""One image of a prepared copy: decoded by the trainer's rule, its shorter side made smaller, stored as JPEG."""

import io
from dataclasses import dataclass
from typing import Any

import datasets
import PIL.Image
from torch.utils.data import Dataset
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import resize

from modeling_tinynet.image_processing_tinynet import exif_transposition
from training.data.decoding import ImageDecodeError, decode_rgb, encoded_bytes, name_with_path

COPIED, ENCODED, RESIZED = "copied", "encoded", "resized"


@dataclass(frozen=True)
class ShrunkenImage:
    """What a copy holds of an image, or why it holds nothing."""

    data: bytes | None  # encoded; None where it cannot be decoded
    path: str | None  # class and file name: enough to find the original
    source_size: int  # bytes of the original
    how: str  # COPIED byte for byte, ENCODED as JPEG in the same size, RESIZED; else the reason, a sentence


def shrink(image: dict[str, Any] | None, name: str, *, shorter_side: int | None, quality: int) -> ShrunkenImage:
    """Decode an image as training does, and make it what the copy holds of it.

    Args:
        image: `{"bytes": ..., "path": ...}` as `datasets.Image(decode=False)` gives it.
        name: of the sample, for the error message.
        shorter_side: at most so many pixels, the longer side in proportion and rounded down; None leaves the bytes
            as they are, once they are known to be good.
        quality: of JPEG, 1 to 100.

    Raises:
        ImageDecodeError: see `training.data.decoding.decode_rgb`.
    """
    data = encoded_bytes(image, name)
    pixels = decode_rgb(data, name_with_path(image, name))
    path = "/".join(image["path"].split("/")[-2:]) if image and image["path"] else None
    is_small = shorter_side is None or min(pixels.shape[1:]) <= shorter_side
    if shorter_side is None or (is_small and _is_plain_jpeg(data)):
        return ShrunkenImage(data, path, len(data), COPIED)
    if not is_small:
        # torch's 8-bit kernel, as in training: Pillow's pixels but for single steps, and several times faster.
        pixels = resize(pixels, [shorter_side], interpolation=InterpolationMode.BICUBIC, antialias=True)
    file = io.BytesIO()
    PIL.Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy()).save(file, "JPEG", quality=quality)
    return ShrunkenImage(file.getvalue(), path, len(data), ENCODED if is_small else RESIZED)


def _is_plain_jpeg(data: bytes) -> bool:
    picture = PIL.Image.open(io.BytesIO(data))
    return picture.format == "JPEG" and picture.mode in ("RGB", "L") and exif_transposition(picture) is None


class ShrunkenImages(Dataset):
    """A stored split as what a copy holds of it. An image that cannot be decoded has its reason instead.

    Args:
        split: with a column of encoded images, `Image(decode=False)`.
        image_column: its name.
        name: of the split, for people to read.
        shorter_side, quality: as for `shrink`.
    """

    def __init__(
        self, split: datasets.Dataset, image_column: str, name: str, *, shorter_side: int | None, quality: int
    ) -> None:
        self.split = split.select_columns([image_column])
        self.image_column = image_column
        self.name = name
        self.shorter_side = shorter_side
        self.quality = quality

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> ShrunkenImage:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[ShrunkenImage]:
        """Called by `DataLoader` with a batch of indices: reading rows together takes a fraction of the time."""
        images = self.split[indices][self.image_column]
        return [self._shrunken(image, index) for image, index in zip(images, indices, strict=True)]

    def _shrunken(self, image: dict[str, Any] | None, index: int) -> ShrunkenImage:
        name = f"sample {index} of {self.name}"
        try:
            return shrink(image, name, shorter_side=self.shorter_side, quality=self.quality)
        except ImageDecodeError as error:
            return ShrunkenImage(None, None, 0, str(error))
