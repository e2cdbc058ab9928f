import json

from training.display import SmoothedLoss
from training.progress import Progress


def test_progress_comes_back_from_json():
    progress = Progress(7, True, 1.5, 64, 2, 1, SmoothedLoss(), {"top_1_correct": 3}, 12.5)
    progress.smoothed_loss.update(0.1)
    assert Progress.from_dict(json.loads(json.dumps(progress.to_dict()))) == progress


def test_an_epoch_begins_with_nothing_of_the_last():
    progress = Progress(7, True, 1.5, 64, 2, 1, SmoothedLoss(), {"top_1_correct": 3}, 12.5)
    progress.begin_epoch()
    assert progress == Progress(7, False, 0.0, 0, 0, 1, SmoothedLoss(), {"top_1_correct": 3}, 12.5)
