"""Where images and labels come from: a Hub id, a folder of images, Parquet, or scikit-learn's digits."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from training.data.class_folders import FoundSplits
from training.data.class_names import read_class_names
from training.data.columns import Split, find_columns, read_column, select_two_columns
from training.data.dataset_files import metadata_file, read_splits
from training.data.labels import streamed_class_names, with_labels_of, with_train_labels
from training.data.permutation import stratified_holdout
from training.data.split_names import find_train_split, may_lack_labels, validation_candidates
from training.data.unicode_text import require_text
from training.errors import DataError, listed

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
    description: str  # one line: sizes, and whatever a user may not expect
    num_other_files: int = 0  # of a tree of class folders: hidden, or no images

    @property
    def by_name(self) -> dict[str, Split]:
        return {"train": self.train, "validation": self.validation}


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

    The training split defines the classes and their order. Validation labels are mapped by name, because the two
    splits may list their classes differently.

    Args:
        dataset: `digits`; a folder that holds `train/<class>/` and `val/<class>/`, or `<class>/` alone, or Parquet, or
            images with a metadata file; a Parquet file; a folder of WebDataset's tar files; or a Hub id.
        name: configuration of a Hub dataset that has several.
        train_split: split to train on; `train` also stands for `Train`, `training`, ...
        validation_split: split to evaluate on; None takes the first of validation, val, valid, dev, eval and test that
            exists, in any case, and passes over a test split without labels.
        image_column, label_column: None finds them by type, see `find_columns`.
        class_names: text file with one name per line, for integer labels; None calls the classes 0, 1, 2, ...
        validation_fraction: share of each class to hold out of the training split if there is no validation split.
        seed: decides which samples are held out. Runs that are to be compared need the same one.
        streaming: read the dataset while training instead of storing it. Labels are then checked only as they come.
        least_classes: a dataset with fewer is refused; evaluation can do with one.
        hold_out_of_folder: hold the validation split out of a folder of class folders; False evaluates all of it.

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
    chosen = _choose(dataset, found, train_split, validation_split, image_column, label_column)
    if streaming:
        return _streamed(chosen, given_names)
    return _stored(chosen, given_names, least_classes, _HoldOut(validation_fraction, seed, hold_out_of_folder))


class _HoldOut(NamedTuple):
    """What to evaluate on where there is no validation split."""

    fraction: float  # of each class
    seed: int
    of_folder: bool  # out of a folder of class folders too; else all of it is evaluated


@dataclass(frozen=True)
class _Chosen:
    """The two splits to use of those found, with their labels as they are."""

    dataset: str
    train_name: str
    train: Split
    validation_name: str | None  # None where there is none
    validation: Split | None
    image_column: str
    label_column: str
    notes: list[str]  # on what a user may not expect of the choice
    num_other_files: int


def _choose(
    dataset: str,
    found: FoundSplits,
    train_split: str,
    validation_split: str | None,
    image_column: str | None,
    label_column: str | None,
) -> _Chosen:
    """Raises DataError if a split or a column is missing, or ImageNet-1k is incomplete; see `load_splits`."""
    splits = found.splits
    train_name = find_train_split(splits, train_split) or train_split
    for name in (train_name, validation_split):
        if name is not None and name not in splits:
            raise DataError(f"{dataset} has no split {name!r}; its splits are {listed(splits)}")
    image_column, label_column = find_columns(dataset, splits[train_name], image_column, label_column)
    validation_name = validation_split
    without_labels: list[str] = []
    if validation_name is None:
        validation_name, without_labels = _choose_validation(splits, train_name, label_column)
    chosen = {
        name: select_two_columns(_place(dataset, name), splits[name], image_column, label_column)
        for name in (train_name, validation_name)
        if name is not None
    }
    check_imagenet_counts(dataset, {name: _known_size(split) for name, split in chosen.items()})
    notes = [] if train_name == train_split else [f"trained on its split {train_name!r}"]
    notes += [*found.notes, *(f"{name} has no labels and is not used" for name in without_labels)]
    if unused := [name for name in splits if name not in chosen and name not in without_labels]:
        notes.append(f"not used: {listed(unused)}")
    return _Chosen(
        dataset=dataset,
        train_name=train_name,
        train=chosen[train_name],
        validation_name=validation_name,
        validation=None if validation_name is None else chosen[validation_name],
        image_column=image_column,
        label_column=label_column,
        notes=notes,
        num_other_files=found.num_other_files,
    )


def _place(dataset: str, split: str) -> str:
    """How messages name a split."""
    return f"split {split!r} of {dataset}"


def _streamed(chosen: _Chosen, given_names: list[str] | None) -> Splits:
    dataset, column = chosen.dataset, chosen.label_column
    if chosen.validation is None:
        raise DataError(f"{dataset} has no validation split, and none can be held out of a stream; name one")
    names = streamed_class_names(dataset, [chosen.train, chosen.validation], column, given_names)
    evaluated = f"{dataset}, streamed: {len(names)} classes, evaluated on its split {chosen.validation_name!r}"
    description = "; ".join([evaluated, *chosen.notes])
    return Splits(chosen.train, chosen.validation, names, chosen.image_column, column, description)


def _stored(chosen: _Chosen, given_names: list[str] | None, least_classes: int, hold_out: _HoldOut) -> Splits:
    dataset, column = chosen.dataset, chosen.label_column
    place = _place(dataset, chosen.train_name)
    names, train, train_ids = with_train_labels(place, chosen.train, column, given_names, least_classes)
    if chosen.validation is not None and chosen.validation_name is not None:
        evaluated = f"evaluated on its split {chosen.validation_name!r}"
        place = _place(dataset, chosen.validation_name)
        validation, validation_ids = with_labels_of(names, place, chosen.validation, column, given_names)
    elif not hold_out.of_folder and is_folder_of_classes(dataset, train, chosen.image_column):
        validation, validation_ids, evaluated = train, train_ids, "all of them are evaluated"
    else:
        evaluated = (
            f"there is no validation split: {100 * hold_out.fraction:g} % of each class is held out of "
            f"{chosen.train_name!r} for it (seed {hold_out.seed})"
        )
        kept, out = stratified_holdout(train_ids, hold_out.fraction, hold_out.seed)
        if not len(out):
            raise DataError(f"{dataset} has only one image per class, so none can be held out for validation")
        validation, validation_ids = train.select(out), train_ids[out]
        train, train_ids = train.select(kept), train_ids[kept]
    absent = [*_absent("training", train_ids, names), *_absent("validation", validation_ids, names)]
    description = (
        f"{dataset}: {len(train):,} training and {len(validation):,} validation images, {len(names)} classes; "
        + "; ".join([evaluated, *absent, *chosen.notes])
    )
    return Splits(train, validation, names, chosen.image_column, column, description, chosen.num_other_files)


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
    """Whether a split has no labels, or -1 in their place; of a stream, only the first sample is read."""
    if split.features is None or label_column not in split.features:
        return split.features is not None
    labels = split.select_columns([label_column])
    if isinstance(labels, datasets.IterableDataset):
        return all(row[label_column] in (None, -1) for row in labels.take(1))
    column = read_column(labels, label_column)
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
