"""Tests run offline, on one thread, and leave no trace in the developer's caches.

torch and the Hugging Face libraries read these variables once, at import, so they are set here and not in a fixture;
subprocesses inherit them.
"""

import os
import shutil
import tempfile

import pytest

HF_HOME = tempfile.mkdtemp(prefix="modeling-tinynet-tests-")

# A developer's own settings (a cache folder, a mirror, a token) must not reach a test.
for name in [name for name in os.environ if name.startswith("HF_")]:
    del os.environ[name]

os.environ["HF_HOME"] = HF_HOME
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["HF_EVALUATE_OFFLINE"] = "1"
# One thread: the order of floating-point sums does not depend on the machine, and ranks do not fight over cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_unconfigure(config: pytest.Config) -> None:
    shutil.rmtree(HF_HOME, ignore_errors=True)
