"""What a dataset's name stands for: files in one of several layouts, a dataset of the Hub, or the digits."""

import io
import json
import os
import re
import tarfile
from dataclasses import dataclass, field
from pathlib import Path

import datasets
import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from training.data.class_folders import FoundSplits, labeled_split, read_class_folders
from training.data.folder_listing import count_images, find_class_folders, list_folder
from training.data.folder_splits import read_folder
from training.data.hub_datasets import LOADING_ERRORS, is_hub_id, load_hub_dataset, one_line
from training.errors import DataError

# A file of one of these names takes the place of the folder names in the imagefolder format of `datasets`.
METADATA_NAMES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")


def read_splits(
    dataset: str,
    *,
    name: str | None,
    train_split: str,
    validation_split: str | None,
    label_column: str | None,
    streaming: bool,
) -> FoundSplits:
    """The splits of a dataset, columns and labels as they are; arguments as for `training.data.sources.load_splits`.

    Raises:
        DataError: the dataset is missing or damaged, or it is not clear which of its files are meant.
    """
    if not dataset.strip():
        raise DataError(f"a dataset must have a name, got {dataset!r}")
    if dataset == "digits":
        _refuse_streaming(dataset, streaming)
        return FoundSplits({"train": _digits()})
    path = Path(dataset).expanduser()
    if not path.exists():
        if address := re.match(r"(?:hf:/|https?://[^/]+)/datasets/([^/]+/[^/]+)", dataset):
            raise DataError(f"{dataset} is an address: give the dataset's id alone, {address[1]}")
        if not is_hub_id(dataset):
            raise DataError(f"folder {dataset} does not exist")
        return FoundSplits(load_hub_dataset(dataset, name=name, streaming=streaming))
    if path.is_file() and path.suffix == ".parquet":
        return FoundSplits(_load(dataset, "parquet", data_files={train_split: str(path)}, streaming=streaming))
    if path.is_file():
        raise DataError(
            f"{dataset} is a file, but neither a folder of images nor a .parquet file: unpack it if it is an archive"
        )
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        _refuse_streaming(dataset, streaming)
        return FoundSplits(_saved_to_disk(path, train_split))
    found = _DataFiles.of(path)
    chosen = next((files[0] for files in (found.parquet, found.tar, found.metadata) if files), None)
    if chosen is None:
        _refuse_streaming(dataset, streaming)
        return read_class_folders(path, train_split, validation_split)
    is_metadata = not (found.parquet or found.tar)
    if not (is_metadata and label_column) and (classes := find_class_folders(path)):
        raise DataError(_two_datasets(path, chosen, classes, is_metadata))
    if found.parquet:
        _require_same_features(found.parquet)
    files = found.parquet or found.tar or found.metadata
    try:
        read, notes = read_folder(path, files, is_metadata=is_metadata, name=name, streaming=streaming)
    except DataError:
        raise
    except LOADING_ERRORS as error:
        problem = f"dataset {dataset} cannot be loaded: {one_line(error)}"
        raise DataError(f"{chosen} decides how {dataset} is read, but {problem}") from error
    if found.tar and not found.parquet and streaming:
        read = _with_tar_sizes(read, path)
    return FoundSplits(read, notes + (_unlisted_images(path, read) if is_metadata and not streaming else []))


@dataclass
class _DataFiles:
    """Files in the folder itself or in one of its folders that decide how it is read, sorted."""

    parquet: list[Path] = field(default_factory=list)
    tar: list[Path] = field(default_factory=list)
    metadata: list[Path] = field(default_factory=list)

    @classmethod
    def of(cls, root: Path) -> "_DataFiles":
        found = cls()
        folders, files, _ = list_folder(root)
        for folder, names in [(root, files), *((root / name, list_folder(root / name)[1]) for name in folders)]:
            for name in names:
                if name in METADATA_NAMES:
                    found.metadata.append(folder / name)
                elif name.endswith(".parquet"):
                    found.parquet.append(folder / name)
                elif name.endswith(".tar"):
                    found.tar.append(folder / name)
        return found


def _refuse_streaming(dataset: str, streaming: bool) -> None:
    if streaming:
        raise DataError(f"{dataset} is read in place anyway: use it without streaming")


def _two_datasets(root: Path, chosen: Path, classes: list[Path], is_metadata: bool) -> str:
    """The sentence on a folder that can be read in two ways."""
    folders = " and ".join(str(folder.relative_to(root)) for folder in classes)
    if is_metadata:
        return (
            f"{root} can be read in two ways: move {chosen} away to train on its class folders, such as {folders}, or "
            "choose the column of labels in that file with label_column"
        )
    return (
        f"{root} can be read in two ways: move {chosen} away to train on its class folders, such as {folders}, or "
        "those away to train on that file"
    )


def _load(
    dataset: str,
    path: str,
    *,
    streaming: bool,
    name: str | None = None,
    data_files: dict[str, str] | None = None,
) -> dict[str, datasets.Dataset | datasets.IterableDataset]:
    try:
        return datasets.load_dataset(path, name=name, data_files=data_files, streaming=streaming)
    except LOADING_ERRORS as error:
        raise DataError(f"dataset {dataset} cannot be loaded: {one_line(error)}") from error


def _saved_to_disk(path: Path, train_split: str) -> dict[str, datasets.Dataset]:
    """What `save_to_disk` wrote: a DatasetDict, or one Dataset, which is the training split."""
    try:
        saved = datasets.load_from_disk(path)
    except (*LOADING_ERRORS, KeyError, TypeError) as error:
        raise DataError(f"{path} was written by save_to_disk and cannot be read: {one_line(error)}") from error
    splits = dict(saved) if isinstance(saved, datasets.DatasetDict) else {train_split: saved}
    return {name: split.with_format(None) for name, split in splits.items()}


def _unlisted_images(root: Path, splits: dict[str, datasets.Dataset]) -> list[str]:
    """A note on images that lie beside a metadata file and are not listed in it."""
    paths = set()
    for split in splits.values():
        for name in (name for name, feature in split.features.items() if isinstance(feature, datasets.Image)):
            paths.update(pc.struct_field(split.data.table.column(name), "path").to_pylist())
    num_unlisted = count_images(root) - len(paths)
    return [f"left out: {num_unlisted:,} images that the metadata file does not list"] if num_unlisted > 0 else []


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
    return labeled_split(images, digits.target, [str(digit) for digit in digits.target_names])


def _with_tar_sizes(splits: dict[str, datasets.IterableDataset], path: Path) -> dict[str, datasets.IterableDataset]:
    """WebDataset's tar files do not state how many samples they hold; the headers in them do. Nothing is unpacked."""
    for split, files in datasets.load_dataset_builder(os.path.abspath(path)).config.data_files.items():
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


def metadata_file(root: Path) -> Path | None:
    """The first metadata file in the folder itself or in one of its folders."""
    return next(iter(_DataFiles.of(root).metadata), None)
