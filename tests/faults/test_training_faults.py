"""What may happen to a run of days, done to runs of seconds: kills, signals, hangs, bad numbers and bad data.

Each run is train.py in processes of its own, one or two (gloo), which tests/launcher.py forks; where a test is about
what torchrun or Accelerate's launcher does, they start them. The witness is a run left alone: whatever happened on the
way, weights, EMA, optimizer and log must end as its do, to the bit.
"""

import contextlib
import json
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import datasets
import psutil
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from sklearn.datasets import load_digits
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.launcher import Run
from tests.training_jobs import AUGMENTED, ROOT, SMALL, TORCHRUN, final_tensors, start, train, trained
from training.reporting.metrics import read_metrics
from training.run.checkpoint import latest_checkpoint
from training.system.interruption import EXIT_CODE

# 52 steps. A checkpoint every third, so that a kill often meets a save; two workers, who must die with their run.
RUN = (
    *SMALL,
    *AUGMENTED,
    *("--epochs", "2", "--num_workers", "2", "--log_every_steps", "1", "--save_every", "3steps", "--run_name", "run"),
)
ON = {1: RUN, 2: (*RUN, "--per_device_batch_size", "16")}
ACCUMULATED = (*RUN, "--per_device_batch_size", "8")


def history(run_folder: Path) -> list[tuple]:
    """All that the log says but times."""
    names = ("kind", "step", "loss", "loss_smoothed", "lr", "grad_norm", "train_loss", "raw", "ema")
    return [tuple(record.get(name) for name in names) for record in read_metrics(run_folder / "metrics.jsonl")]


def assert_same(run_folder: Path, reference: Path) -> None:
    tensors, expected = final_tensors(run_folder), final_tensors(reference)
    assert tensors.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(tensors[name], expected[name])] == []
    assert history(run_folder) == history(reference)
    for folder in ("best", "last"):
        weights, expected = (load_file(parent / folder / "model.safetensors") for parent in (run_folder, reference))
        assert all(torch.equal(weights[name], expected[name]) for name in expected)


def wait_until(condition: Callable[[], object], process: Run | subprocess.Popen, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, f"the run ended first: {process.communicate()}"
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


def lines(run_folder: Path) -> int:
    log = run_folder / "metrics.jsonl"
    return log.read_bytes().count(b"\n") if log.exists() else 0


def family(process: Run | subprocess.Popen) -> list[psutil.Process]:
    parent = psutil.Process(process.pid)
    return [parent, *parent.children(recursive=True)]


def kill_family(process: Run | subprocess.Popen) -> list[psutil.Process]:
    """Those that were there. Any of them may end by itself meanwhile."""
    victims = []
    with contextlib.suppress(psutil.NoSuchProcess):
        victims = family(process) if process.poll() is None else []
    for victim in victims:
        with contextlib.suppress(psutil.NoSuchProcess):
            victim.kill()
    return victims


def ranks(process: Run | subprocess.Popen) -> list[psutil.Process]:
    """The training processes, by rank; loader workers are their children."""
    if isinstance(process, Run):
        return [psutil.Process(pid) for pid in process.ranks]
    if "torch.distributed.run" not in process.args:
        return [psutil.Process(process.pid)]
    children = psutil.Process(process.pid).children()
    return sorted(children, key=lambda child: int(child.environ()["RANK"]))


def ended(processes: list[psutil.Process], seconds: float = 30) -> bool:
    _, alive = psutil.wait_procs(processes, timeout=seconds)
    return all(process.status() == psutil.STATUS_ZOMBIE for process in alive)


def at_step(
    step: int, arguments: tuple, processes: int, folder: Path, seconds: float = 120, **kwargs
) -> Run | subprocess.Popen:
    """A run that has just done so many steps."""
    process = start(list(arguments), processes=processes, folder=folder, **kwargs)
    run_folder = folder / "runs" / "run"
    wait_until(lambda: lines(run_folder) >= step, process, seconds)
    return process


# Kills


@pytest.mark.timeout(900)
@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize(
    "seed",
    [0, *(pytest.param(seed, marks=pytest.mark.only_thorough) for seed in range(1, 6))],
)
@pytest.mark.fault("01 and 02 SIGKILL of all processes at random moments, also inside a save")
def test_a_run_killed_again_and_again_ends_as_if_left_alone(processes, seed, undisturbed, thorough, tried, tmp_path):
    rng = random.Random(seed + 100 * processes)
    arguments = (*ON[processes], "--epochs", "2" if thorough else "1")
    run_folder = tmp_path / "runs" / "run"
    kills = 0
    for _ in range(5 if thorough else 2):
        before = lines(run_folder)
        process = start(list(arguments), processes=processes, folder=tmp_path)
        while process.poll() is None and lines(run_folder) in (0, before):
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.8))
        victims = kill_family(process)
        process.communicate()
        if process.returncode == 0:
            break
        kills += 1
        assert ended(victims)
        newest = latest_checkpoint(run_folder / "checkpoints")
        assert newest is None or lines(run_folder) > 0
        assert not list((run_folder / "checkpoints").glob(".rejected-*"))
    tried(kills)
    assert kills
    if process.returncode != 0:
        trained(*arguments, processes=processes, folder=tmp_path)
    assert_same(run_folder, undisturbed(processes, arguments))


@pytest.mark.only_thorough
@pytest.mark.fault("03 SIGKILL of one rank")
def test_a_killed_rank_ends_the_job_and_nothing_is_left_behind(undisturbed, tmp_path):
    arguments = (*ON[2], "--report_to", "tensorboard")
    process = at_step(8, arguments, 2, tmp_path, command=TORCHRUN)
    everybody = family(process)
    ranks(process)[1].kill()
    _, errors = process.communicate(timeout=120)
    assert process.returncode != 0
    assert re.search(r"local_rank: 1|rank\s*: 1", errors)
    assert ended(everybody)
    trained(*arguments, processes=2, folder=tmp_path)
    run_folder = tmp_path / "runs" / "run"
    assert_same(run_folder, undisturbed(2, ON[2]))
    tracked = EventAccumulator(str(run_folder / "tinynet")).Reload()
    assert [event.step for event in tracked.Scalars("loss")] == list(range(1, 53))
    losses = [record["loss"] for record in read_metrics(run_folder / "metrics.jsonl") if record["kind"] == "step"]
    assert [event.value for event in tracked.Scalars("loss")] == pytest.approx(losses, rel=1e-6)


@pytest.mark.only_thorough
@pytest.mark.fault("21 kill inside an accumulation window")
def test_a_kill_while_gradients_accumulate_is_as_if_left_alone(undisturbed, tmp_path):
    process = at_step(10, ACCUMULATED, 1, tmp_path)
    for victim in family(process):
        victim.kill()
    process.communicate()
    trained(*ACCUMULATED, folder=tmp_path)
    assert_same(tmp_path / "runs" / "run", undisturbed(1, ACCUMULATED))


@pytest.mark.only_thorough
@pytest.mark.fault("17 a loader worker dies or hangs")
@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGSTOP])
def test_a_lost_worker_ends_the_run_in_one_sentence(sign, tmp_path):
    process = at_step(3, (*RUN, "--timeout_s", "3", "--log_every_steps", "1"), 1, tmp_path)
    workers = psutil.Process(process.pid).children()
    for worker in workers:
        worker.send_signal(sign)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 2
    assert re.search("^error: rank 0: (DataLoader worker|the loader's workers gave no batch)", errors, re.MULTILINE)
    assert "Traceback" not in errors
    assert ended(workers)


# Streams


def streamed_digits(root: Path) -> None:
    """Digits as Parquet in four files for training and one to evaluate, with the sizes stated as on the Hub."""
    digits = load_digits()
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(num_classes=10)})
    images = [Image.fromarray((pixels * 15).astype("uint8")) for pixels in digits.images]
    root.mkdir(parents=True)
    for name, rows in [
        *((f"train-{part}", range(part, 800, 4)) for part in range(4)),
        ("validation-0", range(800, 850)),
    ]:
        columns = {"image": [images[row] for row in rows], "label": digits.target[list(rows)].tolist()}
        datasets.Dataset.from_dict(columns, features=features).to_parquet(root / f"{name}.parquet")
    sizes = "".join(
        f"  - name: {k}\n    num_bytes: 1\n    num_examples: {n}\n" for k, n in (("train", 800), ("validation", 50))
    )
    (root / "README.md").write_text(f"---\ndataset_info:\n  splits:\n{sizes}---\n")


@pytest.mark.fault("streams resume where they were")
def test_a_stream_goes_on_as_if_left_alone(tmp_path):
    arguments = (*RUN, "--dataset", "stream", "--streaming", "--drop_last", "--epochs", "1")
    for name in ("alone", "stopped"):
        streamed_digits(tmp_path / name / "stream")
    trained(*arguments, folder=tmp_path / "alone")
    # SIGTERM in step 8, from itself: one from here could come after the end.
    script = ROOT / "tests" / "faults" / "interrupted_train.py"
    stopped = train("8", "1", "0", *arguments, script=script, folder=tmp_path / "stopped")
    assert stopped.returncode == EXIT_CODE, stopped.stderr
    assert "after step 8; runs/run is saved" in stopped.stderr
    assert "the stream begins its epoch anew" not in trained(*arguments, folder=tmp_path / "stopped")
    assert_same(tmp_path / "stopped" / "runs" / "run", tmp_path / "alone" / "runs" / "run")


# Signals


@pytest.mark.only_thorough
@pytest.mark.parametrize(
    ("case", "sign", "processes"),
    [
        pytest.param("SIGTERM", signal.SIGTERM, 1, marks=pytest.mark.fault("09 SIGTERM")),
        pytest.param("SIGTERM", signal.SIGTERM, 2, marks=pytest.mark.fault("09 SIGTERM")),
        pytest.param("SIGUSR1", signal.SIGUSR1, 2, marks=pytest.mark.fault("10 SIGUSR1 and Ctrl-C")),
        pytest.param("one rank", signal.SIGTERM, 2, marks=pytest.mark.fault("11 SIGTERM to one rank only")),
        pytest.param("Ctrl-C", signal.SIGINT, 1, marks=pytest.mark.fault("10 SIGUSR1 and Ctrl-C")),
    ],
)
def test_a_signal_saves_at_once_and_the_run_goes_on_later(case, sign, processes, undisturbed, tmp_path):
    arguments = (*ON[processes], "--save_every", "1000steps", "--save_every_epochs", "2")
    process = at_step(8, arguments, processes, tmp_path, command=TORCHRUN if processes == 2 else None)
    everybody, targets = family(process), ranks(process)
    if case == "SIGTERM":
        process.send_signal(sign)  # torchrun passes it on
    else:
        for target in targets[-1:] if case == "one rank" else targets:
            target.send_signal(sign)
    _, errors = process.communicate(timeout=120)
    assert ended(everybody)
    # torchrun has an exit code of its own for whatever its processes end with.
    assert process.returncode == EXIT_CODE if processes == 1 else process.returncode != 0
    assert re.search(r"stopped by .* after step \d+; runs/run is saved", errors)
    assert (tmp_path / "runs" / "run" / ".interrupted").exists()
    newest = latest_checkpoint(tmp_path / "runs" / "run" / "checkpoints")
    assert lines(tmp_path / "runs" / "run") == int(newest.name.removeprefix("step-"))
    trained(*arguments, processes=processes, folder=tmp_path)
    assert_same(tmp_path / "runs" / "run", undisturbed(processes, ON[processes]))


@pytest.mark.only_thorough
@pytest.mark.fault("09 SIGTERM")
def test_a_launcher_that_ends_is_a_signal_to_save(tmp_path):
    # With one process, `accelerate launch` dies of SIGTERM and passes nothing on.
    accelerate = (sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--quiet")
    process = at_step(8, ON[1], 1, tmp_path, command=accelerate)
    everybody = family(process)
    process.send_signal(signal.SIGTERM)
    assert ended(everybody)
    newest = latest_checkpoint(tmp_path / "runs" / "run" / "checkpoints")
    assert lines(tmp_path / "runs" / "run") == int(newest.name.removeprefix("step-")) < 52


@pytest.mark.only_thorough
@pytest.mark.fault("18 resume on one process from two, and back")
def test_a_run_goes_on_with_another_number_of_processes(tmp_path):
    for processes, steps in ((2, 5), (1, 15)):
        process = at_step(steps, ON[processes], processes, tmp_path)
        for target in ranks(process):
            target.send_signal(signal.SIGUSR1)
        process.communicate(timeout=120)
    trained(*ON[2], processes=2, folder=tmp_path)
    records = read_metrics(tmp_path / "runs" / "run" / "metrics.jsonl")
    assert [record["step"] for record in records if record["kind"] == "step"] == list(range(1, 53))


# Numbers


@pytest.mark.fault("12 loss not a number on one rank")
def test_a_loss_that_is_no_number_changes_no_weight(tmp_path):
    script = ROOT / "tests" / "faults" / "poisoned_train.py"
    result = train("8", "1", *ON[2], processes=2, script=script, folder=tmp_path)
    assert result.returncode != 0
    problem = r"error: the loss is nan at step 8 on rank 1, which holds samples (\d+, ){8}\.\.\.: "
    assert re.search(problem, result.stderr)
    newest = latest_checkpoint(tmp_path / "runs" / "run" / "checkpoints")
    assert newest.name == "step-000006"
    tensors = load_file(newest / "model.safetensors")
    assert all(tensor.isfinite().all() for tensor in tensors.values())


@pytest.mark.only_thorough
@pytest.mark.fault("12 loss not a number on one rank")
def test_a_step_left_out_leaves_no_trace_but_its_count(tmp_path):
    script = ROOT / "tests" / "faults" / "poisoned_train.py"
    arguments = (*ON[2], "--epochs", "1", "--on_nonfinite", "skip:1")
    result = train("8", "1", *arguments, processes=2, script=script, folder=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "the loss is nan at step 8 on rank 1" in result.stdout
    records = read_metrics(tmp_path / "runs" / "run" / "metrics.jsonl")
    assert [r["step"] for r in records if r["kind"] == "step"] == [*range(1, 8), *range(9, 27)]
    assert records[-1]["skipped_steps"] == 1
    assert all(tensor.isfinite().all() for tensor in final_tensors(tmp_path / "runs" / "run").values())


# Data


def image_folder(root: Path) -> Path:
    """Twelve training images of each of two classes, and four to evaluate."""
    rng = random.Random(0)
    for split, count in (("train", 12), ("val", 4)):
        for name in ("dark", "light"):
            (root / split / name).mkdir(parents=True)
            for index in range(count):
                color = tuple(rng.randrange(100) + 150 * (name == "light") for _ in range(3))
                Image.new("RGB", (40, 40), color).save(root / split / name / f"{index}.png")
    return root


IMAGES = (
    *SMALL,
    *("--dataset", "photos", "--epochs", "2", "--global_batch_size", "8", "--per_device_batch_size", "8"),
    *("--run_name", "run", "--log_every_steps", "1", "--num_workers", "0", "--warmup_epochs", "0", "--ema_decay", "0"),
)


@pytest.mark.only_thorough
@pytest.mark.fault("13 bad images are named, or replaced on request")
def test_bad_images_are_replaced_counted_and_limited(tmp_path):
    pictures = image_folder(tmp_path / "photos")
    for index in (2, 5):
        (pictures / "train" / "dark" / f"{index}.png").write_bytes(b"<html>not found</html>")
    for name, workers in (("zero", 0), ("two", 2)):
        arguments = ("--on_bad_image", "skip:2", "--num_workers", workers, "--run_name", name)
        output = trained(*IMAGES, *arguments, folder=tmp_path)
        assert "epoch 1: 2 images that cannot be decoded were replaced" in output
        records = read_metrics(tmp_path / "runs" / name / "metrics.jsonl")
        assert [r["replaced_images"] for r in records if r["kind"] == "epoch"] == [2, 2]
    zero, two = (final_tensors(tmp_path / "runs" / name) for name in ("zero", "two"))
    assert all(torch.equal(zero[name], two[name]) for name in zero)

    result = train(*IMAGES, "--on_bad_image", "skip:1", folder=tmp_path)
    assert result.returncode == 2
    assert "error: 2 images of epoch 1 cannot be decoded, more than --on_bad_image skip:1 allows" in result.stderr


@pytest.mark.only_thorough
@pytest.mark.fault("19 data changed since the checkpoint")
def test_a_changed_data_set_is_noticed(tmp_path):
    pictures = image_folder(tmp_path / "photos")
    process = at_step(3, (*IMAGES, "--epochs", "200"), 1, tmp_path)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
    bright = pictures / "train" / "light" / "0.png"
    original = bright.read_bytes()
    bright.write_bytes(original + b"\0")
    result = train(*IMAGES, "--epochs", "200", folder=tmp_path)
    assert result.returncode == 2
    assert "error: the dataset is not the one that runs/run was trained on (train_file_sizes " in result.stderr
    bright.write_bytes(original)
    shutil.move(pictures, tmp_path / "moved")
    (tmp_path / "moved" / "train" / "dark" / "3.png").rename(tmp_path / "moved" / "train" / "dark" / "30.png")
    arguments = (*IMAGES, "--epochs", "200", "--dataset", "moved")
    result = train(*arguments, folder=tmp_path)
    assert result.returncode == 2
    assert "error: the dataset is not the one that runs/run was trained on (train_fingerprint " in result.stderr
    process = at_step(60, (*arguments, "--allow_data_change"), 1, tmp_path)
    process.kill()
    process.communicate()

    (tmp_path / "moved" / "train" / "dark" / "30.png").rename(tmp_path / "moved" / "train" / "dark" / "3.png")
    (tmp_path / "runs").rename(tmp_path / "other")
    process = at_step(3, arguments, 1, tmp_path)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
    shutil.move(tmp_path / "moved", pictures)
    process = at_step(30, (*IMAGES, "--epochs", "200"), 1, tmp_path)  # where it lies does not count
    process.kill()
    process.communicate()


# Folders and secrets


@pytest.mark.only_thorough
@pytest.mark.fault("27 two trainers on one folder")
def test_a_folder_in_use_is_refused_and_free_after_a_kill(tmp_path):
    process = at_step(8, RUN, 1, tmp_path)  # one checkpoint is whole, however the next stands
    process.send_signal(signal.SIGSTOP)  # or it may be finished before the second one has started
    result = train(*RUN, folder=tmp_path)
    assert result.returncode == 2
    assert re.match(rf"error: runs/run is in use by process {process.pid} on \S+: wait for it", result.stderr)
    process.kill()
    process.communicate()
    assert "resuming from" in trained(*RUN, folder=tmp_path)


@pytest.mark.only_thorough
@pytest.mark.fault("24 token in no file and no output")
def test_a_token_is_written_nowhere(tmp_path, monkeypatch):
    canary = "hf_canary0123456789"
    monkeypatch.setenv("HF_TOKEN", canary)
    output = trained(*SMALL, "--epochs", "1", "--run_name", "run", "--num_workers", "0", folder=tmp_path)
    assert canary not in output
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 10
    assert [path for path in files if canary.encode() in path.read_bytes()] == []


@pytest.mark.only_thorough
@pytest.mark.fault("23 poisoned pickles under every name")
def test_a_run_folder_holds_no_pickle_and_a_planted_one_is_not_read(tmp_path):
    process = at_step(8, RUN, 1, tmp_path)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
    run_folder, marker = tmp_path / "runs" / "run", tmp_path / "executed"
    poison = f"cos\nsystem\n(S'touch {marker}'\ntR.".encode()
    newest = latest_checkpoint(run_folder / "checkpoints")
    for folder in (run_folder, newest):
        for name in (
            "optimizer.bin",
            "scaler.pt",
            "random_states_0.pkl",
            "custom_checkpoint_0.pkl",
            "pytorch_model.bin",
        ):
            (folder / name).write_bytes(poison)
    trained(*RUN, folder=tmp_path)
    assert not marker.exists()
    kinds = {path.suffix for path in run_folder.rglob("*") if path.is_file() and path.read_bytes() != poison}
    assert kinds <= {".safetensors", ".json", ".jsonl", ".yaml", ".png", ""}
    assert json.loads((run_folder / "summary.json").read_text())["steps"] == 52
