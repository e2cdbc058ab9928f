"""Number formats and torch.compile, in whole runs of train.py on the device."""

import math
import statistics
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch.amp import GradScaler

from tests.gpu.training_run import DEVICE, checkpoint, read_checkpoint, train
from training.reporting.metrics import Record, read_metrics

# 38 x 26 held-out digits, and no short batch in training either: each graph is compiled once.
EVEN = ("--global_batch_size", "26", "--per_device_batch_size", "26", "--drop_last")

KNOWING_NOTHING = math.log(10)  # the loss of equal probabilities for ten digits

pytestmark = [pytest.mark.gpu, pytest.mark.slow]


def step_records(run_folder: Path) -> list[Record]:
    return [record for record in read_metrics(run_folder / "metrics.jsonl") if record["kind"] == "step"]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_trains(precision, tmp_path):
    run_folder = train("--precision", precision, folder=tmp_path)
    records = step_records(run_folder)
    losses = [record["loss"] for record in records]
    assert len(losses) == 52 and all(map(math.isfinite, losses))
    assert statistics.mean(losses[-10:]) < KNOWING_NOTHING < losses[0]
    # Memory is counted on a GPU only: this run was where it should be.
    assert (records[-1]["memory_mb"] is None) == (DEVICE == "cpu")
    weights = safetensors.torch.load_file(run_folder / "last" / "model.safetensors")
    assert weights["conv_stem.weight"].dtype == torch.float32


def test_compiled_training_starts_as_eager_training_and_learns(tmp_path):
    """Without dropout, whose random numbers a compiled kernel draws in its own way."""
    eager, compiled = (
        [r["loss"] for r in step_records(train(*EVEN, "--dropout_rate", "0", *flag, folder=tmp_path, run_name=name))]
        for name, flag in (("eager", ()), ("compiled", ("--compile",)))
    )
    # A convolution in TF32 rounds its factors to 2^-11, once in each of some fifty layers.
    assert compiled[0] == pytest.approx(eager[0], rel=50**0.5 * 2**-11)
    assert statistics.mean(compiled[-10:]) < KNOWING_NOTHING < compiled[0]


def test_fp16_overflow_is_skipped_and_halves_the_scale_also_after_a_resume(tmp_path):
    whole = train("--precision", "fp16", script="tests/gpu/overflowing_train.py", folder=tmp_path)
    first = checkpoint(whole, 0)
    resumed = train("--precision", "fp16", "--resume", first, folder=tmp_path, run_name="resumed")
    for path, steps in ((first, 26), (checkpoint(whole, -1), 52), (checkpoint(resumed, -1), 52)):
        tensors, state = read_checkpoint(path)
        # The optimizer counts the updates that it made. The overflow at step 3 may not be the only one.
        skipped = steps - int(tensors["optimizer.tinynet.conv_stem.weight.step"])
        assert state["progress"]["step"] == steps and skipped >= 1
        assert state["scaler"]["scale"] == GradScaler(DEVICE).get_scale() * 0.5**skipped
        assert all(tensor.isfinite().all() for tensor in tensors.values())
