"""Names of files and classes as Unicode: what is not text is refused, and what reads alike is the same name."""

import os
import sys
import unicodedata
from collections.abc import Iterable

import pyarrow as pa

from training.errors import DataError


def require_text(name: str, what: str) -> None:
    """Refuses a name that no UTF-8 file can hold. Python reads the bytes of such file names as lone surrogates.

    Args:
        what: what has this name, such as `a file in photos/ant`.

    Raises:
        DataError: with the name, its surrogates escaped.
    """
    try:
        name.encode()
    except UnicodeEncodeError:
        encoding = sys.getfilesystemencoding()
        if encoding != "utf-8":
            raise DataError(
                f"the name {name!r} of {what} cannot be read: Python takes file names for {encoding} here; set "
                "PYTHONUTF8=1, or LC_ALL to a UTF-8 locale"
            ) from None
        raise DataError(
            f"the name {name!r} of {what} is not UTF-8: rename it (convmv renames all of a folder: "
            "convmv -r -f latin1 -t utf8 --notest FOLDER)"
        ) from None


def require_text_column(column: pa.Array | pa.ChunkedArray, what: str, place: str) -> None:
    """Refuses a column of strings with bytes that are not UTF-8, which Arrow and Parquet store unseen.

    Args:
        what: what the column holds, such as `label`.
        place: what has the column.

    Raises:
        DataError: there is such a value; the message quotes the first one.
    """
    try:
        column.validate(full=True)
    except pa.ArrowInvalid:
        for index, value in enumerate(column.cast(pa.large_binary()).to_pylist()):
            if value is not None and value.decode(errors="replace").encode() != value:
                raise DataError(
                    f"{what} {value!r} of sample {index} of {place} is not UTF-8: write it as text"
                ) from None
        raise


def require_text_names(root: str | os.PathLike[str], class_name: str, files: Iterable[str]) -> None:
    """`require_text` for a class folder below `root` and the files in it."""
    require_text(class_name, f"a class folder in {root}")
    place = f"a file in {os.path.join(root, class_name)}"
    for file in files:
        require_text(file, place)


def unicode_problem(error: UnicodeError) -> str:
    """The text or the bytes that could not be converted, which the error itself does not show."""
    if not isinstance(error, UnicodeDecodeError | UnicodeEncodeError):
        return str(error)
    shown = error.object if len(error.object) <= 60 else error.object[max(0, error.start - 20) : error.end + 20]
    return f"{shown!r} is not UTF-8: rename the file, or rewrite the text"


def composed(name: str) -> str:
    """In Unicode's NFC: macOS often stores an accent apart from its letter (NFD), and both read alike."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def same_text(names: Iterable[str]) -> tuple[str, str] | None:
    """Two of the names that differ only in their Unicode normalization; None if there are no such two."""
    first: dict[str, str] = {}
    for name in names:
        other = first.setdefault(composed(name), name)
        if other != name:
            return other, name
    return None
