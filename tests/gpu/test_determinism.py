"""What is promised on a GPU: started as deterministic_train.py does, two runs with the same seed on the same kind of
GPU and the same versions give the same weights to the bit, and so does a run that was interrupted. Not promised: the
same of train.py as it is, which lets cuDNN choose the fastest kernels, or of another GPU or version of torch."""

from pathlib import Path

import pytest
import torch

from tests.gpu.training_run import checkpoint, read_checkpoint, train

pytestmark = [pytest.mark.gpu, pytest.mark.slow]

# Everything that a run can draw at random, and this project's own optimizer.
FLAGS = (
    *("--image_size", "32", "--precision", "bf16", "--optimizer", "rmsprop", "--optimizer_eps", "1e-3"),
    *("--crop_scale", "0.6", "1", "--horizontal_flip", "0.5"),
    *("--dropout_rate", "0.2", "--drop_path_rate", "0.1", "--color_jitter", "0.4", "--random_erasing", "0.25"),
    *("--mixup_alpha", "0.2", "--cutmix_alpha", "1.0"),
)


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory) -> Path:
    return deterministic(folder=tmp_path_factory.mktemp("whole"))


def deterministic(*arguments: str | Path, folder: Path) -> Path:
    return train(*FLAGS, *arguments, script="tests/gpu/deterministic_train.py", folder=folder)


def assert_same_end(run_folder: Path, reference: Path) -> None:
    tensors, _ = read_checkpoint(checkpoint(run_folder, -1))
    expected, _ = read_checkpoint(checkpoint(reference, -1))
    assert tensors.keys() == expected.keys()
    assert [name for name, tensor in tensors.items() if not torch.equal(tensor, expected[name])] == []


def test_two_runs_with_one_seed_give_the_same_weights_to_the_bit(whole_run, tmp_path):
    assert_same_end(deterministic(folder=tmp_path), whole_run)


def test_a_resumed_run_gives_the_same_weights_to_the_bit(whole_run, tmp_path):
    assert_same_end(deterministic("--resume", checkpoint(whole_run, 0), folder=tmp_path), whole_run)
