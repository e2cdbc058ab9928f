import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WAITING = """
import sys, time
from training.interruption import Interruption

interruption = Interruption()
print("ready", flush=True)
for _ in range(2000):
    time.sleep(0.01)
    if interruption and "once" in sys.argv:
        print(interruption.sentence(7, "runs/one"))
        break
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
    output, errors = process.communicate(timeout=20)
    assert output == (
        f"stopped by {number.name} after step 7; runs/one is saved, and the same command goes on from there\n"
    )
    assert (process.returncode, errors) == (0, "")


def test_a_second_ctrl_c_ends_the_process():
    process = waiting()
    process.send_signal(signal.SIGINT)
    time.sleep(0.2)  # two signals at once would be one
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert process.returncode != 0
    assert "KeyboardInterrupt" in errors
