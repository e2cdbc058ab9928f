"""Tests run offline, on one thread, and leave no trace in the developer's caches.

torch and the Hugging Face libraries read these variables once, at import, so they are set here and not in a fixture;
subprocesses inherit them.
"""

import json
import multiprocessing
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

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
os.environ["OMP_NUM_THREADS"] = "1"

from tests import launcher  # noqa: E402  which keeps the environment as it is now


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("faults", "tests marked fault: what a run must survive")
    group.addoption("--thorough", action="store_true", help="as many tries as `make faults` makes")
    group.addoption("--faults_table", type=Path, metavar="FILE", help="write case, tried and passed as JSON")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--thorough"):
        items[:] = [item for item in items if not item.get_closest_marker("only_thorough")]


@pytest.fixture
def thorough(request: pytest.FixtureRequest) -> bool:
    return request.config.getoption("--thorough")


@pytest.fixture
def tried(request: pytest.FixtureRequest) -> Callable[[int], None]:
    """Says how many tries a test marked fault makes; one unless it is called."""
    return lambda number: request.node.user_properties.append(("tried", number))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo) -> Iterator[None]:
    mark = item.get_closest_marker("fault")
    if mark and call.when == "setup":
        item.user_properties.append(("fault", mark.args[0]))
    return (yield)


class FaultsTable:
    """Adds up the tests marked fault, whichever process ran them."""

    def __init__(self) -> None:
        self.rows: dict[str, list[int]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        properties = dict(report.user_properties)
        if "fault" in properties and (report.when == "call" or report.skipped or report.failed):
            row = self.rows.setdefault(properties["fault"], [0, 0])
            row[0] += 0 if report.skipped else properties.get("tried", 1)
            row[1] += properties.get("tried", 1) if report.passed else 0

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        from training.system.environment import environment

        cases = [
            {"case": case, "tried": tried, "passed": passed} for case, (tried, passed) in sorted(self.rows.items())
        ]
        text = json.dumps({"environment": environment(), "cases": cases}, indent=2)
        session.config.getoption("--faults_table").write_text(f"{text}\n")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--faults_table") and not hasattr(config, "workerinput"):
        config.pluginmanager.register(FaultsTable())


def pytest_unconfigure(config: pytest.Config) -> None:
    launcher.stop_servers()
    shutil.rmtree(HF_HOME, ignore_errors=True)
    # A test of an error in a worker leaves the others, and Python waits for them for ever: see end_workers.
    for worker in multiprocessing.active_children():
        worker.kill()
