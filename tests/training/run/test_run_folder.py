"""Where a run resumes, and where it refuses to."""

import pytest

from training.errors import RunError
from training.run.checkpoint import save_checkpoint
from training.run.progress import Progress
from training.run.run_folder import default_run_name, open_run


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
        ("timm/tinynet_a.in1k", "./my images/", "tinynet_a.in1k-my-images"),
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


def test_a_branch_is_not_begun_over_the_result_of_another_run(folder, tmp_path):
    other = tmp_path / "runs" / "other"
    other.mkdir()
    (other / "summary.json").touch()  # its owner has removed the checkpoints, to save space
    with pytest.raises(RunError, match="holds the result of a run without its checkpoints"):
        open_run(other, str(folder / "checkpoints" / "step-000010"))


def test_an_older_checkpoint_of_the_run_itself_is_not_silently_exchanged_for_the_newest(folder):
    save_checkpoint(folder / "checkpoints", 12, {}, {})
    with pytest.raises(RunError, match="has continued to step-000012: --resume auto"):
        open_run(folder, str(folder / "checkpoints" / "step-000010"))
    newest = folder / "checkpoints" / "step-000012"
    assert open_run(folder, str(newest)) == newest


@pytest.mark.parametrize("resume", ["auto", "never"])
def test_a_run_killed_before_its_first_checkpoint_starts_again(tmp_path, resume):
    (tmp_path / "run" / "best").mkdir(parents=True)
    assert open_run(tmp_path / "run", resume) is None


def test_what_a_kill_left_of_a_replacement_is_cleared_at_the_next_start(folder):
    for name in (".tmp-best-1234-replaced", ".tmp-last-5678"):
        (folder / name).mkdir()
    open_run(folder, "auto")
    assert sorted(path.name for path in folder.iterdir()) == ["best", "checkpoints"]


@pytest.mark.parametrize("resume", ["auto", "never"])
def test_a_result_without_checkpoints_is_not_overwritten(tmp_path, resume):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "summary.json").write_text("{}")
    with pytest.raises(RunError, match="holds the result of a run without its checkpoints"):
        open_run(tmp_path / "run", resume)


def test_must_resume_needs_a_checkpoint(tmp_path):
    with pytest.raises(RunError, match=r"no checkpoint in .* to resume from"):
        open_run(tmp_path / "run", "must")
    with pytest.raises(RunError, match="there is no checkpoint nowhere"):
        open_run(tmp_path / "run", "nowhere")
