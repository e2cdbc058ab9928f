"""What a data set is, as one hash: a run that goes on must find the data it began with."""

import hashlib

import datasets
import numpy as np
import pyarrow.compute as pc

CHUNK = 10_000  # names in memory at once, of what may be millions


def data_fingerprint(split: datasets.Dataset, image_column: str, label_column: str) -> str:
    """Hash of a split's order, labels, and files' names or encoded sizes. No picture is read.

    Where the data lie does not count: a folder that was moved or copied is the same data. A picture that is replaced
    by another of the same name, or of the same size in Parquet, is not noticed.

    Args:
        split: with pictures as `Image(decode=False)`: structs of `bytes` and `path`.

    Returns:
        64 hexadecimal digits.
    """
    pictures = split.data.table.column(image_column)
    columns = {
        "labels": split.data.table.column(label_column),
        "sizes": pc.fill_null(pc.binary_length(pc.struct_field(pictures, "bytes")), -1),
        "paths": pc.fill_null(pc.struct_field(pictures, "path"), ""),
    }
    if split._indices is not None:  # `select`ed; the pictures themselves would be copied by `take`
        columns = {name: column.take(split._indices.column(0)) for name, column in columns.items()}
    digest = hashlib.sha256()
    digest.update(np.asarray(columns["labels"].to_numpy(), dtype=np.int64).tobytes())
    digest.update(np.asarray(columns["sizes"].to_numpy(), dtype=np.int64).tobytes())
    separator = ""
    for start in range(0, len(columns["paths"]), CHUNK):
        # class/file, without the folders above: those say where the data lie.
        paths = columns["paths"].slice(start, CHUNK).to_pylist()
        names = ["/".join(path.split("/")[-2:]) for path in paths]
        digest.update((separator + "\0".join(names)).encode())
        separator = "\0"
    return digest.hexdigest()
