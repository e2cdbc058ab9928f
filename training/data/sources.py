"""Where images and labels come from: a Hub id, a folder of images, Parquet, or scikit-learn's digits."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from training.data.class_names import read_class_names
from training.data.dataset_files import metadata_file, read_splits
from training.data.labels import streamed_class_names, with_labels_of, with_train_labels
from training.data.permutation import stratified_holdout
from training.data.split_names import find_train_split, may_lack_labels, validation_candidates
from training.data.unicode_text import require_text, require_text_column
from training.errors import DataError, listed

Split: TypeAlias = datasets.Dataset | datasets.IterableDataset

IMAGE_COLUMN_NAMES = ("image", "img", "picture", "jpg", "jpeg", "png", "webp")
LABEL_COLUMN_NAMES = ("label", "labels", "class", "target", "cls")
VIEWS = {"binary_view": "large_binary", "string_view": "large_string"}  # Arrow's layouts that Polars writes
IMAGENET_COUNTS = {"train": 1_281_167, "validation": 50_000, "val": 50_000}


@dataclass(frozen=True)
class Splits:
    """A dataset ready for training.

    Both splits hold just two columns: encoded images, `Image(decode=False)`, and labels, indices into `class_names`.
    """

    train: Split
    validation: Split
    class_names: list[str]
    image_column: str
    label_column: str
    description: str  # one line: sizes, and whatever the user may not expect
    num_other_files: int = 0  # of a tree of class folders: hidden, or no images


def load_splits(
    dataset: str,
    *,
    name: str | None = None,
    train_split: str = "train",
    validation_split: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    class_names: str | None = None,
    validation_fraction: float = 0.2,
    seed: int = 0,
    streaming: bool = False,
    least_classes: int = 2,
    hold_out_of_folder: bool = True,
) -> Splits:
    """Find, read and check the training and the validation split.

    Class names and their order come from the training split, and validation labels are mapped by name: the two splits
    may list their classes differently.

    Args:
        dataset: `digits`; a folder that holds `train/<class>/` and `val/<class>/`, or `<class>/` alone, or Parquet, or
            images with a metadata file; a Parquet file; a folder of WebDataset's tar files; or a Hub id.
        name: configuration of a Hub dataset that has several.
        train_split: split to train on; `train` stands for `Train`, `training`, ... too.
        validation_split: split to evaluate on; None takes the first of validation, val, valid, dev, eval and test that
            there is, in any case, and passes over a test split without labels.
        image_column: column of the images; None finds it by its type.
        label_column: column of the labels; None finds it by its type.
        class_names: text file of a name in each line, for labels that are plain integers; None calls them 0, 1, 2, ...
        validation_fraction: share of each class to hold out of the training split if there is no validation split.
        seed: decides which samples are held out. Leave it alone between runs that are to be compared.
        streaming: read the dataset while training instead of storing it. Labels are then checked only as they come.
        least_classes: with fewer it is refused; an evaluation can do with one.
        hold_out_of_folder: hold the validation split out of a folder of class folders; else it is all of them.

    Raises:
        DataError: the dataset is missing, or cannot be trained on as it is.
    """
    require_text(dataset, "the dataset")
    given_names = None if class_names is None else read_class_names(class_names)
    found = read_splits(
        dataset,
        name=name,
        train_split=train_split,
        validation_split=validation_split,
        label_column=label_column,
        streaming=streaming,
    )
    splits, wanted = found.splits, train_split
    train_split = find_train_split(splits, wanted) or wanted
    for split in (train_split, validation_split):
        if split is not None and split not in splits:
            raise DataError(f"{dataset} has no split {split!r}; its splits are {listed(splits)}")
    image_column, label_column = _find_columns(dataset, splits[train_split], image_column, label_column)
    without_labels: list[str] = []
    if validation_split is None:
        validation_split, without_labels = _choose_validation(splits, train_split, label_column)
    chosen = {}
    for split in (train_split, validation_split):
        if split is not None:
            chosen[split] = _two_columns(f"split {split!r} of {dataset}", splits[split], image_column, label_column)
    check_imagenet_counts(dataset, {split: _known_size(data) for split, data in chosen.items()})
    notes = [*found.notes, *(f"{split} has no labels and is not used" for split in without_labels)]
    if unused := [split for split in splits if split not in chosen and split not in without_labels]:
        notes.append(f"not used: {listed(unused)}")
    if train_split != wanted:
        notes.insert(0, f"trained on its split {train_split!r}")

    if streaming:
        if validation_split is None:
            raise DataError(f"{dataset} has no validation split, and none can be held out of a stream; name one")
        names = streamed_class_names(dataset, list(chosen.values()), label_column, given_names)
        evaluated = f"{dataset}, streamed: {len(names)} classes, evaluated on its split {validation_split!r}"
        description = "; ".join([evaluated, *notes])
        return Splits(chosen[train_split], chosen[validation_split], names, image_column, label_column, description)

    names, train, train_ids = with_train_labels(
        f"split {train_split!r} of {dataset}", chosen[train_split], label_column, given_names, least_classes
    )
    if validation_split is None and not hold_out_of_folder and is_folder_of_classes(dataset, train, image_column):
        validation, validation_ids, evaluated = train, train_ids, "all of them are evaluated"
    elif validation_split is None:
        evaluated = (
            f"there is no validation split: {100 * validation_fraction:g} % of each class are held out of "
            f"{train_split!r} for it (seed {seed})"
        )
        kept, held_out = stratified_holdout(train_ids, validation_fraction, seed)
        if not len(held_out):
            raise DataError(f"{dataset} has one image in each class, so that none can be held out for validation")
        validation, validation_ids = train.select(held_out), train_ids[held_out]
        train, train_ids = train.select(kept), train_ids[kept]
    else:
        evaluated = f"evaluated on its split {validation_split!r}"
        place = f"split {validation_split!r} of {dataset}"
        validation, validation_ids = with_labels_of(names, place, chosen[validation_split], label_column, given_names)
    absent = [*_absent("training", train_ids, names), *_absent("validation", validation_ids, names)]
    description = (
        f"{dataset}: {len(train):,} training and {len(validation):,} validation images, {len(names)} classes; "
        + "; ".join([evaluated, *absent, *notes])
    )
    return Splits(train, validation, names, image_column, label_column, description, found.num_other_files)


def _find_columns(dataset: str, split: Split, image_column: str | None, label_column: str | None) -> tuple[str, str]:
    image_column = _find_image_column(dataset, split, image_column)
    label_column = _find_label_column(dataset, split, label_column)
    if image_column == label_column:
        raise DataError(f"column {image_column!r} of {dataset} cannot hold both the images and the labels")
    return image_column, label_column


def _absent(kind: str, ids: np.ndarray, names: list[str]) -> list[str]:
    """A note on classes without samples in a split, if there are any."""
    missing = [names[index] for index in np.flatnonzero(np.bincount(ids, minlength=len(names)) == 0)]
    return [f"no {kind} images of {listed(missing)}"] if missing else []


def _choose_validation(splits: dict[str, Split], train_split: str, label_column: str) -> tuple[str | None, list[str]]:
    """(the split to evaluate on, test splits that were passed over because their labels are kept secret)"""
    without_labels: list[str] = []
    for split in validation_candidates(splits, train_split):
        if not (may_lack_labels(split) and _lacks_labels(splits[split], label_column)):
            return split, without_labels
        without_labels.append(split)
    return None, without_labels


def _lacks_labels(split: Split, label_column: str) -> bool:
    """Whether a split has no labels, or -1 in their place; of a stream, its first sample is asked."""
    if split.features is None or label_column not in split.features:
        return split.features is not None
    labels = split.select_columns([label_column])
    if isinstance(labels, datasets.IterableDataset):
        return all(row[label_column] in (None, -1) for row in labels.take(1))
    column = labels.with_format("arrow")[:][label_column]
    if column.null_count == len(column):
        return True
    return pa.types.is_integer(column.type) and pc.all(pc.equal(column, -1), skip_nulls=False).as_py() is True


def num_samples(split: Split) -> int:
    """The size of a split.

    Raises:
        DataError: it is a stream whose size its publisher does not state.
    """
    size = _known_size(split)
    if size is None:
        raise DataError("the streamed dataset does not state its number of samples: use it without streaming")
    return size


def is_folder_of_classes(dataset: str, split: Split, image_column: str) -> bool:
    """Whether a split was read from `<dataset>/<class>/<image>`, not from a split's folder or with a metadata file."""
    root = Path(dataset).expanduser()
    if not isinstance(split, datasets.Dataset) or not root.is_dir() or metadata_file(root):
        return False
    path = split[0][image_column]["path"]
    return path is not None and Path(path).parent.parent == root


def is_imagenet(dataset: str) -> bool:
    """Whether a dataset is called ImageNet-1k: the last part of its id or path is `imagenet-1k` or `imagenet_1k`."""
    return Path(dataset).name.lower().replace("_", "-") == "imagenet-1k"


def check_imagenet_counts(dataset: str, counts: dict[str, int | None]) -> None:
    """Refuse an incomplete ImageNet-1k: a dataset that is called so must have all its images.

    Args:
        dataset: Hub id or path; what is not called ImageNet-1k is not checked.
        counts: number of samples of each split, None where it is unknown.

    Raises:
        DataError: a split has another number of samples than ImageNet-1k's.
    """
    if not is_imagenet(dataset):
        return
    for split, count in counts.items():
        expected = IMAGENET_COUNTS.get(split.lower(), count)
        if count is not None and count != expected:
            raise DataError(
                f"split {split!r} of {dataset} has {count:,} images where ImageNet-1k has {expected:,}: it is "
                "incomplete, or should be called something else"
            )


def _known_size(split: Split) -> int | None:
    if isinstance(split, datasets.Dataset):
        return len(split)
    stated = (split.info.splits or {}).get(str(split.split))
    return stated.num_examples if stated else None


# Columns


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
        raise DataError(f"{dataset} has {problem}: name one by image_column{hint}; its columns are {listed(features)}")
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
                f"or name one by label_column; its columns are {listed(features)}"
            )
        problem = f"several columns of labels ({listed(candidates)})" if candidates else "no column of labels"
        raise DataError(f"{dataset} has {problem}: name one by label_column; its columns are {listed(features)}")
    return found


def _two_columns(place: str, split: Split, image_column: str, label_column: str) -> Split:
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
