"""What a dataset is, as hashes: a run that resumes must find the data it began with."""

import hashlib
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

CHUNK = 10_000  # names in memory at once, of what may be millions
STAT_THREADS = 16  # hide the latency of a network file system
FILE_SIZES = "_file_sizes"  # ends the name of a hash that versions before it did not write


def data_fingerprint(split: datasets.Dataset, image_column: str, label_column: str) -> str:
    """Hash of a split's order, labels, and files' names or encoded sizes. No image is read, and no file looked at.

    Where the data lie does not count: a folder that was moved or copied is the same data. `file_sizes` adds what this
    hash does not notice of files. An embedded image that is replaced by another of the same size goes unnoticed.

    Args:
        split: with images as `Image(decode=False)`: structs of `bytes` and `path`.

    Returns:
        64 hexadecimal digits.
    """
    sizes, paths = _sizes_and_paths(split, image_column)
    labels = _selected(split, split.data.table.column(label_column))
    digest = hashlib.sha256()
    digest.update(np.asarray(labels.to_numpy(), dtype=np.int64).tobytes())
    digest.update(np.asarray(sizes.to_numpy(), dtype=np.int64).tobytes())
    separator = ""
    for start in range(0, len(paths), CHUNK):
        # class/file, without the folders above: those say where the data lie.
        names = ["/".join(path.split("/")[-2:]) for path in paths.slice(start, CHUNK).to_pylist()]
        digest.update((separator + "\0".join(names)).encode())
        separator = "\0"
    return digest.hexdigest()


def file_sizes(split: datasets.Dataset, image_column: str) -> str | None:
    """Hash of the sizes of the local files that a split reads, in its order: another image under the same name shows.

    Times of modification do not count, because copying changes them.

    Returns:
        64 hexadecimal digits; None for a split that reads no local file.
    """
    embedded, paths = _sizes_and_paths(split, image_column)
    paths = pc.if_else(pc.less(embedded, 0), paths, "")
    digest, any_file = hashlib.sha256(), False
    with ThreadPoolExecutor(STAT_THREADS) as pool:
        for sizes in pool.map(lambda start: _sizes_of_files(paths.slice(start, CHUNK)), range(0, len(paths), CHUNK)):
            digest.update(sizes.tobytes())
            any_file = any_file or bool((sizes >= 0).any())
    return digest.hexdigest() if any_file else None


def is_other(before: Mapping[str, Any], name: str, value: Any) -> bool:
    """Whether `before` says something else; nothing about file sizes is not something else."""
    return before.get(name) != value and not (name.endswith(FILE_SIZES) and name not in before)


def _sizes_of_files(paths: pa.ChunkedArray) -> np.ndarray:
    """int64 (len(paths),), -1 for what is no local file: reading it says why."""
    sizes = np.full(len(paths), -1, dtype=np.int64)
    for index, path in enumerate(paths.to_pylist()):
        if path and "://" not in path:
            try:
                sizes[index] = os.stat(path).st_size
            except OSError:
                continue
    return sizes


def _sizes_and_paths(split: datasets.Dataset, image_column: str) -> tuple[pa.ChunkedArray, pa.ChunkedArray]:
    """(bytes of each embedded image, -1 for the others; paths, empty where there is none)."""
    images = split.data.table.column(image_column)
    sizes = pc.fill_null(pc.binary_length(pc.struct_field(images, "bytes")), -1)
    paths = pc.fill_null(pc.struct_field(images, "path"), "")
    return _selected(split, sizes), _selected(split, paths)


def _selected(split: datasets.Dataset, column: pa.ChunkedArray) -> pa.ChunkedArray:
    """The rows of a `select`ed split; the images themselves would be copied by `take`."""
    return column if split._indices is None else column.take(split._indices.column(0))
