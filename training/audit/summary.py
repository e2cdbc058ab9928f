"""What an audit finds: the facts of each image, and the counts and findings of a dataset."""

import hashlib
import io
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import PIL.Image
from torch.utils.data import DataLoader, Dataset

from modeling_tinynet.image_processing_tinynet import exif_transposition
from training.data.decoding import DECODING_ERRORS, ImageDecodeError, decode_rgb, encoded_bytes, name_with_path

ODDITIES = {  # what a good image may be, and what training makes of it
    "EXIF-rotated": "turned upright",
    "several frames": "the first one is taken",
    "transparency": "dropped: the colours underneath show",
    "16 bit": "brought to 8 bit",
}
SMALL = 64  # pixels; a shorter side below it is counted
BATCH = 64  # images that a worker reads at once

# What is kept of each image, so that a million of them take 50 MB. Kind 0 is an undecodable one.
IMAGE = np.dtype(
    [("digest", "S32"), ("width", "i4"), ("height", "i4"), ("kind", "u2"), *((name, "?") for name in ODDITIES)]
)


# Facts of one image


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
        picture = PIL.Image.open(io.BytesIO(data))
        oddities = set()
        # 16-bit colour, unlike gray, has no mode of its own; the raw mode tells, until the pixels are loaded.
        if picture.mode.startswith("I") or any(";16" in str(tile) for tile in picture.tile):
            oddities.add("16 bit")
        if picture.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in picture.info:
            oddities.add("transparency")
        with suppress(*DECODING_ERRORS):  # the first frame is good
            if getattr(picture, "is_animated", False):
                oddities.add("several frames")
        if exif_transposition(picture) is not None:
            oddities.add("EXIF-rotated")
    kind = f"{picture.format} {picture.mode}"
    return Facts(hashlib.sha256(data).digest(), width, height, kind, frozenset(oddities))


class ImageFacts(Dataset):
    """A split as `Facts`, or a sentence for an image that cannot be decoded: pixels do not leave the worker.

    Args:
        split: stored, with a column of encoded images, `Image(decode=False)`.
        image_column: its name.
        name: of the split, for people to read.
    """

    def __init__(self, split: datasets.Dataset, image_column: str, name: str) -> None:
        self.split = split.select_columns([image_column])
        self.image_column = image_column
        self.name = name

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> Facts | str:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[Facts | str]:
        """Called by `DataLoader` with a batch of indices: reading rows together takes a fraction of the time."""
        images = self.split[indices][self.image_column]
        return [
            _facts_or_reason(image, f"sample {index} of {self.name}")
            for image, index in zip(images, indices, strict=True)
        ]

    def place(self, index: int) -> str:
        """The sample's name, as it stands in the sentences."""
        return name_with_path(self.split[index][self.image_column], f"sample {index} of {self.name}")


def _facts_or_reason(image: dict[str, Any] | None, name: str) -> Facts | str:
    try:
        return read_facts(image, name)
    except ImageDecodeError as error:
        return str(error)
    except Exception as error:  # whatever else a damaged file makes a decoder raise, it would end training too
        return f"{name_with_path(image, name)}: {type(error).__name__}: {' '.join(str(error).split())}"


# Facts of a split


@dataclass(frozen=True)
class Audited:
    """A split whose images were read."""

    labels: np.ndarray  # (n,), indices into the class names
    pictures: np.ndarray  # (n,) of PICTURE
    kinds: list[str]  # by `kind` of PICTURE
    reasons: list[str]  # sentences on undecodable images, the first ones
    place: Callable[[int], str]  # the name of an image by its index


def audit_split(
    data: ImageFacts,
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
    pictures = np.zeros(len(data), IMAGE)
    kinds = {"undecodable": 0}
    reasons: list[str] = []
    index = 0
    for batch in DataLoader(data, batch_size=BATCH, num_workers=num_workers, collate_fn=list):
        for facts in batch:
            if isinstance(facts, Facts):
                kind = kinds.setdefault(facts.kind, len(kinds))
                odd = (name in facts.oddities for name in ODDITIES)
                pictures[index] = (facts.digest, facts.width, facts.height, kind, *odd)
            elif len(reasons) < max_listed:
                reasons.append(facts)
            index += 1
        progress(len(batch))
    return Audited(labels, pictures, list(kinds), reasons, data.place)


# From facts to a summary, which is what --report writes


def summarize(train: Audited, validation: Audited, class_names: list[str], max_listed: int) -> dict[str, Any]:
    """Counts and findings of both splits, as JSON values; at most `max_listed` names for each finding."""
    splits = {"train": train, "validation": validation}
    counts = [np.bincount(split.labels, minlength=len(class_names)).tolist() for split in splits.values()]
    return {
        "splits": {name: split_summary(split) for name, split in splits.items()},
        "classes": [
            {"class": name, "train": in_train, "validation": in_validation}
            for name, in_train, in_validation in zip(class_names, *counts, strict=True)
        ],
        "alphabetical": class_names == sorted(class_names),
        "undecodable": (train.reasons + validation.reasons)[:max_listed],
        "odd": {name: _odd_places((train, validation), name, max_listed) for name in ODDITIES},
        "duplicates": duplicates(train, validation, class_names, max_listed),
    }


def split_summary(split: Audited) -> dict[str, Any]:
    """Counts of one split; sizes are None where no image can be decoded."""
    good = split.pictures[split.pictures["kind"] > 0]
    counts = np.bincount(split.pictures["kind"], minlength=len(split.kinds))
    by_kind = dict(zip(split.kinds, counts.tolist(), strict=True))
    sizes = None
    if len(good):
        sizes = {
            side: {
                "min": int(good[side].min()),
                "median": float(np.median(good[side])),
                "max": int(good[side].max()),
            }
            for side in ("width", "height")
        }
    return {
        "images": len(split.pictures),
        "undecodable": by_kind.pop("undecodable"),
        "sizes": sizes,
        "small": int((np.minimum(good["width"], good["height"]) < SMALL).sum()),
        "kinds": by_kind,
        "odd": {name: int(split.pictures[name].sum()) for name in ODDITIES},
    }


def _odd_places(splits: Sequence[Audited], oddity: str, max_listed: int) -> list[str]:
    places = [(split, index) for split in splits for index in np.flatnonzero(split.pictures[oddity])[:max_listed]]
    return [split.place(int(index)) for split, index in places[:max_listed]]


def duplicates(train: Audited, validation: Audited, class_names: list[str], max_listed: int) -> dict[str, Any]:
    """Images of the same encoded bytes; those that cannot be decoded are left out.

    Returns:
        - train, validation: `count` of images that repeat another one of their split, and the largest groups.
        - leaks: `count` of validation images that are training images too, and pairs of names.
        - labels: `count` of groups with several labels, and an image of each label for the largest groups.
    """
    splits = (train, validation)
    indices = [np.flatnonzero(split.pictures["kind"]) for split in splits]
    digests, labels = (
        np.concatenate([values[chosen] for values, chosen in zip(columns, indices, strict=True)])
        for columns in ([split.pictures["digest"] for split in splits], [split.labels for split in splits])
    )
    num_train = len(indices[0])
    is_train = np.arange(len(digests)) < num_train

    # Groups of equal digests. Training images come before the others, in their groups too.
    _, first, group, size = np.unique(digests, return_index=True, return_inverse=True, return_counts=True)
    members, starts = np.argsort(group, kind="stable"), np.cumsum(size) - size
    train_size = np.bincount(group[is_train], minlength=len(size))
    num_labels = np.bincount(np.unique(group * len(class_names) + labels) // len(class_names))

    def place(position: int) -> str:
        if position < num_train:
            return train.place(int(indices[0][position]))
        return validation.place(int(indices[1][position - num_train]))

    def largest(found: np.ndarray, sizes: np.ndarray) -> list[np.ndarray]:
        """Positions of the members of the largest groups found; of groups of one size, the earliest."""
        order = np.lexsort((first[found], -sizes[found]))[:max_listed]
        return [members[starts[g] : starts[g] + size[g]] for g in found[order]]

    def copies(inside: np.ndarray, sizes: np.ndarray) -> dict[str, Any]:
        repeated = np.flatnonzero(sizes > 1)
        groups = [positions[inside[positions]] for positions in largest(repeated, sizes)]
        listed = [{"images": len(g), "names": [place(position) for position in g[:max_listed]]} for g in groups]
        return {"count": int((sizes[repeated] - 1).sum()), "groups": len(repeated), "listed": listed}

    leaked = np.flatnonzero(~is_train & (train_size[group] > 0))
    pairs = [{"validation": place(p), "train": place(first[group[p]])} for p in leaked[:max_listed]]
    contradictory = np.flatnonzero(num_labels > 1)
    contradictions = []
    for positions in largest(contradictory, size):
        _, one_of_each = np.unique(labels[positions], return_index=True)
        chosen = positions[np.sort(one_of_each)][:max_listed]
        names = [{"label": class_names[labels[position]], "name": place(position)} for position in chosen]
        contradictions.append({"images": len(positions), "names": names})
    return {
        "train": copies(is_train, train_size),
        "validation": copies(~is_train, size - train_size),
        "leaks": {"count": len(leaked), "listed": pairs},
        "labels": {"count": len(contradictory), "listed": contradictions},
    }


def num_undecodable(summary: dict[str, Any]) -> int:
    return sum(split["undecodable"] for split in summary["splits"].values())
