import platform
import subprocess
import sys

import pytest

# A step's activations, three times the largest block that glibc keeps by itself, allocated and freed again and again.
PAGE_FAULTS = """
import resource, sys
import torch
from training.system.memory import keep_freed_memory

if sys.argv[1] == "keep":
    assert keep_freed_memory()
for turn in range(20):
    if turn == 10:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.zeros(24 * 2**20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(mode: str) -> int:
    result = subprocess.run(
        [sys.executable, "-c", PAGE_FAULTS, mode], capture_output=True, text=True, check=True, timeout=120
    )
    return int(result.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_freed_memory_is_used_again() -> None:
    # 96 MB are 24,576 pages of 4 KB, and with huge pages still 48.
    assert page_faults("leave") >= 10 * 48
    assert page_faults("keep") < 48
