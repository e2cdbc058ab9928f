"""Several machines: all of them must be in one folder, with one recipe, on one dataset."""

import json
import os
import re
from pathlib import Path

import pytest

from tests import launcher
from training.run.same_run import check_same_run

ROOT = Path(__file__).parents[3]
pytestmark = pytest.mark.fault("34 several nodes without a shared folder")


@pytest.fixture(scope="module")
def errors(tmp_path_factory) -> list[dict[str, str | None]]:
    """What each of two ranks met in each case."""
    folder = tmp_path_factory.mktemp("machines")
    script = Path(__file__).with_name("same_run_two_ranks.py")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    launcher.run([script, folder], env=environment, num_ranks=2).check_returncode()
    assert not list(folder.rglob(".seen-*"))  # nothing is left behind
    return [json.loads((folder / f"errors-{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize(
    ("case", "sentence"),
    [
        ("shared", None),
        ("shared, from one checkpoint", None),
        ("data that lie elsewhere", None),
        (
            "its own folder",
            r"rank 1 on \S+ does not see what rank 0 on \S+ has written to \S+/machine-0/runs/run; it looks in "
            r"\S+/machine-1/runs/run: a run on several machines needs a folder that all of them share \(NFS, Lustre, "
            r"\.\.\.\), as --output_dir",
        ),
        ("ranks swapped", r"rank 1 .*/machine-1/runs/moved, and has its own step-000013: .*"),
        ("checkpoint not there", r"rank 1 on \S+ does not see the checkpoint one/step-000002 that rank 0 .*"),
        ("another checkpoint", r"rank 1 on \S+ does not see the checkpoint two/step-000002 that rank 0 .*"),
        (
            "another recipe",
            r"rank 1 on \S+ has lr 1\.1, rank 0 on \S+ 0\.1: start all machines with the same command.*",
        ),
        ("other classes", r"rank 1 on \S+ has other classes than rank 0 on \S+: start .*"),
        ("not writable", r"\S+/no/such/folder cannot be written: .*No such file.*"),
    ],
)
def test_all_ranks_know_when_one_of_them_is_not_in_the_same_run(errors, case, sentence):
    assert errors[0][case] == errors[1][case]
    assert errors[0][case] is None if sentence is None else re.fullmatch(sentence, errors[0][case])


def test_one_process_is_asked_nothing(tmp_path):
    check_same_run(tmp_path / "not made", None, {})
    assert not (tmp_path / "not made").exists()
