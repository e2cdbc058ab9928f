"""A tree of class folders: `<root>/<split>/<class>/<image>`, or `<root>/<class>/<image>`.

Whatever is in the tree and not used is reported: other files, unlabeled images, folders of images beside the splits.
"""

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa

from training.data.folder_listing import holds_images, list_folder
from training.data.image_files import remedy, sort_files
from training.data.split_names import (
    find_train_split,
    is_split_name,
    may_lack_labels,
    names_no_class,
    validation_candidates,
)
from training.data.unicode_text import composed, require_text_names
from training.errors import DataError, listed

ARCHIVE_ENDINGS = (".zip", ".tar", ".tgz", ".gz", ".7z")
TABLE_ENDINGS = (".csv", ".tsv", ".json", ".jsonl", ".xlsx", ".xls")  # of files that may hold labels


@dataclass
class FoundSplits:
    """Splits by name, and notes on the place where they were found."""

    splits: dict[str, datasets.Dataset | datasets.IterableDataset]
    notes: list[str] = field(default_factory=list)
    num_other_files: int = 0  # hidden, or no images


@dataclass
class _Tree:
    """What is found in a tree while it is read."""

    root: Path
    other_files: list[str] = field(default_factory=list)  # the first ones, relative to the root
    num_other_files: int = 0

    def leave_out(self, folder: Path, names: list[str]) -> None:
        self.num_other_files += len(names)
        named = names[: max(0, 3 - len(self.other_files))]
        self.other_files += [str((folder / name).relative_to(self.root)) for name in named]

    def notes(self) -> list[str]:
        number = self.num_other_files
        if not number:
            return []
        files = "1 hidden or non-image file" if number == 1 else f"{number:,} hidden or non-image files"
        more = ", ..." if number > len(self.other_files) else ""
        return [f"left out: {files} ({', '.join(self.other_files)}{more})"]


def read_class_folders(root: Path, train_split: str, validation_split: str | None) -> FoundSplits:
    """Read the training split and, where there is one, the validation split.

    Args:
        root: the folder.
        train_split: its folder; `train` stands for any usual name.
        validation_split: its folder; None takes the usual names, and leaves out test images without labels.

    Raises:
        DataError: the tree cannot be trained on as it is.
    """
    folders, files, _ = list_folder(root)
    if not folders and not holds_images(root):
        only = f", only {listed(files, 3)}" if files else ""
        archives = [name for name in files if name.lower().endswith(ARCHIVE_ENDINGS)]
        raise DataError(f"folder {root} holds no images{only}{': unpack it' if archives else ''}")
    named = [name for name in folders if is_split_name(name) or name in (train_split, validation_split)]
    # A split holds class folders. A folder of images called "train" or "valid" is a class like any other...
    if len(named) < len(folders) and not any(list_folder(root / name)[0] for name in named):
        return _classes_alone(root, folders, files, named, train_split)
    # ... unless there is nothing but such folders.
    train = find_train_split(folders, train_split)
    if train is None:
        if not folders:
            raise DataError(_without_labels(str(root), root, files))
        raise DataError(f"{root} has no folder {train_split!r}; its folders are {listed(folders)}")
    tree = _Tree(root)
    read = {train: _read_split(tree, root / train, files, every_class=True)}
    validation, passed_over = _choose_validation(root, folders, train, validation_split)
    if validation:
        read[validation] = _read_split(tree, root / validation, files, every_class=False)
    notes = [f"{name} {why} and is not used" for name, why in passed_over.items()]
    unused = [name for name in folders if name not in read and name not in passed_over and holds_images(root / name)]
    if unused:
        notes.append(f"not used: {listed(unused)}")
    beside = sort_files(root, files)
    if stray := sorted([*beside.images, *(name for name, _ in beside.unread)]):
        images = "1 image" if len(stray) == 1 else f"{len(stray):,} images"
        notes.append(f"not used: {images} beside the splits ({listed(stray, 3)})")
    return FoundSplits(read, notes + tree.notes(), tree.num_other_files)


def labeled_split(images: pa.StructArray, labels: np.ndarray, class_names: list[str]) -> datasets.Dataset:
    """A stored split of encoded images, structs of `bytes` and `path`, and labels, indices into the class names."""
    features = datasets.Features(
        {"image": datasets.Image(decode=False), "label": datasets.ClassLabel(names=class_names)}
    )
    table = pa.table({"image": images, "label": pa.array(labels, pa.int64())})
    return datasets.Dataset(table, info=datasets.DatasetInfo(features=features))


def _classes_alone(
    root: Path, folders: list[str], files: list[str], named: list[str], train_split: str
) -> FoundSplits:
    """Read `<root>/<class>/<image>`."""
    if list_folder(root / folders[0])[0] and len(folders) > 1 and all(list_folder(root / name)[0] for name in folders):
        raise DataError(
            f"{root} has no folder {train_split!r}, and its folders {listed(folders)} hold folders: choose the one to "
            "train on with train_split, or give one of them as the dataset"
        )
    if len(folders) == 1 or any(map(names_no_class, folders)):
        _refuse_folders_for_a_purpose(root, folders, files)
    tree = _Tree(root)
    read = {train_split: _read_split(tree, root, files, every_class=True)}
    notes = [f"classes, though called like splits: {listed(named)}"] if named else []
    return FoundSplits(read, notes + tree.notes(), tree.num_other_files)


def _refuse_folders_for_a_purpose(root: Path, folders: list[str], files: list[str]) -> None:
    """Refuse `images/` beside `annotations/`, or a folder with the dataset in it, where classes are expected."""
    with_images = [name for name in folders if holds_images(root / name, depth=3)]
    inner = root / next((name for name in with_images if "train" in name.lower()), folders[0])
    if len(with_images) == 1:
        inner = root / with_images[0]
        if inside := list_folder(inner)[0]:
            raise DataError(
                f"the images of {root} lie in its folder {inner.name}, with {listed(inside, 3)} in it: "
                f"give {inner} as the dataset"
            )
    if with_images and all(map(names_no_class, with_images)):
        raise DataError(_without_labels(f"folder {inner}", inner, files))


def _choose_validation(
    root: Path, folders: list[str], train: str, wanted: str | None
) -> tuple[str | None, dict[str, str]]:
    """(the folder to evaluate on, test folders that were passed over and why)"""
    if wanted is not None:
        return (wanted if wanted in folders and wanted != train else None), {}
    passed_over: dict[str, str] = {}
    classes = set(map(composed, list_folder(root / train)[0]))
    for name in validation_candidates(folders, train):
        own = list_folder(root / name)[0]
        if not may_lack_labels(name) or not classes.isdisjoint(map(composed, own)):
            return name, passed_over
        passed_over[name] = "has no labels" if holds_images(root / name, depth=0) else "holds no images"
        if own:  # Keras wants test images in a folder of any name, such as `unknown`
            passed_over[name] = f"has none of the classes, but {listed(own, 3)},"
    return None, passed_over


def _tables(files: list[str]) -> list[str]:
    return [name for name in files if name.lower().endswith(TABLE_ENDINGS)]


def _without_labels(what: str, folder: Path, files: list[str]) -> str:
    """The sentence on images without labels; `files` may hold a table of them."""
    tables = _tables(files)
    source = f" from {listed(tables, 3)}" if tables else ""
    return (
        f"{what} has images, but no labels: sort them into one folder for each class, or write "
        f"{folder / 'metadata.csv'} with the columns file_name and label{source}"
    )


def _read_split(tree: _Tree, root: Path, tables: list[str], every_class: bool) -> datasets.Dataset:
    """Read `<root>/<class>/<image>`; with `every_class`, each folder must hold images."""
    class_names, files, hidden = list_folder(root)
    found = sort_files(root, files)
    stray = next(iter([*found.images, *(name for name, _ in found.unread)]), None)
    if stray and not class_names:
        raise DataError(f"{_without_labels(f'split {root}', root, tables)}, or move it away")
    if stray:
        raise DataError(f"{root / stray} lies outside of the class folders: move it into one, or away")
    tree.leave_out(root, hidden + found.others)
    paths, labels = [], []  # one array for each class: a million names are a tenth of the size in Arrow
    unread = []
    for label, class_name in enumerate(class_names):
        folder = root / class_name
        nested, files, hidden = list_folder(folder)
        if nested and (folder / nested[0] / "recipe.yaml").is_file():
            raise DataError(
                f"{folder / nested[0]} is a run of train.py inside the dataset: move {folder} away, and set "
                "output_dir to its new place"
            )
        if nested:
            raise DataError(
                f"folder {folder / nested[0]} lies inside a class folder, where only images may lie: move its images "
                f"up into {folder}, or {folder / nested[0]} away"
            )
        found = sort_files(folder, files)
        unread += [(folder / name, kind) for name, kind in found.unread]
        if every_class and not found.images and not found.unread:
            only = f"only {listed(files, 3)}" if files else "nothing"
            raise DataError(f"class folder {folder} holds no images ({only}): fill or delete it")
        tree.leave_out(folder, hidden + found.others)
        require_text_names(root, class_name, found.images)
        paths.append(pa.array([os.path.join(folder, file) for file in found.images], pa.string()))
        labels.append(np.full(len(found.images), label))
    count = sum(map(len, paths))
    if unread:
        raise DataError(_unread_images(root, unread, count))
    if not count:
        raise DataError(f"folder {root} holds no images")
    names = ["bytes", "path"]
    images = pa.StructArray.from_arrays([pa.nulls(count, pa.binary()), pa.concat_arrays(paths)], names=names)
    return labeled_split(images, np.concatenate(labels), class_names)


def _unread_images(root: Path, unread: list[tuple[Path, str]], num_read: int) -> str:
    """The sentence on images that cannot be read: left out, they would be missing in some classes more than others."""
    (kind, count), *_ = Counter(kind for _, kind in unread).most_common()
    example = next(path for path, other in unread if other == kind)
    total = num_read + len(unread)
    return (
        f"{count:,} of the {total:,} images in {root} are {kind}, such as {example}, and cannot be read here: "
        f"{remedy(kind)}, or move them away"
    )
