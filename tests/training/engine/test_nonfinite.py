"""The flags that an error names are those that the run needs."""

import re
import shlex

import pytest

from training.config.train_config import TrainConfig, parse_config
from training.engine.nonfinite import overflow, ways_on


def flags_of(sentence: str) -> list[str]:
    return re.findall(r"--\w+ \S+", sentence)


@pytest.fixture
def run_folder(tmp_path):
    """Saved at steps 999,999 and 1,000,000."""
    for name in ("step-999999", "step-1000000", ".rejected-step-1000001-size", ".tmp-step-2000000-1"):
        (tmp_path / "run" / "checkpoints" / name).mkdir(parents=True)
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("precision", "other"), [("no", []), ("bf16", ["--precision no"]), ("fp16", ["--precision bf16"])]
)
def test_the_newest_checkpoint_and_settings_that_differ_are_offered(precision, other, run_folder):
    config = TrainConfig(precision=precision, lr=0.1)
    newest = run_folder / "checkpoints" / "step-1000000"
    branch = [f"--resume {newest}", "--run_name run-2", "--lr 0.05", "--max_grad_norm 1", *other]
    assert flags_of(ways_on(config, run_folder, None, 4)) == ["--on_nonfinite skip:13", *branch]
    assert flags_of(ways_on(config, run_folder, None)) == branch
    parse_config([part for flag in branch for part in flag.split()])  # they are flags of train.py


def test_a_branch_gets_a_name_that_is_free_and_a_path_that_a_shell_reads(tmp_path):
    run_folder = tmp_path / "my runs" / "run"
    newest = run_folder / "checkpoints" / "step-000010"
    for folder in (newest, run_folder.with_name("run-2"), run_folder.with_name("run-3")):
        folder.mkdir(parents=True)
    words = shlex.split(ways_on(TrainConfig(), run_folder, None).partition("branch off with ")[2])
    assert words[:4] == ["--resume", str(newest), "--run_name", "run-4"]
    words = shlex.split(ways_on(TrainConfig(), tmp_path / "my run", newest).partition("branch off with ")[2])
    assert words[:4] == ["--resume", str(newest), "--run_name", "my run-2"]


def test_without_a_checkpoint_the_run_begins_anew(tmp_path):
    config = TrainConfig(lr=0.1, max_grad_norm=1.0)
    sentence = ways_on(config, tmp_path / "run", None, 1)
    assert flags_of(sentence) == ["--on_nonfinite skip:10", "--lr 0.05"]
    assert "nothing is saved yet" in sentence


def test_a_branch_without_a_checkpoint_of_its_own_branches_off_where_it_began(tmp_path):
    root = tmp_path / "root" / "checkpoints" / "step-000010"
    assert f"--resume {root} --run_name branch-2" in ways_on(TrainConfig(), tmp_path / "branch", root)


def test_an_overflow_is_told_with_its_scale_and_what_came_before():
    assert overflow(3, 1, 32768.0) == "the fp16 gradients overflow at step 3: left out; the loss scale is now 32768"
    assert overflow(4, 2, 0.0625).startswith("the fp16 gradients overflow at step 4, number 2 in a row: left out; ")
