"""The one rule by which a stored image becomes pixels, in training and in evaluation.

| stored as                              | becomes                                                              |
|----------------------------------------|----------------------------------------------------------------------|
| an EXIF orientation                    | is applied; EXIF that cannot be read counts as none                  |
| RGB, gray, 1-bit, palette, CMYK, ...   | RGB as `PIL.Image.convert("RGB")` has it                             |
| alpha or a transparent color           | dropped: the colors stored underneath show                          |
| 16-bit gray                            | v * 255 / 65535, rounded (`convert` would clip it to near white)     |
| several frames                         | the first one                                                        |
| floating point, more than `MAX_PIXELS` | refused                                                              |

Plain JPEGs are decoded by simplejpeg where it is installed; everything else, and whatever simplejpeg refuses, by
Pillow. Both rest on libjpeg-turbo and give the same pixels.
"""

import io
import struct
from typing import Any

import fsspec
import numpy as np
import PIL.Image
import torch

from modeling_tinynet.image_processing_tinynet import exif_transposition, pil_to_rgb, upright
from training.data.image_files import FIRST_BYTES, remedy, unread_kind
from training.errors import UserError

try:
    import simplejpeg
except ImportError:  # the extra "fast" is not installed
    simplejpeg = None

MAX_PIXELS = 89_478_485  # 256 MB of RGB, where Pillow begins to warn of a decompression bomb
APP1, START_OF_SCAN = 0xE1, 0xDA  # JPEG's markers: EXIF or XMP, and where the header ends

# What Pillow raises for damaged files, depending on format and place of the damage.
DECODING_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    EOFError,
    IndexError,
    KeyError,
    OverflowError,
    ZeroDivisionError,
    struct.error,
    PIL.Image.DecompressionBombError,
)


class ImageDecodeError(UserError, ValueError):
    """An image cannot be used. The message gives its path or sample, and what is wrong with it."""

    told_by = "each"


def decode_rgb(image: dict[str, Any] | bytes | PIL.Image.Image, name: str = "image") -> torch.Tensor:
    """Decode an image to RGB by the table above.

    Args:
        image: `{"bytes": ..., "path": ...}` as `datasets.Image(decode=False)` gives it, encoded bytes, or an image.
        name: of the sample, for the error message.

    Returns:
        uint8 tensor of shape (3, height, width), 0 to 255, in channels-last memory, in which torch resizes fastest.

    Raises:
        ImageDecodeError: missing, empty, damaged, not an image, too large, or of floating-point pixels.
    """
    if isinstance(image, PIL.Image.Image):
        return _to_tensor(np.array(_pillow_rgb(image, name)))
    if isinstance(image, bytes):
        image = {"bytes": image, "path": None}
    data = encoded_bytes(image, name)
    name = name_with_path(image, name)
    if simplejpeg and _is_plain_jpeg(data, name):
        try:
            return _to_tensor(simplejpeg.decode_jpeg(data, "RGB"))
        except ValueError:
            pass  # stricter than Pillow, which decides
    try:
        opened = PIL.Image.open(io.BytesIO(data))
    except PIL.UnidentifiedImageError:
        kind = unread_kind(data[:FIRST_BYTES])
        reason = f"is {kind}: {remedy(kind)}" if kind else "is not an image, or its format is unknown to Pillow"
        raise ImageDecodeError(f"{name}: {reason}") from None
    except DECODING_ERRORS as error:
        raise ImageDecodeError(f"{name}: {error}") from None
    return _to_tensor(np.array(_pillow_rgb(opened, name)))


def encoded_bytes(image: dict[str, Any] | None, name: str = "image") -> bytes:
    """What is stored of an image, as for `decode_rgb`.

    Raises:
        ImageDecodeError: missing, unreadable or empty.
    """
    if image is None or (image["bytes"] is None and not image["path"]):
        raise ImageDecodeError(f"{name}: holds no image")
    name = name_with_path(image, name)
    data = image["bytes"] if image["bytes"] is not None else _read(image["path"], name)
    if not data:
        raise ImageDecodeError(f"{name}: the file is empty")
    return data


def name_with_path(image: dict[str, Any] | None, name: str) -> str:
    """How messages name an image: `photos/cat.jpg (sample 7)`, or without a path `sample 7`."""
    return f"{image['path']} ({name})" if image and image["path"] else name


def _to_tensor(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _read(path: str, name: str) -> bytes:
    try:
        # A streamed image folder holds URLs, which fsspec opens; for a local path it would only be slower.
        with fsspec.open(path, "rb") if "://" in path else open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise ImageDecodeError(f"{name}: {error.strerror or error}") from None


def _is_plain_jpeg(data: bytes, name: str) -> bool:
    """Whether simplejpeg gives Pillow's pixels: gray or RGB, and not to be turned.

    libjpeg's header takes a few microseconds, where opening by Pillow takes a fifteenth of the decoding.
    """
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return False
    _check_size(width, height, name)
    if colorspace not in ("YCbCr", "Gray", "RGB"):
        return False
    if not _has_metadata(data):
        return True
    try:
        return exif_transposition(PIL.Image.open(io.BytesIO(data))) is None
    except DECODING_ERRORS:
        return False


def _has_metadata(data: bytes) -> bool:
    """Whether a JPEG has EXIF or XMP, which may hold an orientation; True where its segments are odd."""
    position = 2
    while data[position : position + 1] == b"\xff" and position + 4 <= len(data):
        marker = data[position + 1]
        if marker == START_OF_SCAN:
            return False
        if marker == APP1:
            return True
        position += 2 + int.from_bytes(data[position + 2 : position + 4])
    return True


def _check_size(width: int, height: int, name: str) -> None:
    if width * height > MAX_PIXELS:
        raise ImageDecodeError(f"{name}: {width} x {height} pixels are more than {MAX_PIXELS:,}")


def _pillow_rgb(image: PIL.Image.Image, name: str) -> PIL.Image.Image:
    _check_size(*image.size, name)
    try:
        return pil_to_rgb(upright(image))
    except DECODING_ERRORS as error:
        raise ImageDecodeError(f"{name}: the image is damaged or in an unusual format: {error}") from None
