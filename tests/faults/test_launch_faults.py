"""What launchers, machines and their time limits do to a run. Witness: the same run left alone."""

import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from modeling_tinynet import TinyNetConfig, TinyNetForImageClassification
from tests.faults.test_training_faults import (
    ACCUMULATED,
    IMAGES,
    ON,
    assert_same,
    at_step,
    image_folder,
    wait_until,
)
from tests.training_jobs import ROOT, TORCHRUN, start, train, trained
from training.run.checkpoint import latest_checkpoint
from training.system.interruption import EXIT_CODE


@pytest.mark.fault("35 SIGTERM inside a long step")
@pytest.mark.parametrize(
    ("processes", "where"),
    [
        (1, (8, 2, 0)),
        *(pytest.param(*case, marks=pytest.mark.only_thorough) for case in ((1, (1, 1, 0)), (2, (9, 1, 1)))),
    ],
    ids=["one process", "its first step", "one rank of two"],
)
def test_a_long_step_is_broken_off_as_if_it_had_not_begun(processes, where, undisturbed, tmp_path):
    arguments, run_folder = (*ACCUMULATED, "--epochs", "1"), tmp_path / "runs" / "run"
    script = ROOT / "tests" / "faults" / "interrupted_train.py"
    result = train(*where, *arguments, processes=processes, script=script, folder=tmp_path)
    assert f"after step {where[0] - 1}; runs/run is saved" in result.stderr
    assert latest_checkpoint(run_folder / "checkpoints").name == f"step-{where[0] - 1:06d}"
    trained(*arguments, processes=processes, folder=tmp_path)
    assert_same(run_folder, undisturbed(processes, arguments))


# Several processes


@pytest.mark.only_thorough
@pytest.mark.fault("39 the others end in one line when a rank fails")
def test_a_rank_whose_peer_fails_ends_in_one_line(tmp_path):
    images = image_folder(tmp_path / "photos")
    (images / "train" / "dark" / "3.png").write_bytes(b"<html>not found</html>")
    result = train(*IMAGES, "--per_device_batch_size", "4", command=TORCHRUN, folder=tmp_path)
    assert result.returncode != 0
    assert re.search(r"^error: \S+dark/3\.png .*is not an image", result.stderr, re.MULTILINE)
    assert re.search(r"^rank [01] ends, because another rank has ended, which says why", result.stderr, re.MULTILINE)
    assert not re.search(r"^\[rank\d\]: Traceback", result.stderr, re.MULTILINE)


# Several machines


def on_two_machines(folders: list[Path], *arguments) -> list[subprocess.CompletedProcess]:
    """One rank for each machine, which is torchrun in a folder of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc_per_node=1")
    torchrun += ("--master_addr=127.0.0.1", f"--master_port={port}")
    machines = [
        start(list(arguments), command=(*torchrun, f"--node_rank={number}"), folder=folder)
        for number, folder in enumerate(folders)
    ]
    outputs = [machine.communicate(timeout=280) for machine in machines]
    return [
        subprocess.CompletedProcess(machine.args, machine.returncode, *output)
        for machine, output in zip(machines, outputs, strict=True)
    ]


@pytest.mark.only_thorough
@pytest.mark.fault("34 several nodes without a shared folder")
def test_machines_without_a_shared_folder_are_told_and_lose_nothing(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    for machine in (one, two):
        machine.mkdir()
    arguments = (*ON[2], "--epochs", "1", "--num_workers", "0")
    trained(*arguments, processes=1, folder=one)
    arguments = (*ON[2], "--num_workers", "0", "--resume", "auto")
    before = sorted(path.name for path in (one / "runs/run/checkpoints").iterdir())
    for folders in ([one, two], [two, one]):
        results = on_two_machines(folders, *arguments)
        for result in results:
            assert result.returncode != 0
            (sentence,) = re.findall("^error: .*", result.stderr, re.MULTILINE)
            assert "does not see what rank 0 on" in sentence and "NFS, Lustre" in sentence
            assert ("has its own step-000026" in sentence) == (folders[1] == one)
    assert sorted(path.name for path in (one / "runs/run/checkpoints").iterdir()) == before
    assert not list((two / "runs/run").glob("checkpoints/*"))


@pytest.mark.only_thorough
@pytest.mark.fault("34 several nodes without a shared folder")
def test_machines_with_a_shared_folder_train_as_one(undisturbed, tmp_path):
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
    for result in on_two_machines(folders, *ON[2], "--output_dir", tmp_path / "runs"):
        assert result.returncode == 0, result.stderr
    assert_same(tmp_path / "runs" / "run", undisturbed(2, ON[2]))


# The compiler


@pytest.mark.only_thorough
@pytest.mark.timeout(900)
@pytest.mark.fault("37 kill while compiling")
def test_a_compiled_run_in_bf16_that_is_killed_ends_as_if_left_alone(tmp_path):
    stages = {"kernel_sizes": [3], "strides": [2], "expand_ratios": [1], "out_channels": [8], "num_block_repeats": [1]}
    config = TinyNetConfig(image_size=32, num_labels=10, **stages)  # of two blocks: each kernel takes seconds
    TinyNetForImageClassification(config).save_pretrained(tmp_path / "small")
    arguments = (*ON[1], "--model", tmp_path / "small", "--compile", "--precision", "bf16", "--ema_decay", "0.9")
    arguments += ("--global_batch_size", "25", "--per_device_batch_size", "25", "--drop_last", "--epochs", "1")
    for name in ("alone", "killed"):
        (tmp_path / name).mkdir()
    trained(*arguments, folder=tmp_path / "alone", timeout=400)
    run_folder = tmp_path / "killed" / "runs" / "run"
    process = start(list(arguments), folder=tmp_path / "killed")
    wait_until(lambda: list(run_folder.rglob("*.so")), process, seconds=400)
    process.kill()  # in the midst of compiling
    process.communicate()
    process = at_step(8, arguments, 1, tmp_path / "killed", seconds=400)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == EXIT_CODE
    assert "resuming from" in trained(*arguments, folder=tmp_path / "killed", timeout=400)
    assert_same(run_folder, tmp_path / "alone" / "runs" / "run")
    assert not (run_folder / ".compiled").exists()
