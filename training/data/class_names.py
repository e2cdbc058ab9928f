"""The file behind `--class_names`, read in one way for training, evaluation and conversion. Needs no other package."""

import re
import unicodedata
from pathlib import Path

from training.errors import DataError

LINE_END = re.compile(r"\r\n|\r|\n")  # str.splitlines also ends a line at U+2028 and others, which a name may hold
NOT_IN_A_NAME = ("Cc", "Zl", "Zp")  # control characters, line and paragraph separators: Unicode's categories
BYTE_ORDER_MARK = "\ufeff"


def read_class_names(path: str | Path) -> list[str]:
    """Class names from a text file in UTF-8, one per line, the one of class 0 in the first line.

    A byte order mark, spaces around a name, Windows' line ends and blank lines at the end are left out. The names
    themselves are returned as they are written.

    Raises:
        DataError: the file cannot be read or is not UTF-8, or a name is empty, repeated or holds a control character.
    """
    names = [line.strip() for line in LINE_END.split(_read_text(Path(path)))]
    while names and not names[-1]:
        names.pop()
    if not names:
        raise DataError(f"class_names {path} is empty: write one name per line")
    first_lines: dict[str, int] = {}
    for number, name in enumerate(names, start=1):
        if not name:
            raise DataError(f"line {number} of {path} must be the name of a class, and is empty")
        if wrong := [character for character in name if _is_invisible(character)]:
            raise DataError(f"line {number} of {path} holds {wrong[0]!a}, which no class name can: delete it")
        # The same letters can be written in two ways, é as one character or as two.
        first = first_lines.setdefault(unicodedata.normalize("NFC", name), number)
        if first != number:
            raise DataError(
                f"line {number} of {path} must be the name of another class, got {name!r} as in line {first}"
            )
    return names


def _read_text(path: Path) -> str:
    """
    Raises:
        DataError: it is not a regular file, cannot be read, or is not UTF-8.
    """
    try:
        if path.exists() and not path.is_file():
            # A pipe can be read once, and each rank and each resumed run reads the file anew.
            reason = "it is a folder" if path.is_dir() else "it is not a regular file; save the names to one"
            raise DataError(f"class_names {path} cannot be read: {reason}")
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"class_names {path} cannot be read: {error.strerror}") from error
    try:
        return data.decode("utf-8").removeprefix(BYTE_ORDER_MARK)
    except UnicodeDecodeError as error:
        line = len(LINE_END.split(data[: error.start].decode("latin-1")))
        raise DataError(
            f"class_names {path} cannot be read: byte 0x{data[error.start]:02x} in line {line} is not UTF-8; "
            "save the file in that encoding"
        ) from error


def _is_invisible(character: str) -> bool:
    if character == BYTE_ORDER_MARK:  # in the middle: where two files were joined
        return True
    return character != "\t" and unicodedata.category(character) in NOT_IN_A_NAME
