"""One image of a prepared copy: decoded by the trainer's rule, its shorter side made smaller, stored as JPEG."""

import functools
import io
from dataclasses import dataclass
from typing import Any

import datasets
import PIL.Image
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import resize

from modeling_tinynet.image_processing_tinynet import exif_transposition
from training.data.decoding import ImageDecodeError, decode_rgb, encoded_bytes, name_with_path
from training.loading.encoded_images import EncodedImages

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
    opened = PIL.Image.open(io.BytesIO(data))
    return opened.format == "JPEG" and opened.mode in ("RGB", "L") and exif_transposition(opened) is None


def shrunken_images(
    split: datasets.Dataset, image_column: str, name: str, *, shorter_side: int | None, quality: int
) -> EncodedImages[ShrunkenImage]:
    """A stored split as what a copy holds of it. An image that cannot be decoded has its reason instead.

    Args:
        split: with a column of encoded images, `Image(decode=False)`.
        image_column: its name.
        name: of the split, in messages.
        shorter_side, quality: as for `shrink`.
    """
    read = functools.partial(_shrunken_or_reason, shorter_side=shorter_side, quality=quality)
    return EncodedImages(split, image_column, name, read)


def _shrunken_or_reason(
    image: dict[str, Any] | None, name: str, *, shorter_side: int | None, quality: int
) -> ShrunkenImage:
    try:
        return shrink(image, name, shorter_side=shorter_side, quality=quality)
    except ImageDecodeError as error:
        return ShrunkenImage(None, None, 0, str(error))
