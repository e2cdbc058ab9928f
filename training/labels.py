"""Labels of a data set as indices into the class names of its training split."""

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from training.data_error import DataError, listed


def _label_ids(
    place: str, split: datasets.Dataset, column: str, given_names: list[str] | None
) -> tuple[np.ndarray, list[str]]:
    """(an integer for each sample, class names by that integer); plain integers have the given names, or 0, 1, ..."""
    feature = split.features[column]
    labels = split.select_columns([column]).with_format("arrow")[:][column].combine_chunks()
    if labels.null_count == len(labels):
        raise DataError(f"{place} has no labels: the column {column!r} is empty")
    if labels.null_count:
        index = int(np.flatnonzero(labels.is_null().to_numpy(zero_copy_only=False))[0])
        raise DataError(f"sample {index} of {place} has no label")
    has_texts = pa.types.is_string(labels.type) or pa.types.is_large_string(labels.type)
    if given_names and (has_texts or isinstance(feature, datasets.ClassLabel)):
        raise DataError(f"{place} names its classes by itself: leave out class_names")
    if has_texts:
        texts = sorted(labels.unique().to_pylist())
        return pc.index_in(labels, value_set=pa.array(texts, labels.type)).to_numpy().astype(np.int64), texts
    if not pa.types.is_integer(labels.type):
        raise DataError(
            f"labels of {place} must be class labels, integers or strings, but {column!r} is {labels.type}"
        )
    ids = labels.to_numpy(zero_copy_only=False).astype(np.int64)
    if (ids == -1).all():
        raise DataError(f"{place} has no labels: all are -1")
    names = feature.names if isinstance(feature, datasets.ClassLabel) else given_names
    wrong = np.flatnonzero((ids < 0) | (ids >= len(names)) if names else ids < 0)
    if len(wrong):
        classes = f"the {len(names)} classes" if names else "0, 1, 2, ..."
        raise DataError(f"label {ids[wrong[0]]} of sample {wrong[0]} of {place} is none of {classes}")
    return ids, names or [str(number) for number in range(int(ids.max()) + 1)]


def with_train_labels(
    place: str, split: datasets.Dataset, column: str, given_names: list[str] | None, least_classes: int = 2
) -> tuple[list[str], datasets.Dataset, np.ndarray]:
    """(class names, split with class labels, labels) of the training split, which defines the classes."""
    ids, names = _label_ids(place, split, column, given_names)
    if len(np.unique(ids)) < least_classes:
        raise DataError(f"{place} has pictures of one class only ({names[ids[0]]}): training needs two or more")
    return names, _replace_labels(split, column, ids, names), ids


def with_labels_of(
    names: list[str], place: str, split: datasets.Dataset, column: str, given_names: list[str] | None
) -> tuple[datasets.Dataset, np.ndarray]:
    """(split with class labels, labels) of another split, in terms of the training split's class names."""
    ids, own_names = _label_ids(place, split, column, given_names)
    position = {name: index for index, name in enumerate(names)}
    used = np.unique(ids)
    unknown = [own_names[i] for i in used if own_names[i] not in position]
    if unknown:
        raise DataError(f"{place} has pictures of classes that the training split lacks: {listed(unknown)}")
    mapping = np.zeros(len(own_names), dtype=np.int64)
    mapping[used] = [position[own_names[i]] for i in used]
    ids = mapping[ids]
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
            raise DataError(f"{dataset} names its classes by itself: leave out class_names")
        return given_names
    if not isinstance(features[0], datasets.ClassLabel) or any(feature != features[0] for feature in features):
        raise DataError(
            f"streaming needs class names, the same in each split, but column {column!r} of {dataset} has none: "
            "give a file of them as class_names"
        )
    return features[0].names
