import json

from training.reporting.console import SmoothedLoss
from training.run.progress import Progress, weights_sha256


def test_progress_comes_back_from_json():
    progress = Progress(7, True, 1.5, 64, 2, 1, SmoothedLoss(), {"top_1_correct": 3}, 12.5)
    progress.smoothed_loss.update(0.1)
    assert Progress.from_dict(json.loads(json.dumps(progress.to_dict()))) == progress


def test_an_epoch_begins_with_nothing_of_the_last():
    progress = Progress(7, True, 1.5, 64, 2, 1, SmoothedLoss(), {"top_1_correct": 3}, 12.5)
    progress.begin_epoch()
    assert progress == Progress(7, False, 0.0, 0, 0, 1, SmoothedLoss(), {"top_1_correct": 3}, 12.5)


def test_overflows_are_counted_in_all_and_in_a_row():
    progress = Progress()
    counts = []
    for overflows in (True, True, False, True):
        progress.count_overflow(overflows)
        counts.append((progress.overflowed_steps, progress.overflows_in_a_row))
    assert counts == [(1, 1), (2, 2), (2, 0), (3, 1)]


def test_changes_are_kept_with_the_step_they_were_made_at():
    progress = Progress(step=7, changes=["step 3: lr 0.2 -> 0.1"])
    progress.note_changes(["channels_last true -> false"])
    assert Progress.from_dict(json.loads(json.dumps(progress.to_dict()))).changes == [
        "step 3: lr 0.2 -> 0.1",
        "step 7: channels_last true -> false",
    ]


def test_progress_of_a_checkpoint_from_before_a_field_existed_is_read():
    values = Progress(step=7).to_dict()
    for name in ("overflowed_steps", "overflows_in_a_row", "changes", "best_sha256"):
        del values[name]
    assert Progress.from_dict(values) == Progress(step=7)


def test_the_best_evaluation_is_that_of_the_weights_in_best_or_none(tmp_path):
    best, evaluation = tmp_path / "best", {"top_1_correct": 3}
    best.mkdir()
    (best / "model.safetensors").write_bytes(b"weights of epoch 3")
    sha256 = weights_sha256(best)
    for known, kept in ((sha256, evaluation), (None, evaluation), ("0" * 64, None)):  # None: from before it was kept
        progress = Progress(best=evaluation, best_sha256=known)
        progress.check_best(best)
        assert progress.best == kept
    for name in ("empty", "missing"):
        progress = Progress(best=evaluation, best_sha256=sha256)
        (tmp_path / "empty").mkdir(exist_ok=True)
        progress.check_best(tmp_path / name)
        assert (progress.best, progress.best_sha256) == (None, None)


def test_a_branch_begins_without_the_best_and_the_overflows_of_the_other_run():
    progress = Progress(step=7, best={"top_1_correct": 3}, best_sha256="0", overflowed_steps=19, overflows_in_a_row=19)
    progress.begin_branch()
    assert progress == Progress(step=7, overflowed_steps=19)
