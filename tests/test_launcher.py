"""A forked run is to a test what a process of its own would be."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from tests import launcher


@pytest.mark.parametrize(
    ("code", "returncode", "errors"),
    [
        ("pass", 0, ""),
        ("import sys; sys.exit(75)", 75, ""),
        ("import sys; sys.exit('error: mine')", 1, "error: mine\n"),
        ("import os; os.kill(os.getpid(), 9)", -9, ""),
    ],
)
def test_it_ends_as_python_ends(code, returncode, errors):
    result = launcher.run(["-c", code])
    assert (result.returncode, result.stdout, result.stderr) == (returncode, "", errors)


def test_an_error_has_its_traceback():
    result = launcher.run(["-c", "1 / 0"])
    assert result.returncode == 1
    assert result.stderr.startswith("Traceback") and result.stderr.endswith("ZeroDivisionError: division by zero\n")


def test_arguments_folder_environment_and_paths_are_its_own(tmp_path):
    script = tmp_path / "folder" / "script.py"
    script.parent.mkdir()
    (script.parent / "beside.py").write_text("import atexit; atexit.register(print, 'at exit')")
    script.write_text(
        "import beside, elsewhere, os, sys\nprint(__name__, sys.argv[1:], os.getcwd(), os.environ['MINE'], __file__)\n"
        "print([name for name in sys.modules if name.partition('.')[0] in ('training', 'modeling_tinynet', 'train')])"
    )
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "elsewhere.py").touch()
    environment = os.environ | {"MINE": "1", "PYTHONPATH": str(tmp_path / "path")}
    result = launcher.run([script, 1, "two"], cwd=tmp_path, env=environment)
    assert result.stdout == f"__main__ ['1', 'two'] {tmp_path} 1 {script}\n[]\nat exit\n", result.stderr


def test_what_is_random_without_a_seed_differs_between_runs():
    """Or a run that depends on it would pass for one that can be repeated."""
    code = "import random, numpy, uuid; print(random.random(), numpy.random.random(), uuid.uuid4())"
    first, second = (launcher.run(["-c", code]).stdout.split() for _ in range(2))
    assert len(first) == 3 and not set(first) & set(second)


def test_with_another_hub_it_imports_the_hubs_libraries_itself(tmp_path):
    code = "import datasets, huggingface_hub.constants as hub; print(hub.HF_HOME, datasets.config.HF_CACHE_HOME)"
    for home in (tmp_path / "one", tmp_path / "two"):
        result = launcher.run(["-c", code], env=os.environ | {"HF_HOME": str(home)})
        assert result.stdout.split() == [str(home)] * 2, result.stderr


def test_what_python_reads_when_it_starts_is_refused():
    with pytest.raises(ValueError, match="PYTHONIOENCODING"):
        launcher.run(["-c", ""], env=os.environ | {"PYTHONIOENCODING": "ascii"})


def test_signals_reach_it():
    process = launcher.Run(["-c", "import time; print('ready', flush=True); time.sleep(60)"])
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == -signal.SIGTERM


def test_when_one_rank_fails_the_others_are_ended():
    code = "import os, sys, time; time.sleep(60 * int(os.environ['RANK'])); sys.exit(3)"
    started_at = time.monotonic()
    process = launcher.Run(["-c", code], num_ranks=2)
    assert process.wait(60) == 1
    assert time.monotonic() - started_at < 50


def test_ranks_end_with_their_keeper():
    process = launcher.Run(["-c", "import time; time.sleep(60)"], num_ranks=2)
    ranks = [psutil.Process(pid) for pid in process.ranks]
    process.kill()
    assert process.wait(60) == -signal.SIGKILL
    _, alive = psutil.wait_procs(ranks, timeout=30)
    assert all(rank.status() == psutil.STATUS_ZOMBIE for rank in alive)


def test_servers_end_although_a_forked_worker_holds_their_sockets():
    code = """
import os, time
from tests import launcher
launcher.run(["-c", ""])
worker = os.fork()
if worker == 0:
    time.sleep(100)
    os._exit(0)
try:
    wait = launcher._servers["process"].wait
    launcher._servers["process"].wait = lambda: wait(30)
    launcher.stop_servers()
finally:
    os.kill(worker, 9)
"""
    subprocess.run([sys.executable, "-c", code], cwd=launcher.ROOT, check=True, timeout=120)
