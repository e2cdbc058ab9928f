from collections.abc import Callable
from pathlib import Path

import pytest

from tests.training_jobs import trained


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Callable[..., Path]:
    """The folder of a run left alone, made once for each number of processes and arguments."""
    folders: dict[tuple, Path] = {}

    def run(processes: int, arguments: tuple) -> Path:
        key = (processes, arguments)
        if key not in folders:
            folder = tmp_path_factory.mktemp("undisturbed")
            trained(*arguments, processes=processes, folder=folder)
            folders[key] = folder / "runs" / "run"
        return folders[key]

    return run
