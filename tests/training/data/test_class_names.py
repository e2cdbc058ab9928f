"""Class-name files as editors, spreadsheets and other systems write them, read alike by all three commands."""

import os
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest

import convert
from training.data import sources
from training.data.class_names import read_class_names
from training.errors import DataError

ROOT = Path(__file__).parents[3]


@pytest.fixture
def file(tmp_path) -> Path:
    return tmp_path / "names.txt"


def refused(path: Path | str) -> str:
    with pytest.raises(DataError) as error:
        read_class_names(path)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    "data",
    [
        b"ant\nbee\ncat\n",
        b"ant\nbee\ncat",
        b"\xef\xbb\xbfant\nbee\ncat\n",  # Notepad, Excel
        b"\xef\xbb\xbfant\r\nbee\r\ncat\r\n\r\n",
        b"ant\rbee\rcat\r",
        b" ant\nbee \t\ncat\n \n\n\t\n",
    ],
)
def test_same_names_however_the_file_was_saved(file, data):
    file.write_bytes(data)
    assert read_class_names(file) == read_class_names(str(file)) == ["ant", "bee", "cat"]


def test_names_keep_their_letters(file):
    decomposed = unicodedata.normalize("NFD", "naïve")
    names = [
        "café",
        decomposed,
        "Ant",
        "ant",
        "大 熊猫",
        "1",
        "thin\u2009space",
        "two\tcolumns",
        "x²",
        "x2",
        "👩\u200d🚒",
    ]
    file.write_text("\n".join(names), encoding="utf-8")
    assert read_class_names(file) == names


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "class_names {} is empty: write one name per line"),
        (b"\xef\xbb\xbf\n\n", "class_names {} is empty: write one name per line"),
        (b"\nant\n", "line 1 of {} must be the name of a class, and is empty"),
        (b"ant\r\n \r\nbee", "line 2 of {} must be the name of a class, and is empty"),
        (b"ant\nbee\n ant\n", "line 3 of {} must be the name of another class, got 'ant' as in line 1"),
        (
            "caf\u00e9\nbee\ncafe\u0301\n".encode(),
            "line 3 of {} must be the name of another class, got 'cafe\u0301' as in line 1",
        ),
        (b"ant\n\x1a", "line 2 of {} holds '\\x1a', which no class name can: delete it"),
        (b"a\0n\0t\0", "line 1 of {} holds '\\x00', which no class name can: delete it"),
        (b"ant\n\xef\xbb\xbfbee", "line 2 of {} holds '\\ufeff', which no class name can: delete it"),
        ("ant\nbee\u2028cat".encode(), "line 2 of {} holds '\\u2028', which no class name can: delete it"),
        (
            "ant\r\ncafé".encode("latin-1"),
            "class_names {} cannot be read: byte 0xe9 in line 2 is not UTF-8; save the file in that encoding",
        ),
        (
            "\ufeffant\n".encode("utf-16-le"),
            "class_names {} cannot be read: byte 0xff in line 1 is not UTF-8; save the file in that encoding",
        ),
    ],
)
def test_names_that_cannot_be_meant_are_refused_with_their_line(file, data, sentence):
    file.write_bytes(data)
    assert refused(file) == sentence.format(file)


def test_what_is_no_readable_file_is_refused(tmp_path):
    assert refused(tmp_path) == f"class_names {tmp_path} cannot be read: it is a folder"
    assert refused("") == "class_names . cannot be read: it is a folder"
    assert refused("missing.txt") == "class_names missing.txt cannot be read: No such file or directory"
    assert "File name too long" in refused("x" * 300)
    (tmp_path / "loop").symlink_to("loop")
    assert "symbolic links" in refused(tmp_path / "loop")
    os.mkfifo(tmp_path / "pipe")  # nobody writes to it: opened, it would wait for ever
    assert refused(tmp_path / "pipe").endswith("cannot be read: it is not a regular file; save the names to one")
    assert "it is not a regular file" in refused("/dev/zero")
    assert "/proc/self/mem cannot be read: Input/output error" in refused("/proc/self/mem")  # by root neither


def test_many_names_take_no_longer_than_their_number(file):
    """Searching the list for each name takes minutes."""
    names = [f"class {index}" for index in range(200_000)]
    file.write_text("\n".join(names))
    assert read_class_names(file) == names


def test_all_commands_have_this_reader():
    """eval.py and train.py read data through `load_splits`."""
    assert convert.read_class_names is sources.read_class_names is read_class_names


def test_reader_needs_neither_torch_nor_datasets():
    """convert.py has it too, and is used where `datasets` is not installed."""
    code = "import sys, training.data.class_names; print(*{'torch', 'datasets', 'numpy', 'pyarrow'} & {*sys.modules})"
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    assert process.stdout == "\n"
