"""Labels of a dataset as indices into the class names of its training split."""

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from training.data.columns import read_column
from training.data.unicode_text import composed, require_text, require_text_column, same_text
from training.errors import DataError, listed

MOST_UNUSED_CLASSES = 1000  # of plain integers; more may lack samples only where still more have some


def _label_ids(
    place: str, split: datasets.Dataset, column: str, given_names: list[str] | None
) -> tuple[np.ndarray, list[str] | None]:
    """(an integer for each sample, class names by that integer); None for plain integers without given names."""
    feature = split.features[column]
    labels = read_column(split, column).combine_chunks()
    if labels.null_count == len(labels):
        raise DataError(f"{place} has no labels: the column {column!r} is empty")
    if labels.null_count:
        index = int(np.flatnonzero(labels.is_null().to_numpy(zero_copy_only=False))[0])
        raise DataError(f"sample {index} of {place} has no label")
    has_texts = _is_text(labels.type)
    if given_names and (has_texts or isinstance(feature, datasets.ClassLabel)):
        raise DataError(f"{place} has class names of its own: leave out class_names")
    if has_texts:
        return _text_ids(place, labels)
    if not (pa.types.is_integer(labels.type) or pa.types.is_boolean(labels.type)):
        raise DataError(
            f"labels of {place} must be class labels, integers, booleans or strings, but {column!r} is {labels.type}"
        )
    numbers = labels.to_numpy(zero_copy_only=False)
    names = feature.names if isinstance(feature, datasets.ClassLabel) else given_names
    if pa.types.is_boolean(labels.type):
        numbers, names = numbers.astype(np.int64), names or ["False", "True"]
    elif (numbers == -1).all():
        raise DataError(f"{place} has no labels: all are -1")
    wrong = np.flatnonzero((numbers < 0) | (numbers >= len(names)) if names else numbers < 0)
    if len(wrong):
        classes = f"the {len(names)} classes" if names else "0, 1, 2, ..."
        raise DataError(f"label {numbers[wrong[0]]} of sample {wrong[0]} of {place} is not one of {classes}")
    return numbers, names


def _is_text(kind: pa.DataType) -> bool:
    """Whether a column of this type holds texts."""
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _text_ids(place: str, labels: pa.Array) -> tuple[np.ndarray, list[str]]:
    labels = labels.cast(pa.large_string())
    require_text_column(labels, "label", place)
    texts = sorted(labels.unique().to_pylist())
    return pc.index_in(labels, value_set=pa.array(texts, labels.type)).to_numpy().astype(np.int64), texts


def _numbered_classes(place: str, ids: np.ndarray) -> list[str]:
    """0, 1, 2, ... up to the largest label; small gaps are classes without samples.

    Raises:
        DataError: large gaps: the integers number something else, such as files or seconds.
    """
    largest, used = int(ids.max()), len(np.unique(ids))
    if largest + 1 - used > max(MOST_UNUSED_CLASSES, used):
        raise DataError(
            f"label {largest} of sample {ids.argmax()} of {place} would make {largest + 1:,} classes, of which only "
            f"{used:,} occur: number the classes 0, 1, 2, ..., or name all of them in a class_names file"
        )
    return [str(number) for number in range(largest + 1)]


def _check_names(place: str, names: list[str]) -> None:
    for name in names:
        require_text(name, f"a class of {place}")
    if alike := same_text(names):
        raise DataError(
            f"{place} has two classes that read alike, {alike[0]!a} and {alike[1]!a}, which differ only in Unicode "
            "normalization (NFC, NFD): give them one name"
        )


def with_train_labels(
    place: str, split: datasets.Dataset, column: str, given_names: list[str] | None, least_classes: int = 2
) -> tuple[list[str], datasets.Dataset, np.ndarray]:
    """(class names, split with class labels, labels) of the training split, which defines the classes."""
    ids, names = _label_ids(place, split, column, given_names)
    names = names or _numbered_classes(place, ids)
    _check_names(place, names)
    if len(np.unique(ids)) < least_classes:
        raise DataError(f"{place} has images of one class only ({names[ids[0]]}): training needs two or more")
    ids = ids.astype(np.int64)
    return names, _replace_labels(split, column, ids, names), ids


def with_labels_of(
    names: list[str], place: str, split: datasets.Dataset, column: str, given_names: list[str] | None
) -> tuple[datasets.Dataset, np.ndarray]:
    """(split with class labels, labels) of another split, in terms of the training split's class names."""
    ids, own_names = _label_ids(place, split, column, given_names)
    position = {composed(name): index for index, name in enumerate(names)}
    used, occurrence = np.unique(ids, return_inverse=True)
    used_names = [own_names[i] if own_names else str(i) for i in used]
    unknown = [name for name in used_names if composed(name) not in position]
    if unknown:
        raise DataError(f"{place} has images of classes that the training split lacks: {listed(unknown)}")
    ids = np.array([position[composed(name)] for name in used_names])[occurrence]
    return _replace_labels(split, column, ids, names), ids


def _replace_labels(split: datasets.Dataset, column: str, ids: np.ndarray, names: list[str]) -> datasets.Dataset:
    feature = datasets.ClassLabel(names=names)
    if split.features[column] == feature:
        return split  # these names in this order: the numbers are already right
    return split.remove_columns([column]).add_column(column, ids, feature=feature)


def streamed_class_names(
    dataset: str, splits: list[datasets.IterableDataset], column: str, given_names: list[str] | None
) -> list[str]:
    """Class names that all splits declare alike, or the given ones: a stream cannot be looked through beforehand."""
    features = [split.features[column] for split in splits]
    if given_names:
        if isinstance(features[0], datasets.ClassLabel):
            raise DataError(f"{dataset} has class names of its own: leave out class_names")
        return given_names
    if not isinstance(features[0], datasets.ClassLabel) or any(feature != features[0] for feature in features):
        raise DataError(
            f"streaming needs class names, the same in each split, but column {column!r} of {dataset} has none: "
            "give a file of them as class_names"
        )
    _check_names(dataset, features[0].names)
    return features[0].names
