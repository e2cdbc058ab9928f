"""What an audit keeps of each image: how it is stored, what training sees of it, and a hash of its bytes."""

import hashlib
import io
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import PIL.Image
from torch.utils.data import DataLoader

from modeling_tinynet.image_processing_tinynet import exif_transposition
from training.data.decoding import DECODING_ERRORS, ImageDecodeError, decode_rgb, encoded_bytes, name_with_path
from training.loading.encoded_images import EncodedImages

ODDITIES = {  # what a good image may be, and what training makes of it
    "EXIF-rotated": "turned upright",
    "several frames": "the first one is taken",
    "transparency": "dropped: the colors underneath show",
    "16 bit": "brought to 8 bit",
}
BATCH = 64  # images that a worker reads at once

# What is kept of each image, so that a million of them take 50 MB. Kind 0 is an undecodable one.
IMAGE = np.dtype(
    [("digest", "S32"), ("width", "i4"), ("height", "i4"), ("kind", "u2"), *((name, "?") for name in ODDITIES)]
)


@dataclass(frozen=True)
class Facts:
    """What is known of an image that training can use."""

    digest: bytes  # SHA-256 of the encoded bytes
    width: int  # pixels, as training sees it: upright
    height: int
    kind: str  # format and mode, such as "JPEG RGB"
    oddities: frozenset[str]  # of ODDITIES


def read_facts(image: dict[str, Any] | None, name: str) -> Facts:
    """Decode an image as training does, and look at how it is stored.

    Args:
        image: `{"bytes": ..., "path": ...}` as `datasets.Image(decode=False)` gives it.
        name: of the sample, for the error message.

    Raises:
        ImageDecodeError: see `training.data.decoding.decode_rgb`.
    """
    data = encoded_bytes(image, name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's: what counts is whether the image is refused
        _, height, width = decode_rgb(data, name_with_path(image, name)).shape
        opened = PIL.Image.open(io.BytesIO(data))
        oddities = set()
        # 16-bit color, unlike gray, has no mode of its own; the raw mode tells, until the pixels are loaded.
        if opened.mode.startswith("I") or any(";16" in str(tile) for tile in opened.tile):
            oddities.add("16 bit")
        if opened.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in opened.info:
            oddities.add("transparency")
        with suppress(*DECODING_ERRORS):  # the first frame is good
            if getattr(opened, "is_animated", False):
                oddities.add("several frames")
        if exif_transposition(opened) is not None:
            oddities.add("EXIF-rotated")
    kind = f"{opened.format} {opened.mode}"
    return Facts(hashlib.sha256(data).digest(), width, height, kind, frozenset(oddities))


def image_facts(split: datasets.Dataset, image_column: str, name: str) -> EncodedImages[Facts | str]:
    """A split as `Facts`, or a sentence for an image that cannot be decoded: pixels do not leave the worker."""
    return EncodedImages(split, image_column, name, read=_facts_or_reason)


def _facts_or_reason(image: dict[str, Any] | None, name: str) -> Facts | str:
    try:
        return read_facts(image, name)
    except ImageDecodeError as error:
        return str(error)
    except Exception as error:  # whatever else a damaged file makes a decoder raise, it would end training too
        return f"{name_with_path(image, name)}: {type(error).__name__}: {' '.join(str(error).split())}"


@dataclass(frozen=True)
class Audited:
    """A split whose images were read."""

    labels: np.ndarray  # (n,), indices into the class names
    images: np.ndarray  # (n,) of IMAGE
    kinds: list[str]  # by `kind` of IMAGE
    reasons: list[str]  # sentences on undecodable images, the first ones
    place: Callable[[int], str]  # the name of an image by its index


def audit_split(
    data: EncodedImages[Facts | str],
    labels: np.ndarray,
    *,
    num_workers: int,
    max_listed: int,
    progress: Callable[[int], Any] = lambda images: None,
) -> Audited:
    """Read all images of a split, in order.

    Args:
        data: the split.
        labels: of its samples.
        num_workers: loader processes; they change nothing about the result.
        max_listed: reasons to keep.
        progress: called with the number of images of each batch.
    """
    images = np.zeros(len(data), IMAGE)
    kinds = {"undecodable": 0}
    reasons: list[str] = []
    index = 0
    for batch in DataLoader(data, batch_size=BATCH, num_workers=num_workers, collate_fn=list):
        for facts in batch:
            if isinstance(facts, Facts):
                kind = kinds.setdefault(facts.kind, len(kinds))
                odd = (name in facts.oddities for name in ODDITIES)
                images[index] = (facts.digest, facts.width, facts.height, kind, *odd)
            elif len(reasons) < max_listed:
                reasons.append(facts)
            index += 1
        progress(len(batch))
    return Audited(labels, images, list(kinds), reasons, data.place)
