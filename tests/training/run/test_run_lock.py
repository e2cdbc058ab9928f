import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from training.run.run_lock import RunFolderInUse, RunLock

HOLDER = """
import os, sys, time
from pathlib import Path
from training.run.run_lock import RunLock

lock = RunLock(Path(sys.argv[1]))
if os.fork() == 0:  # a loader worker, which outlives its run
    time.sleep(60)
    os._exit(0)
print("held", flush=True)
time.sleep(60)
"""


def test_a_folder_is_held_by_a_process_until_it_is_killed(tmp_path):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, tmp_path],
        cwd=Path(__file__).parents[3],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(RunFolderInUse, match=rf"is in use by process {holder.pid} on \S+: wait for it, or choose"):
            RunLock(tmp_path)
        holder.kill()
        holder.wait()
        RunLock(tmp_path)
    finally:
        os.killpg(holder.pid, signal.SIGKILL)


@pytest.mark.parametrize("text", ["", "{}", "not JSON", '{"pid": 1, "host": "gone"}'])
def test_a_file_that_nobody_holds_is_taken_over(tmp_path, text):
    (tmp_path / ".lock").write_text(text)
    RunLock(tmp_path)
    assert f'"pid": {os.getpid()}' in (tmp_path / ".lock").read_text()
