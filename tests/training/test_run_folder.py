"""Where a run goes on, and where it refuses to."""

import contextlib
from pathlib import Path

import pytest

from training.checkpoint import CheckpointError, save_checkpoint
from training.progress import Progress
from training.run_folder import RunError, default_run_name, open_run, read_checkpoint


@pytest.fixture
def folder(tmp_path):
    """A run with a checkpoint at step 10."""
    folder = tmp_path / "runs" / "one"
    state = {
        "progress": Progress(step=10).to_dict(),
        "settings": {"lr": 0.1, "epochs": 2},
        "data": {"num_train": 100},
    }
    save_checkpoint(folder / "checkpoints", 10, {}, state)
    return folder


@pytest.mark.parametrize(
    ("model", "dataset", "name"),
    [
        ("tinynet_c", "ILSVRC/imagenet-1k", "tinynet_c-imagenet-1k"),
        ("timm/tinynet_a.in1k", "./my pictures/", "tinynet_a.in1k-my-pictures"),
        ("tinynet_e", "..", "tinynet_e"),
    ],
)
def test_run_names_are_plain_folder_names(model, dataset, name):
    assert default_run_name(model, dataset) == name


@pytest.mark.parametrize("resume", ["auto", "must"])
def test_a_run_goes_on_from_its_newest_checkpoint(folder, resume):
    assert open_run(folder, resume) == folder / "checkpoints" / "step-000010"


@pytest.mark.parametrize("resume", ["auto", "never"])
def test_a_new_run_gets_its_folder(tmp_path, resume):
    assert open_run(tmp_path / "runs" / "new", resume) is None
    assert (tmp_path / "runs" / "new").is_dir()


def test_nothing_is_begun_over_a_run(folder):
    with pytest.raises(RunError, match="already holds a run; choose another --run_name"):
        open_run(folder, "never")


def test_a_branch_goes_on_with_its_own_checkpoints(folder, tmp_path):
    root = folder / "checkpoints" / "step-000010"
    branch = tmp_path / "runs" / "branch"
    assert open_run(branch, str(root)) == root
    own = save_checkpoint(branch / "checkpoints", 12, {}, {})
    assert open_run(branch, str(root)) == own


@pytest.mark.parametrize("resume", ["auto", "never"])
def test_a_run_killed_before_its_first_checkpoint_starts_again(tmp_path, resume):
    (tmp_path / "run" / "best").mkdir(parents=True)
    assert open_run(tmp_path / "run", resume) is None


@pytest.mark.parametrize("resume", ["auto", "never"])
def test_a_result_without_checkpoints_is_not_overwritten(tmp_path, resume):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "summary.json").write_text("{}")
    with pytest.raises(RunError, match="holds the result of a run without its checkpoints"):
        open_run(tmp_path / "run", resume)


def test_must_resume_needs_a_checkpoint(tmp_path):
    with pytest.raises(RunError, match=r"no checkpoint in .* to go on from"):
        open_run(tmp_path / "run", "must")
    with pytest.raises(RunError, match="there is no checkpoint nowhere"):
        open_run(tmp_path / "run", "nowhere")


def test_only_the_same_unfinished_run_is_continued(folder):
    checkpoint, settings, data = open_run(folder, "auto"), {"lr": 0.1, "epochs": 2}, {"num_train": 100}
    _, state = read_checkpoint(checkpoint, settings, data, False, total_steps=20)
    with pytest.raises(RunError, match="is finished after 10 steps"), contextlib.chdir(checkpoint.parent):
        read_checkpoint(Path(checkpoint.name), settings, data, False, total_steps=10)
    assert Progress.from_dict(state["progress"]) == Progress(step=10)
    with pytest.raises(RunError, match="is finished after 10 steps"):
        read_checkpoint(checkpoint, settings, data, False, total_steps=10)
    with pytest.raises(RunError, match=r"holds another run \(lr 0.1 -> 0.2\)"):
        read_checkpoint(checkpoint, settings | {"lr": 0.2}, data, False, total_steps=20)


def test_other_data_are_refused_unless_allowed(folder):
    checkpoint, settings = open_run(folder, "auto"), {"lr": 0.1, "epochs": 2}
    with pytest.raises(RunError, match=r"not the one that .* was trained on \(num_train 100 -> 99\)"):
        read_checkpoint(checkpoint, settings, {"num_train": 99}, False, total_steps=20)
    read_checkpoint(checkpoint, settings, {"num_train": 99}, True, total_steps=20)


def test_a_checkpoint_that_does_not_know_file_sizes_is_continued(folder):
    """Those of versions that did not look at them; the next one knows."""
    checkpoint, settings = open_run(folder, "auto"), {"lr": 0.1, "epochs": 2}
    read_checkpoint(checkpoint, settings, {"num_train": 100, "train_file_sizes": "ab"}, False, total_steps=20)
    data = {"num_train": 100, "train_file_sizes": "ab"}
    state = {"progress": Progress(step=11).to_dict(), "settings": settings, "data": data}
    checkpoint = save_checkpoint(folder / "checkpoints", 11, {}, state)
    read_checkpoint(checkpoint, settings, data, False, total_steps=20)
    with pytest.raises(RunError, match=r"was trained on \(train_file_sizes ab -> cd\)"):
        read_checkpoint(checkpoint, settings, data | {"train_file_sizes": "cd"}, False, total_steps=20)


def test_a_foreign_checkpoint_is_no_run(tmp_path):
    path = save_checkpoint(tmp_path / "run" / "checkpoints", 5, {}, {"step": 5})
    with pytest.raises(CheckpointError, match="is not a checkpoint of a training run"):
        read_checkpoint(path, {}, {}, False, total_steps=10)
