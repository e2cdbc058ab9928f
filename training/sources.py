"""Where pictures and labels come from: a Hub id, a folder of pictures, Parquet, or scikit-learn's digits."""

import io
import json
import os
import re
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import datasets
import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from training.data_error import DataError, listed
from training.labels import read_class_names, streamed_class_names, with_labels_of, with_train_labels
from training.sampling import stratified_holdout
from training.unicode_text import require_text, require_text_column, require_text_names, unicode_problem

Split: TypeAlias = datasets.Dataset | datasets.IterableDataset

VALIDATION_NAMES = ("validation", "val", "valid", "test")
IMAGE_ENDINGS = frozenset(
    {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".jp2", ".avif"}
)
# A file of one of these names takes the place of the folder names in the imagefolder format of `datasets`.
METADATA_NAMES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
IMAGE_COLUMN_NAMES = ("image", "img", "picture", "jpg", "jpeg", "png", "webp")
LABEL_COLUMN_NAMES = ("label", "labels", "class", "target", "cls")
VIEWS = {"binary_view": "large_binary", "string_view": "large_string"}  # Arrow's layouts that Polars writes
IMAGENET_COUNTS = {"train": 1_281_167, "validation": 50_000, "val": 50_000}


@dataclass(frozen=True)
class Splits:
    """A data set ready for training.

    Both splits hold just two columns: encoded pictures, `Image(decode=False)`, and labels, indices into `class_names`.
    """

    train: Split
    validation: Split
    class_names: list[str]
    image_column: str
    label_column: str
    description: str  # one line: sizes, and whatever the user may not expect


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
) -> Splits:
    """Find, read and check the training and the validation split.

    Class names and their order come from the training split, and validation labels are mapped by name: the two splits
    may list their classes differently.

    Args:
        dataset: `digits`; a folder that holds `train/<class>/` and `val/<class>/`, or `<class>/` alone, or Parquet, or
            pictures with a metadata file; a Parquet file; a folder of WebDataset's tar files; or a Hub id.
        name: configuration of a Hub data set that has several.
        train_split: split to train on.
        validation_split: split to evaluate on; None takes the first of validation, val, valid and test there is.
        image_column: column of the pictures; None finds it by its type.
        label_column: column of the labels; None finds it by its type.
        class_names: text file of a name in each line, for labels that are plain integers; None calls them 0, 1, 2, ...
        validation_fraction: share of each class to hold out of the training split if there is no validation split.
        seed: decides which samples are held out. Leave it alone between runs that are to be compared.
        streaming: read the data set while training instead of storing it. Labels are then checked only as they come.

    Raises:
        DataError: the data set is missing, or cannot be trained on as it is.
    """
    require_text(dataset, "the dataset")
    given_names = read_class_names(class_names) if class_names else None
    splits = _read_splits(dataset, name, train_split, validation_split, streaming)
    if train_split not in splits:
        raise DataError(f"{dataset} has no split {train_split!r}; its splits are {listed(splits)}")
    if validation_split is None:
        candidates = [split for split in VALIDATION_NAMES if split in splits and split != train_split]
        validation_split = candidates[0] if candidates else None
    elif validation_split not in splits:
        raise DataError(f"{dataset} has no split {validation_split!r}; its splits are {listed(splits)}")

    image_column = _find_image_column(dataset, splits[train_split], image_column)
    label_column = _find_label_column(dataset, splits[train_split], label_column)
    if image_column == label_column:
        raise DataError(f"column {image_column!r} of {dataset} cannot hold both the pictures and the labels")
    chosen = {}
    for split in (train_split, validation_split):
        if split is not None:
            chosen[split] = _two_columns(f"split {split!r} of {dataset}", splits[split], image_column, label_column)
    check_imagenet_counts(dataset, {split: _known_size(data) for split, data in chosen.items()})

    if streaming:
        if validation_split is None:
            raise DataError(f"{dataset} has no validation split, and none can be held out of a stream; name one")
        names = streamed_class_names(dataset, list(chosen.values()), label_column, given_names)
        description = f"{dataset}, streamed: {len(names)} classes, evaluated on its split {validation_split!r}"
        return Splits(chosen[train_split], chosen[validation_split], names, image_column, label_column, description)

    names, train, train_ids = with_train_labels(
        f"split {train_split!r} of {dataset}", chosen[train_split], label_column, given_names
    )
    if validation_split is None:
        notes = [
            f"there is no validation split: {100 * validation_fraction:g} % of each class are held out of "
            f"{train_split!r} for it (seed {seed})"
        ]
        kept, held_out = stratified_holdout(train_ids, validation_fraction, seed)
        if not len(held_out):
            raise DataError(f"{dataset} has one picture in each class, so that none can be held out for validation")
        validation, validation_ids = train.select(held_out), train_ids[held_out]
        train, train_ids = train.select(kept), train_ids[kept]
    else:
        notes = [f"evaluated on its split {validation_split!r}"]
        place = f"split {validation_split!r} of {dataset}"
        validation, validation_ids = with_labels_of(names, place, chosen[validation_split], label_column, given_names)
    for kind, ids in (("training", train_ids), ("validation", validation_ids)):
        missing = [names[i] for i in np.flatnonzero(np.bincount(ids, minlength=len(names)) == 0)]
        if missing:
            notes.append(f"no {kind} pictures of {listed(missing)}")
    description = (
        f"{dataset}: {len(train):,} training and {len(validation):,} validation pictures, {len(names)} classes; "
        + "; ".join(notes)
    )
    return Splits(train, validation, names, image_column, label_column, description)


def num_samples(split: Split) -> int:
    """The size of a split.

    Raises:
        DataError: it is a stream whose size its publisher does not state.
    """
    size = _known_size(split)
    if size is None:
        raise DataError("the streamed data set does not state its number of samples: use it without streaming")
    return size


def is_imagenet(dataset: str) -> bool:
    """Whether a data set is called ImageNet-1k: the last part of its id or path is `imagenet-1k` or `imagenet_1k`."""
    return Path(dataset).name.lower().replace("_", "-") == "imagenet-1k"


def check_imagenet_counts(dataset: str, counts: dict[str, int | None]) -> None:
    """Refuse an incomplete ImageNet-1k: a data set that is called so must have all its pictures.

    Args:
        dataset: Hub id or path; what is not called ImageNet-1k is not checked.
        counts: number of samples of each split, None where it is unknown.

    Raises:
        DataError: a split has another number of samples than ImageNet-1k's.
    """
    if not is_imagenet(dataset):
        return
    for split, count in counts.items():
        expected = IMAGENET_COUNTS.get(split, count)
        if count is not None and count != expected:
            raise DataError(
                f"split {split!r} of {dataset} has {count:,} pictures where ImageNet-1k has {expected:,}: it is "
                "incomplete, or should be called something else"
            )


def _known_size(split: Split) -> int | None:
    if isinstance(split, datasets.Dataset):
        return len(split)
    stated = (split.info.splits or {}).get(str(split.split))
    return stated.num_examples if stated else None


# Reading


def _read_splits(
    dataset: str, name: str | None, train_split: str, validation_split: str | None, streaming: bool
) -> dict[str, Split]:
    path = Path(dataset).expanduser()
    if dataset != "digits":
        if not path.exists():
            if path.is_absolute() or dataset.startswith((".", "~")) or len(path.parts) > 2:
                raise DataError(f"folder {dataset} does not exist")
            return _load_dataset(dataset, name=name, streaming=streaming)
        if path.is_file() and path.suffix == ".parquet":
            return _load_dataset("parquet", data_files={train_split: str(path)}, streaming=streaming)
        if path.is_file():
            raise DataError(f"{dataset} is a file, but neither a folder of pictures nor a .parquet file")
        if parquet_files := _files(path, "*.parquet"):
            _require_same_features(parquet_files)
            return _load_dataset(str(path), name=name, streaming=streaming)
        if _files(path, "*.tar"):
            read = _load_dataset(str(path), name=name, streaming=streaming)
            return _with_tar_sizes(read, path) if streaming else read
        if metadata := _metadata_file(path):
            try:
                return _load_dataset(str(path), name=name, streaming=streaming)
            except DataError as error:
                raise DataError(f"{metadata} takes the place of the class folders, but {error}") from error
    if streaming:
        raise DataError(f"{dataset} is read in place anyway: use it without streaming")
    return {"train": _digits()} if dataset == "digits" else _class_folder_splits(path, train_split, validation_split)


def _load_dataset(
    path: str, *, streaming: bool, name: str | None = None, data_files: dict[str, str] | None = None
) -> dict[str, Split]:
    try:
        return datasets.load_dataset(path, name=name, data_files=data_files, streaming=streaming)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        cause = error.__cause__ or error
        reason = unicode_problem(cause) if isinstance(cause, UnicodeError) else " ".join(str(cause).split())
        place = ", ".join(data_files.values()) if data_files else path
        if not os.path.exists(place):
            place = f"{place} (no such folder here, so a Hub id)"
        raise DataError(f"data set {place} cannot be loaded: {reason}") from error


def _digits() -> datasets.Dataset:
    """scikit-learn's 1,797 handwritten digits: 8 x 8 pixels, 17 levels of gray spread over 0 to 255, as PNGs."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    pngs = []
    for pixels in np.rint(digits.images * (255 / 16)).astype(np.uint8):
        file = io.BytesIO()
        PIL.Image.fromarray(pixels).save(file, "PNG")
        pngs.append(file.getvalue())
    images = pa.StructArray.from_arrays([pa.array(pngs), pa.nulls(len(pngs), pa.string())], names=["bytes", "path"])
    return _labelled(images, digits.target, [str(digit) for digit in digits.target_names])


def _labelled(images: pa.StructArray, labels: np.ndarray, class_names: list[str]) -> datasets.Dataset:
    features = datasets.Features(
        {"image": datasets.Image(decode=False), "label": datasets.ClassLabel(names=class_names)}
    )
    table = pa.table({"image": images, "label": pa.array(labels, pa.int64())})
    return datasets.Dataset(table, info=datasets.DatasetInfo(features=features))


def _files(root: Path, pattern: str) -> list[Path]:
    """Files in the folder itself or in one of its folders."""
    files = [*root.glob(pattern), *root.glob(f"*/{pattern}")]
    return [file for file in files if file.name not in METADATA_NAMES]


def _with_tar_sizes(splits: dict[str, Split], path: Path) -> dict[str, Split]:
    """WebDataset's tar files do not state how many samples they hold; the headers in them do. Nothing is unpacked."""
    for split, files in datasets.load_dataset_builder(str(path)).config.data_files.items():
        size = 0
        for file in files:
            try:
                with tarfile.open(file) as tar:
                    # A sample's files share their name up to the first dot.
                    size += len({re.sub(r"(?<=[^/])\.[^/]*$", "", entry.name) for entry in tar if entry.isfile()})
            except (OSError, tarfile.TarError) as error:
                raise DataError(f"{file} cannot be read: {error}") from error
        splits[str(split)].info.splits = datasets.SplitDict({split: datasets.SplitInfo(str(split), num_examples=size)})
    return splits


def _require_same_features(files: list[Path]) -> None:
    """`datasets` would read all files by the class names of the first, whatever their own."""
    declared = {}
    for file in sorted(files):
        try:
            notes = json.loads((pq.read_schema(file).metadata or {}).get(b"huggingface", b"{}"))
        except (OSError, ValueError) as error:
            raise DataError(f"{file} cannot be read: {error}") from error
        declared[file] = notes.get("info", {}).get("features")
    first = next(iter(declared))
    for file, features in declared.items():
        if features != declared[first]:
            raise DataError(f"{first} and {file} declare different columns or class names: write them alike")


def _metadata_file(root: Path) -> Path | None:
    """The first metadata file in the folder itself or in one of its folders."""
    return next((file for name in METADATA_NAMES for file in [*root.glob(name), *root.glob(f"*/{name}")]), None)


def _entries(folder: Path) -> tuple[list[str], list[str]]:
    """(names of sub-folders, names of files), sorted, without hidden ones."""
    try:
        with os.scandir(folder) as scan:
            entries = sorted((entry.name, entry.is_dir()) for entry in scan if not entry.name.startswith("."))
    except OSError as error:
        raise DataError(f"folder {folder} cannot be read: {error.strerror}") from error
    return [name for name, is_dir in entries if is_dir], [name for name, is_dir in entries if not is_dir]


def _is_image(file: str) -> bool:
    return os.path.splitext(file)[1].lower() in IMAGE_ENDINGS


def _class_folder_splits(root: Path, train_split: str, validation_split: str | None) -> dict[str, Split]:
    """Read `<root>/<split>/<class>/<picture>` or `<root>/<class>/<picture>`."""
    folders, files = _entries(root)
    if not folders and not any(map(_is_image, files)):
        raise DataError(f"folder {root} holds no pictures")
    validation_names = [validation_split] if validation_split else VALIDATION_NAMES
    split_names = {"train", train_split, *validation_names}
    # A split holds class folders. A folder of pictures called "train" or "valid" is a class like any other...
    if not set(folders) <= split_names and not any(_entries(root / name)[0] for name in split_names & set(folders)):
        return {train_split: _read_class_folders(root, every_class=True)}
    # ... unless there is nothing but such folders.
    if train_split not in folders:
        if not folders:
            raise DataError(f"{root} has pictures, but no labels: sort them into one folder for each class")
        raise DataError(f"{root} has no folder {train_split!r}; its folders are {listed(folders)}")
    read = {train_split: _read_class_folders(root / train_split, every_class=True)}
    validation = next((name for name in validation_names if name in folders and name != train_split), None)
    if validation:
        read[validation] = _read_class_folders(root / validation, every_class=False)
    return read


def _read_class_folders(root: Path, every_class: bool) -> datasets.Dataset:
    """Read `<root>/<class>/<picture>`; with `every_class`, each folder must hold pictures."""
    class_names, files = _entries(root)
    stray = next(filter(_is_image, files), None)
    if stray and not class_names:
        raise DataError(
            f"split {root} has pictures, but no labels: sort them into one folder for each class, or move it away"
        )
    if stray:
        raise DataError(f"{root / stray} lies outside of the class folders: move it into one, or away")
    paths, labels = [], []  # one array for each class: a million names are a tenth of the size in Arrow
    for label, class_name in enumerate(class_names):
        nested, files = _entries(root / class_name)
        if nested:
            raise DataError(
                f"folder {root / class_name / nested[0]} lies inside a class folder, where only pictures may lie"
            )
        images = [file for file in files if _is_image(file)]
        if every_class and not images:
            found = f"only {listed(files, 3)}" if files else "nothing"
            raise DataError(f"class folder {root / class_name} holds no pictures ({found}): fill or delete it")
        require_text_names(root, class_name, images)
        paths.append(pa.array([os.path.join(root, class_name, file) for file in images], pa.string()))
        labels.append(np.full(len(images), label))
    count = sum(map(len, paths))
    if not count:
        raise DataError(f"folder {root} holds no pictures")
    names = ["bytes", "path"]
    images = pa.StructArray.from_arrays([pa.nulls(count, pa.binary()), pa.concat_arrays(paths)], names=names)
    return _labelled(images, np.concatenate(labels), class_names)


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
        problem = f"several columns of pictures ({listed(candidates)})" if candidates else "no column of pictures"
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
        metadata = _metadata_file(path) if path.is_dir() else None
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
        raise DataError(
            f"column {image_column!r} of {place} holds no pictures, but {features[image_column]}"
        ) from error
    if isinstance(split, datasets.Dataset):
        require_text_column(pc.struct_field(split.data.table.column(image_column), "path"), "path", place)
    return split
