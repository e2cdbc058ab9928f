import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from training.system.interruption import is_orphan

ROOT = Path(__file__).parents[3]
WAITING = """
import sys, time
from training.system.interruption import Interruption

interruption = Interruption()
print("ready", flush=True)
while not interruption:
    time.sleep(0.01)
print(interruption.sentence(7, "runs/one"), flush=True)
if "once" not in sys.argv:
    time.sleep(60)
"""


def waiting(*arguments: str) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", WAITING, *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_is_noted_and_ends_nothing(number):
    process = waiting("once")
    process.send_signal(number)
    output, errors = process.communicate(timeout=60)
    assert output == (f"stopped by {number.name} after step 7; runs/one is saved, and the same command resumes it\n")
    assert (process.returncode, errors) == (0, "")


def test_a_second_ctrl_c_ends_the_process():
    process = waiting()
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline().startswith("stopped by SIGINT")  # two signals at once would be one
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "KeyboardInterrupt" in errors


# The launcher


def launched(child: list[str], **environment: str) -> tuple[subprocess.Popen, psutil.Process]:
    """A parent that does nothing but wait for its child, and the child."""
    parent = subprocess.Popen(
        [sys.executable, "-c", "import subprocess, sys; sys.exit(subprocess.call(sys.argv[1:]))", *child],
        cwd=ROOT,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not (children := psutil.Process(parent.pid).children()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return parent, children[0]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere no process is told of its parent's end")
@pytest.mark.fault("36 launcher killed while its child imports")
@pytest.mark.parametrize("variable", ["TORCHELASTIC_RUN_ID", "ACCELERATE_DYNAMO_USE_FULLGRAPH"])
def test_a_process_that_still_imports_ends_with_its_launcher(variable):
    parent, child = launched([sys.executable, "train.py", "--help"], **{variable: "False"})
    deadline = time.monotonic() + 60
    while not any("libtorch" in library.path for library in child.memory_maps()):  # it imports torch
        assert time.monotonic() < deadline
        time.sleep(0.01)
    parent.kill()
    output, _ = parent.communicate()
    _, alive = psutil.wait_procs([child], timeout=30)  # or it would print its help
    assert all(process.status() == psutil.STATUS_ZOMBIE for process in alive)
    assert output == ""


def test_without_a_launcher_a_run_outlives_the_shell_that_started_it():
    """As under nohup, also where the shell has set Accelerate's precision."""
    shell = f"{sys.executable} -c '{WAITING}' once 2>/dev/null & echo $!; exec sleep 60"
    parent, _ = launched(["sh", "-c", shell], ACCELERATE_MIXED_PRECISION="bf16")
    run = psutil.Process(int(parent.stdout.readline()))
    assert parent.stdout.readline() == "ready\n"
    for ancestor in [*psutil.Process(parent.pid).children(), parent]:
        ancestor.kill()
    assert run not in psutil.wait_procs([run], timeout=1)[0]
    run.send_signal(signal.SIGTERM)
    assert parent.communicate(timeout=60)[0].startswith("stopped by SIGTERM after step 7")


@pytest.mark.parametrize(
    ("ancestors", "orphan"),
    [
        ({40: ("/usr/bin/python3.12", 7), 7: ("bash", 1), 1: ("/sbin/init", 0)}, False),
        ({40: ("/opt/venv/bin/torchrun", 1), 1: ("/sbin/init", 0)}, False),
        ({40: ("bash", 39), 39: ("python", 1), 1: ("tini", 0)}, False),  # torchrun --no-python wrapper.sh
        ({1: ("python3", 0)}, False),  # the launcher is its container's first process
        ({40: ("/sbin/docker-init", 0)}, False),  # what started it is out of sight
        ({40: ("bash", 39)}, False),  # ended meanwhile
        ({1: ("/sbin/init", 0)}, True),
        ({40: ("/lib/systemd/systemd", 1), 1: ("/sbin/init", 0)}, True),  # systemd --user takes orphans too
    ],
)
def test_an_orphan_has_no_launcher_above_it(ancestors, orphan, tmp_path):
    for pid, (command, parent) in ancestors.items():
        (tmp_path / str(pid)).mkdir()
        (tmp_path / str(pid) / "cmdline").write_bytes(command.encode() + b"\0--option\0")
        (tmp_path / str(pid) / "stat").write_text(f"{pid} (a) name) S {parent} 1 1 0 -1")
    assert is_orphan(next(iter(ancestors)), tmp_path) == orphan
