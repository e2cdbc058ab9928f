"""Which columns of a dataset hold the images and the labels: named by the user, or else found by type and name."""

from pathlib import Path
from typing import Any, TypeAlias

import datasets
import pyarrow as pa
import pyarrow.compute as pc

from training.data.dataset_files import metadata_file
from training.data.unicode_text import require_text_column
from training.errors import DataError, listed

Split: TypeAlias = datasets.Dataset | datasets.IterableDataset

IMAGE_COLUMN_NAMES = ("image", "img", "picture", "jpg", "jpeg", "png", "webp")
LABEL_COLUMN_NAMES = ("label", "labels", "class", "target", "cls")
VIEWS = {"binary_view": "large_binary", "string_view": "large_string"}  # Arrow's layouts that Polars writes


def find_columns(dataset: str, split: Split, image_column: str | None, label_column: str | None) -> tuple[str, str]:
    """(image column, label column); None finds a column by its type, or else by its name.

    Raises:
        DataError: there is no such column, or it is not clear which of several is meant.
    """
    image_column = _find_image_column(dataset, split, image_column)
    label_column = _find_label_column(dataset, split, label_column)
    if image_column == label_column:
        raise DataError(f"column {image_column!r} of {dataset} cannot hold both the images and the labels")
    return image_column, label_column


def select_two_columns(place: str, split: Split, image_column: str, label_column: str) -> Split:
    """The split with nothing but its images, as `Image(decode=False)`, and its labels as they are.

    Args:
        place: the split in a message, such as `split 'train' of photos`.

    Raises:
        DataError: a column is missing, or one holds no images, or paths that are not UTF-8.
    """
    features = _features(place, split)
    for column in (image_column, label_column):
        if column not in features:
            raise DataError(f"{place} has no column {column!r}, only {listed(features)}")
    split = split.select_columns([image_column, label_column])
    stored = getattr(features[image_column], "dtype", None)
    if stored in VIEWS:  # which `datasets.Image` cannot read
        split = split.cast_column(image_column, datasets.Value(VIEWS[stored]))
    try:
        split = split.cast_column(image_column, datasets.Image(decode=False))
    except (TypeError, ValueError, pa.ArrowException) as error:
        raise DataError(f"column {image_column!r} of {place} holds no images, but {features[image_column]}") from error
    if isinstance(split, datasets.Dataset):
        require_text_column(pc.struct_field(split.data.table.column(image_column), "path"), "path", place)
    return split


def read_column(split: datasets.Dataset, column: str) -> pa.ChunkedArray:
    """All values of one column of a stored split, in its order; the other columns are not read."""
    return split.select_columns([column]).with_format("arrow")[:][column]


def _features(dataset: str, split: Split) -> datasets.Features:
    if split.features is None:
        raise DataError(f"{dataset} does not state its columns: use it without streaming")
    return split.features


def _require_column(dataset: str, features: datasets.Features, column: str, option: str) -> str:
    if column not in features:
        raise DataError(f"{option} {column!r} is not a column of {dataset}, which has {listed(features)}")
    return column


def _pick(candidates: list[str], usual_names: tuple[str, ...]) -> str | None:
    """The only candidate, or else the one with the most usual name."""
    if len(candidates) == 1:
        return candidates[0]
    return next((name for name in usual_names if name in candidates), None)


def _find_image_column(dataset: str, split: Split, column: str | None) -> str:
    features = _features(dataset, split)
    if column is not None:
        return _require_column(dataset, features, column, "image_column")
    # Parquet that `datasets` did not write holds images as plain bytes, or as a plain {bytes, path}.
    candidates = [name for name, feature in features.items() if isinstance(feature, datasets.Image)] or [
        name
        for name, feature in features.items()
        if (isinstance(feature, datasets.Value) and feature.dtype in ("binary", "large_binary", "binary_view"))
        or (isinstance(feature, dict) and set(feature) == {"bytes", "path"})
    ]
    found = _pick(candidates, IMAGE_COLUMN_NAMES)
    if found is None:
        problem = f"several columns of images ({listed(candidates)})" if candidates else "no column of images"
        texts = [
            name for name, feature in features.items() if _holds_texts(feature) and name not in LABEL_COLUMN_NAMES
        ]
        hint = f" (paths or URLs in {listed(texts)} will do)" if texts and not candidates else ""
        raise DataError(
            f"{dataset} has {problem}: choose one with image_column{hint}; its columns are {listed(features)}"
        )
    return found


def _holds_texts(feature: Any) -> bool:
    return isinstance(feature, datasets.Value) and feature.dtype in ("string", "large_string", "string_view")


def _find_label_column(dataset: str, split: Split, column: str | None) -> str:
    features = _features(dataset, split)
    if column is not None:
        return _require_column(dataset, features, column, "label_column")
    candidates = [name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)] or [
        name for name in features if name in LABEL_COLUMN_NAMES
    ]
    found = _pick(candidates, LABEL_COLUMN_NAMES)
    if found is None:
        path = Path(dataset).expanduser()
        metadata = metadata_file(path) if path.is_dir() else None
        if metadata and not candidates:
            raise DataError(
                f"{metadata} takes the place of the class folders and has no label column: delete it, give it one, "
                f"or choose one with label_column; its columns are {listed(features)}"
            )
        problem = f"several columns of labels ({listed(candidates)})" if candidates else "no column of labels"
        raise DataError(f"{dataset} has {problem}: choose one with label_column; its columns are {listed(features)}")
    return found
