"""Runs that met numbers which are not finite, or that are to continue with other settings.

Each run is train.py in processes of its own, as in test_training_faults.
"""

import json
import math
import re
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.faults.test_training_faults import RUN, assert_same
from tests.training_jobs import AUGMENTED, ROOT, SMALL, final_tensors, train, trained
from training.config.train_config import read_recipe
from training.reporting.metrics import read_metrics
from training.run.checkpoint import load_checkpoint, save_checkpoint

POISONED = ROOT / "tests" / "faults" / "poisoned_train.py"
FP16 = ROOT / "tests" / "faults" / "fp16_train.py"
NUMBERS = (*SMALL, *AUGMENTED, "--epochs", "1", "--num_workers", "0", "--log_every_steps", "1", "--run_name", "run")


def flags_of(error: str) -> list[str]:
    """The flags that an error names, as they are typed."""
    return [part for flag in re.findall(r"--\w+ [\w./:-]+", error) for part in flag.split()]


def steps_of(run_folder: Path) -> list[dict]:
    return [record for record in read_metrics(run_folder / "metrics.jsonl") if record["kind"] == "step"]


# A loss that is not a number


class Continued(NamedTuple):
    folder: Path
    error: str  # of the start that met the NaN
    output: str  # of the start that went past it


@pytest.fixture(scope="module")
def continued(tmp_path_factory) -> Continued:
    """A run that meets a NaN at step 8, and continues with the first flag that the error names, on another machine."""
    folder = tmp_path_factory.mktemp("continued")
    command = ("8", "0", *NUMBERS, "--save_every", "3steps", "--keep", "99")
    failed = train(*command, script=POISONED, folder=folder)
    assert failed.returncode == 2
    shutil.copytree(folder / "runs", folder / "failed")
    machine = ("--per_device_batch_size", "16", "--no_channels_last")
    again = train(*command, *flags_of(failed.stderr)[:2], *machine, script=POISONED, folder=folder)
    assert again.returncode == 0, again.stderr
    return Continued(folder, failed.stderr, again.stdout)


@pytest.mark.fault("30 a run continues past a NaN with flags from the error")
def test_the_same_command_and_a_flag_from_the_error_go_past_a_nan(continued):
    assert flags_of(continued.error) == [
        *("--on_nonfinite", "skip:10", "--resume", "runs/run/checkpoints/step-000006", "--run_name", "run-2"),
        *("--lr", "0.0015", "--max_grad_norm", "1"),
    ]
    assert "resuming from step-000006" in continued.output
    assert "the loss is nan at step 8 on rank 0" in continued.output
    steps = [record["step"] for record in steps_of(continued.folder / "runs" / "run")]
    assert steps == [*range(1, 8), *range(9, 27)]
    assert all(tensor.isfinite().all() for tensor in final_tensors(continued.folder / "runs" / "run").values())


@pytest.mark.fault("33 changed settings on resume are said")
def test_what_a_start_changes_is_printed_and_the_recipe_is_the_newest(continued):
    said = re.findall(r"^changed: (.*)$", continued.output, re.MULTILINE)
    assert said == [
        "per_device_batch_size 32 -> 16: BatchNorm sees batches of another size",
        "channels_last true -> false: sums are rounded in another order",
        "on_nonfinite stop -> skip:10",
    ]
    for runs, device_batch, changes in (("failed", 32, []), ("runs", 16, said)):
        path = continued.folder / runs / "run" / "recipe.yaml"
        assert read_recipe(path)["per_device_batch_size"] == device_batch
        assert re.findall(r"^#   step 6: (.*)$", path.read_text(), re.MULTILINE) == changes
    _, state = load_checkpoint(max((continued.folder / "runs" / "run" / "checkpoints").glob("step-*")))
    assert state["progress"]["changes"] == [f"step 6: {sentence}" for sentence in said]


@pytest.mark.only_thorough
@pytest.mark.fault("33 changed settings on resume are said")
def test_a_start_that_is_refused_changes_no_file(tmp_path):
    command = (*NUMBERS, "--schedule", "staircase")
    trained(*command, folder=tmp_path)
    run_folder = tmp_path / "runs" / "run"
    log = (run_folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run_folder / "metrics.jsonl").write_text("".join([log[0], "damaged\n", *log[2:]]))
    files = {path for path in run_folder.rglob("*") if path.is_file() and path.name != ".lock"}
    before = {path: path.read_bytes() for path in files}
    result = train(*command, "--epochs", "2", folder=tmp_path)
    assert result.returncode == 2
    assert "metrics.jsonl, line 2 is not JSON" in result.stderr
    assert {path: path.read_bytes() for path in files if path.exists()} == before
    assert not list(run_folder.glob("summary-*"))


@pytest.mark.only_thorough
@pytest.mark.fault("32 more epochs for a finished run")
def test_a_best_evaluation_whose_weights_are_gone_is_no_result(tmp_path):
    command = (*NUMBERS, "--schedule", "staircase")
    trained(*command, folder=tmp_path)
    run_folder = tmp_path / "runs" / "run"
    tensors, state = load_checkpoint(run_folder / "checkpoints" / "step-000026")
    state["progress"]["best"]["top_1_correct"] = 50  # of 50: no later evaluation is better
    save_checkpoint(run_folder / "checkpoints", 26, tensors, state)
    # What a start leaves there that was killed before its next checkpoint.
    best = run_folder / "best" / "model.safetensors"
    save_file({name: tensor * 0 for name, tensor in load_file(best).items()}, best, {"format": "pt"})
    trained(*command, "--epochs", "2", folder=tmp_path)
    result = json.loads((run_folder / "summary.json").read_text())["best"]
    assert result["epoch"] == 2
    assert result["top_1_correct"] < 50


@pytest.mark.only_thorough
@pytest.mark.fault("30 a run continues past a NaN with flags from the error")
@pytest.mark.parametrize("change", [("--precision", "bf16"), ("--optimizer", "adamw", "--ema_decay", "0")])
def test_a_branch_with_flags_from_the_error_and_others_goes_past_a_nan(change, continued, tmp_path):
    shutil.copytree(continued.folder / "failed", tmp_path / "runs")
    before = {path: path.read_bytes() for path in (tmp_path / "runs").rglob("*.*") if path.is_file()}
    branch = (*NUMBERS, *flags_of(continued.error)[2:], *change)
    output = trained(*branch, folder=tmp_path)
    assert "runs/run-2: resuming from runs/run/checkpoints/step-000006" in output
    for name in (*(flag[2:] for flag in change[::2]), "lr", "max_grad_norm"):
        assert f"changed: {name} " in output
    assert "changed: the learning rate of step 7 is " in output
    assert steps_of(tmp_path / "runs" / "run-2")[0]["step"] == 7
    assert {path: path.read_bytes() for path in before} == before
    result = train(*branch, folder=tmp_path)
    assert "the run in runs/run-2 is finished after 26 steps" in result.stderr


# fp16


@pytest.mark.fault("29 loss not finite while gradients are (fp16)")
def test_a_loss_that_is_not_finite_changes_nothing_on_any_rank_though_its_gradients_are(tmp_path):
    flags = (*NUMBERS, "--per_device_batch_size", "16", "--precision", "fp16", "--save_every", "1steps")
    # From step 8 on: the first is left out, and the second ends the run.
    result = train("loss", "8", "1", *flags, "--on_nonfinite", "skip:1", processes=2, script=FP16, folder=tmp_path)
    assert "the loss is inf at step 8 on rank 1, which holds samples" in result.stdout
    assert "left out, step 1 of at most 1" in result.stdout
    assert "error: the loss is inf at step 9 on rank 1" in result.stderr
    for rank in (0, 1):
        lines = [line.split() for line in (tmp_path / f"rank{rank}.txt").read_text().splitlines()]
        weights = {int(step): digest for step, _, digest in lines}
        assert math.isfinite(float(lines[7][1]))  # of the gradients of step 8
        assert weights[7] != weights[8] == weights[9]
    before, after = (load_checkpoint(tmp_path / f"runs/run/checkpoints/step-{step:06d}") for step in (7, 8))
    for kind in ("model", "ema", "optimizer", "local"):  # local: BatchNorm's statistics of each rank
        names = [name for name in before[0][kind] if not name.endswith("num_batches_tracked")]
        assert [name for name in names if not torch.equal(before[0][kind][name], after[0][kind][name])] == []
    assert before[0]["local"]["batch_norm"].shape[0] == 2
    assert after[1]["progress"]["skipped_steps"] == 1
    assert after[1]["scaler"]["scale"] == before[1]["scaler"]["scale"]  # a finite gradient is no overflow


class Overflowing(NamedTuple):
    folder: Path
    output: str
    error: str


@pytest.fixture(scope="module")
def overflowing(tmp_path_factory) -> Overflowing:
    """A run whose gradients are infinite from step 4 on; and whose warm-up is as long as itself."""
    folder = tmp_path_factory.mktemp("overflowing")
    flags = (*NUMBERS, "--precision", "fp16", "--save_every", "7steps", "--keep", "99")
    flags += ("--schedule", "staircase", "--warmup_epochs", "1")
    result = train("gradients", "4", "0", *flags, script=FP16, folder=folder)
    assert result.returncode == 2, result.stderr
    return Overflowing(folder, result.stdout, result.stderr)


@pytest.mark.fault("22 overflow with a gradient scaler")
def test_an_overflow_changes_no_weight_and_halves_the_scale_that_is_recorded(overflowing):
    lines = [line.split() for line in (overflowing.folder / "rank0.txt").read_text().splitlines()]
    records = steps_of(overflowing.folder / "runs" / "run")
    scale = 1024.0
    for (_, norm, weights), (_, _, later), record in zip(lines, lines[1:], records, strict=False):
        is_finite = math.isfinite(float(norm))
        assert (weights != later) == is_finite
        scale = scale if is_finite else scale / 2
        assert record["loss_scale"] == scale
    for checkpoint in sorted((overflowing.folder / "runs" / "run" / "checkpoints").glob("step-*")):
        tensors, state = load_checkpoint(checkpoint)
        updates = int(tensors["optimizer"]["classifier.weight.step"])
        assert updates + state["progress"]["overflowed_steps"] == state["progress"]["step"]
        assert state["scaler"]["scale"] == 1024.0 * 0.5 ** state["progress"]["overflowed_steps"]


@pytest.mark.fault("31 fp16 gradients never finite")
def test_gradients_that_stay_infinite_end_the_run(overflowing):
    for number in range(2, 20):
        assert f"the fp16 gradients overflow at step {number + 3}, number {number} in a row: left out; " in (
            overflowing.output
        )
    assert re.match(
        r"error: the fp16 gradients overflow at step 23, number 20 in a row: .* scale is now \d", overflowing.error
    )
    assert flags_of(overflowing.error) == [
        *("--resume", "runs/run/checkpoints/step-000021", "--run_name", "run-2"),
        *("--lr", "0.0015", "--max_grad_norm", "1", "--precision", "bf16"),
    ]


def test_a_warm_up_that_outlasts_the_run_is_remarked_upon(overflowing):
    assert "learning rate: warmup_epochs 1 outlasts the run: at most 1e-06, never lr 0.003" in overflowing.output


@pytest.mark.only_thorough
@pytest.mark.fault("31 fp16 gradients never finite")
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_branch_goes_on_where_gradients_are_finite(precision, overflowing, tmp_path):
    shutil.copytree(overflowing.folder / "runs", tmp_path / "runs")
    flags = (*NUMBERS, *flags_of(overflowing.error), "--precision", precision)
    assert "changed: lr " in trained("none", "0", "0", *flags, script=FP16, folder=tmp_path)
    records = steps_of(tmp_path / "runs" / "run-2")
    _, state = load_checkpoint(tmp_path / "runs" / "run" / "checkpoints" / "step-000021")
    scales = {record["loss_scale"] for record in records}
    assert scales == ({state["scaler"]["scale"]} if precision == "fp16" else {None})
    assert [record["step"] for record in records] == [22, 23, 24, 25, 26]


# More epochs

STAIRCASE = (*RUN, "--schedule", "staircase", "--decay_epochs", "0.7", "--decay_rate", "0.5", "--num_workers", "0")


@pytest.mark.only_thorough
@pytest.mark.fault("32 more epochs for a finished run")
def test_more_epochs_of_a_staircase_give_what_so_many_from_the_start_do(tmp_path):
    for name in ("whole", "longer"):
        (tmp_path / name).mkdir()
    trained(*STAIRCASE, "--epochs", "2", folder=tmp_path / "whole")
    trained(*STAIRCASE, "--epochs", "1", folder=tmp_path / "longer")
    output = trained(*STAIRCASE, "--epochs", "2", folder=tmp_path / "longer")
    assert "changed: epochs 1 -> 2\nchanged: the learning rates stay those of the checkpoint's run\n" in output
    run_folder = tmp_path / "longer" / "runs" / "run"
    assert_same(run_folder, tmp_path / "whole" / "runs" / "run")
    assert [
        json.loads((run_folder / name).read_text())["steps"] for name in ("summary.json", "summary-1-epochs.json")
    ] == [52, 26]


@pytest.mark.only_thorough
@pytest.mark.fault("32 more epochs for a finished run")
@pytest.mark.parametrize("branch", [True, False], ids=["branch", "same name"])
def test_more_epochs_of_a_cosine_say_that_its_curve_changes(branch, tmp_path):
    trained(*RUN, "--epochs", "1", folder=tmp_path)
    flags = ("--resume", "runs/run/checkpoints/step-000026", "--run_name", "longer") if branch else ()
    output = trained(*RUN, "--epochs", "2", *flags, folder=tmp_path)
    said = re.search(
        "changed: the learning rate of step 27 is (.*), where it would have been 0: the run is not", output
    )
    records = steps_of(tmp_path / "runs" / ("longer" if branch else "run"))
    assert [record["step"] for record in records] == list(range(27 if branch else 1, 53))
    (first,) = [record for record in records if record["step"] == 27]
    assert float(said[1]) == pytest.approx(first["lr"], rel=1e-6)
