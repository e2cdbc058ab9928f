"""A folder's name leads to a whole folder at every moment, and what a kill leaves is cleared away."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from training.system import replace_folder as module
from training.system.replace_folder import remove_leftovers, replace_folder, temporary_name

ROOT = Path(__file__).parents[3]


def make_folder(path: Path, content: str) -> Path:
    path.mkdir()
    (path / "file").write_text(content)
    return path


@pytest.fixture(params=["exchanged", "in two steps"])
def way(request, monkeypatch):
    if request.param == "in two steps":
        monkeypatch.setattr(module, "_exchange", lambda one, other: False)
    return request.param


def test_a_folder_is_replaced_and_nothing_is_left(way, tmp_path):
    folder = tmp_path / "best"
    for content in ("one", "two"):
        replace_folder(make_folder(temporary_name(folder), content), folder)
        assert (folder / "file").read_text() == content
        assert [path.name for path in tmp_path.iterdir()] == ["best"]


def test_there_is_no_moment_without_the_folder(tmp_path):
    folder = make_folder(tmp_path / "best", "0")
    done, missing = threading.Event(), []

    def watch() -> None:
        while not done.is_set():
            if not folder.exists():
                missing.append(True)

    watcher = threading.Thread(target=watch)
    watcher.start()
    for number in range(300):
        replace_folder(make_folder(temporary_name(folder), str(number)), folder)
    done.set()
    watcher.join()
    assert not missing


# Kills the process at the n-th rename or exchange that it makes, before or after it.
KILLED = """
import os, sys
from pathlib import Path
from training.system import replace_folder as module
folder, fatal, after, two_steps = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "after", sys.argv[4] == "two"
calls = 0
def fatal_at(function):
    def call(*arguments):
        global calls
        calls += 1
        if calls == fatal and not after:
            os._exit(9)
        result = function(*arguments)
        if calls == fatal:
            os._exit(9)
        return result
    return call
os.replace = fatal_at(os.replace)
module._exchange = (lambda one, other: False) if two_steps else fatal_at(module._exchange)
temporary = module.temporary_name(folder)
temporary.mkdir()
(temporary / "file").write_text("new")
module.replace_folder(temporary, folder)
"""


@pytest.mark.parametrize(("steps", "fatal"), [("one", 1), ("two", 1), ("two", 2)])
@pytest.mark.parametrize("moment", ["before", "after"])
def test_after_a_kill_the_folder_is_the_old_one_or_the_new_one(steps, fatal, moment, tmp_path):
    folder = make_folder(tmp_path / "best", "old")
    command = [sys.executable, "-c", KILLED, folder, str(fatal), moment, steps]
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == 9
    if steps == "one":
        assert folder.exists()
    remove_leftovers(folder)
    is_new = moment == "after" and fatal == (1 if steps == "one" else 2)
    assert (folder / "file").read_text() == ("new" if is_new else "old")
    assert [path.name for path in tmp_path.iterdir()] == ["best"]


def test_an_unfinished_folder_is_never_taken_for_the_old_one(tmp_path):
    make_folder(temporary_name(tmp_path / "best"), "half of it")
    remove_leftovers(tmp_path / "best")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_move_leaves_the_old_folder(way, tmp_path):
    folder = make_folder(tmp_path / "best", "old")
    with pytest.raises(OSError, match="No such file"):
        replace_folder(temporary_name(folder), folder)  # never written
    assert (folder / "file").read_text() == "old"
    assert os.listdir(tmp_path) == ["best"]
