"""A compiler that is killed must not be in the way of the next start. Real compilations, of one small function."""

import atexit
import os
import subprocess
import sys
from pathlib import Path

import pytest
from torch._inductor.exc import InductorError
from torch._inductor.runtime.cache_dir_utils import default_cache_dir

from training.system.compiler_cache import NAME, distrust_compiler_cache, name_compiler_cache, use_compiler_cache

ROOT = Path(__file__).parents[3]
COMPILING = """
import os, signal, sys
from pathlib import Path
import torch
from training.system.compiler_cache import distrust_compiler_cache, name_compiler_cache, use_compiler_cache

run_folder = Path(sys.argv[1])
if "trusting" not in sys.argv:
    distrust_compiler_cache(run_folder)
use_compiler_cache(run_folder, 0)
try:
    print(torch.compile(lambda x: torch.sin(x) + 1)(torch.zeros(8)).sum().item(), flush=True)
except RuntimeError as error:
    name_compiler_cache(error)
    raise
if "killed" in sys.argv:
    for library in run_folder.rglob("*.so"):  # as a linker leaves it that is killed with its run
        library.write_bytes(b"")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def compiling(run_folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", COMPILING, run_folder, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.only_thorough
@pytest.mark.fault("37 kill while compiling")
def test_code_that_a_kill_cut_short_is_not_used(tmp_path):
    assert compiling(tmp_path, "killed").returncode == -9
    broken = compiling(tmp_path, "trusting")
    assert broken.returncode == 1  # the witness: Inductor itself does not notice
    assert f"remove {tmp_path / NAME} and start again" in broken.stderr
    (tmp_path / NAME / ".in-use-0").touch()  # that start ended in order
    whole = compiling(tmp_path)
    assert (whole.returncode, whole.stdout) == (0, "8.0\n"), whole.stderr
    libraries = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.so")}
    assert libraries and compiling(tmp_path).stdout == "8.0\n"
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.so")} == libraries  # used again
    assert [path.name for path in tmp_path.iterdir()] == [NAME]


@pytest.mark.parametrize("killed", [True, False])
def test_code_is_kept_unless_a_process_was_killed(killed, tmp_path):
    (tmp_path / NAME).mkdir()
    (tmp_path / NAME / "library.so").touch()
    (tmp_path / f"{NAME}-left-over").mkdir()
    if killed:
        (tmp_path / NAME / ".in-use-3").touch()
    distrust_compiler_cache(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ([] if killed else [NAME])


def test_a_folder_that_the_user_has_named_is_used_and_left_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "mine")
    use_compiler_cache(tmp_path, 0)
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "mine"
    assert list(tmp_path.iterdir()) == []


def test_the_usual_folder_that_torch_itself_has_named_is_not_the_users(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", default_cache_dir())
    monkeypatch.setattr(atexit, "register", lambda *args, **kwargs: None)
    use_compiler_cache(tmp_path, 0)
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / NAME)
    assert [path.name for path in (tmp_path / NAME).iterdir()] == [".in-use-0"]


def test_only_errors_of_the_compiler_name_its_folder():
    error, other = InductorError(OSError("file too short"), None), RuntimeError("CUDA out of memory")
    for failure in (error, other):
        name_compiler_cache(failure)
    assert "was killed while it compiled, remove" in error.__notes__[0]
    assert not hasattr(other, "__notes__")


def test_a_run_that_never_compiled_has_nothing_to_distrust(tmp_path):
    distrust_compiler_cache(tmp_path)
    assert list(tmp_path.iterdir()) == []
