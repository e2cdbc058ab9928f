"""Tests run offline, on one thread, and leave no trace in the developer's caches.

torch and the Hugging Face libraries read these variables once, at import, so they are set here and not in a fixture;
subprocesses inherit them.
"""

import json
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
os.environ.setdefault("OMP_NUM_THREADS", "1")


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


FAULTS = pytest.StashKey[dict[str, list[int]]]()


@pytest.fixture
def tried(request: pytest.FixtureRequest) -> Callable[[int], None]:
    """Says how many tries a test marked fault makes; one unless it is called."""
    return lambda number: request.node.user_properties.append(("tried", number))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo) -> Iterator[None]:
    report = yield
    mark = item.get_closest_marker("fault")
    if mark and (report.when == "call" or report.skipped):
        number = dict(item.user_properties).get("tried", 1)
        row = item.config.stash.setdefault(FAULTS, {}).setdefault(mark.args[0], [0, 0])
        row[0] += number if not report.skipped else 0
        row[1] += number if report.passed else 0
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    path = session.config.getoption("--faults_table")
    if path:
        from training.environment import environment

        rows = session.config.stash.get(FAULTS, {})
        cases = [{"case": case, "tried": tried, "passed": passed} for case, (tried, passed) in sorted(rows.items())]
        path.write_text(json.dumps({"environment": environment(), "cases": cases}, indent=2) + "\n")


def pytest_unconfigure(config: pytest.Config) -> None:
    shutil.rmtree(HF_HOME, ignore_errors=True)
