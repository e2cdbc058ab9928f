"""How commands end: a user's mistake is one sentence and exit code 2, a bug keeps its traceback."""

import argparse
import errno
import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from hub_card.run_files import PublishError
from modeling_tinynet import TinyNetForImageClassification
from training.command import CommandParser, run_command
from training.data.decoding import ImageDecodeError
from training.engine.failures import ending_of
from training.errors import DataError, Ending, ModelError, RunError, UserError
from training.loading.samples import LabelError
from training.loading.sampling import TrainingPlan
from training.loading.streaming import EmptyStreamError
from training.loading.workers import WorkersLost
from training.modeling import build
from training.modeling.batch_norm import check_batch_size
from training.modeling.build import build_model, model_config
from training.prepare.prepared_copy import PrepareError
from training.reporting import metrics
from training.reporting.metrics import MetricsLog
from training.run.checkpoint import CheckpointError
from training.run.run_lock import RunFolderInUse
from training.system.interruption import Interrupted

ROOT = Path(__file__).parents[2]
CLASSES = ["apple", "pear"]


def raising(error):
    def command(argv):
        raise error

    return command


def ends(error, capsys, **options):
    """(exit code, what stands on stderr) of a command that raises `error`."""
    code = run_command(raising(error), [], **options)
    out, err = capsys.readouterr()
    assert out == ""
    return code, err


# What is one sentence


@pytest.mark.parametrize("answer", [None, 0, 1])
def test_a_command_says_how_it_ended(answer, capsys):
    assert run_command(lambda argv: answer, []) == (answer or 0)
    assert capsys.readouterr() == ("", "")


def test_it_gets_its_command_line():
    seen = []
    run_command(seen.append, ["--epochs", "1"])
    assert seen == [["--epochs", "1"]]


@pytest.mark.parametrize(
    "kind",
    [
        *(UserError, DataError, ModelError, RunError, CheckpointError, RunFolderInUse, PrepareError, PublishError),
        *(ImageDecodeError, LabelError, EmptyStreamError),
    ],
)
def test_a_users_mistake_is_one_sentence(kind, capsys):
    assert ends(kind("a  b is wrong:\n  take c\n"), capsys) == (2, "error: a  b is wrong: take c\n")


def test_callers_of_the_functions_catch_what_python_would_raise():
    for kind in (DataError, ModelError, RunError, PrepareError, PublishError, ImageDecodeError):
        assert issubclass(kind, ValueError) and issubclass(kind, UserError)
    for kind in (CheckpointError, RunFolderInUse):
        assert issubclass(kind, RuntimeError) and issubclass(kind, UserError)


def test_an_interrupted_run_is_no_error(capsys):
    assert not issubclass(Interrupted, UserError)
    assert ends(Interrupted("stopped by SIGTERM after step 3"), capsys) == (75, "stopped by SIGTERM after step 3\n")


def test_ctrl_c_is_exit_code_130(capsys):
    assert ends(KeyboardInterrupt(), capsys) == (130, "")
    assert ends(KeyboardInterrupt(), capsys, interrupted="stopped; go on") == (130, "stopped; go on\n")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EFBIG, errno.EIO])
def test_a_disk_that_refuses_is_one_sentence(number, capsys):
    error = OSError(number, os.strerror(number), "runs/a/metrics.jsonl")
    sentence = f"error: [Errno {number}] {os.strerror(number)}: 'runs/a/metrics.jsonl'; make room\n"
    assert ends(error, capsys, disk_refuses="; make room") == (2, sentence)


# Which ranks speak


@pytest.mark.parametrize(
    ("kind", "speakers"),
    [
        (Interrupted, [(0, 0)]),
        (RunError, [(0, 0), (2, 0)]),
        (DataError, [(0, 0), (2, 0)]),
        (ImageDecodeError, [(0, 0), (1, 1), (2, 0)]),
        (LabelError, [(0, 0), (1, 1), (2, 0)]),
        (EmptyStreamError, [(0, 0), (1, 1), (2, 0)]),
        (WorkersLost, [(0, 0), (1, 1), (2, 0)]),
    ],
)
def test_of_ranks_those_speak_that_have_something_to_say(kind, speakers, capsys, monkeypatch):
    spoke = []
    for rank, local_rank in ((0, 0), (1, 1), (2, 0)):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("LOCAL_RANK", str(local_rank))
        code, said = ends(kind("a sentence"), capsys, launched=True)
        assert code == kind.exit_code
        spoke += [(rank, local_rank)] if said else []
    assert spoke == speakers


def test_a_command_of_one_process_speaks_whatever_a_cluster_set(capsys, monkeypatch):
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert ends(RunError("a sentence"), capsys) == (2, "error: a sentence\n")
    with pytest.raises(SystemExit):
        CommandParser().error("wrong")
    assert capsys.readouterr().err == "error: wrong\n"
    with pytest.raises(SystemExit) as end:
        CommandParser(launched=True).error("wrong")
    assert (end.value.code, capsys.readouterr().err) == (2, "")


def test_a_wrong_flag_is_one_sentence_without_a_usage(capsys):
    parser = CommandParser(description="many flags")
    parser.add_argument("--epochs", type=int)
    with pytest.raises(SystemExit) as end:
        run_command(lambda argv: parser.parse_args(argv) and None, ["--epochs", "ten"])
    assert end.value.code == 2
    assert capsys.readouterr().err == "error: argument --epochs: invalid int value: 'ten'\n"
    assert isinstance(parser, argparse.ArgumentParser)


# Loader workers


class Broken(Dataset):
    def __init__(self, error):
        self.error = error

    def __len__(self):
        return 4

    def __getitem__(self, index):
        try:
            raise KeyError("what came before")
        except KeyError:
            raise self.error from None


def load(error):
    return lambda argv: list(DataLoader(Broken(error), num_workers=1)) and None


@pytest.mark.parametrize(
    "sentence", ["cats/a: b.png (sample 3): is not an image", "two\nlines: Error: here", "ImageDecodeError: twice"]
)
def test_a_workers_error_is_its_sentence(sentence, capsys):
    assert run_command(load(ImageDecodeError(sentence)), []) == 2
    assert capsys.readouterr().err == f"error: {' '.join(sentence.splitlines())}\n"


def test_what_one_ranks_worker_met_that_rank_says(capsys, monkeypatch):
    """Although of such errors rank 0 of a node speaks where all ranks meet them."""
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert run_command(load(DataError("sample 7 of the stream has no label")), [], launched=True) == 2
    assert capsys.readouterr().err == "error: sample 7 of the stream has no label\n"


def test_a_bug_in_a_worker_keeps_its_traceback():
    with pytest.raises(RuntimeError, match="Original Traceback"):
        run_command(load(RuntimeError("a bug")), [], recognize=ending_of)


def test_a_worker_that_died_is_one_sentence(capsys):
    class Dies(Dataset):
        def __len__(self):
            return 4

        def __getitem__(self, index):
            os.kill(os.getpid(), signal.SIGKILL)

    assert run_command(lambda argv: list(DataLoader(Dies(), num_workers=1)) and None, [], recognize=ending_of) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: rank 0: DataLoader worker (pid") and error.count("\n") == 1


# Bugs


@pytest.mark.parametrize(
    "error",
    [
        ValueError("a bug"),
        OSError("a bug"),
        FileNotFoundError(errno.ENOENT, "No such file", "a"),
        RuntimeError("a bug"),
        KeyError("a"),
    ],
    ids=repr,
)
def test_everything_else_keeps_its_traceback(error):
    with pytest.raises(type(error)) as caught:
        run_command(raising(error), [], launched=True, recognize=ending_of)
    assert caught.value is error


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "saved"
    network, _ = build_model("tinynet_e", model_config("tinynet_e", CLASSES, image_size=32), seed=0)
    network.save_pretrained(folder)
    return str(folder)


def judge_a_run(model, folder):
    """What train.py asks before it trains."""
    TrainingPlan(8, 4, 2)
    config = model_config(model, CLASSES, image_size=32)
    check_batch_size(2, config, synchronized=False)
    build_model(model, config, seed=0)
    MetricsLog(folder / "metrics.jsonl").close()


@pytest.mark.parametrize("bug", [ValueError("a bug"), OSError("a bug")], ids=repr)
@pytest.mark.parametrize(
    ("of", "name"),
    [
        (TrainingPlan, "__post_init__"),
        (build, "config_fields"),
        (build, "_keep_head"),
        (TinyNetForImageClassification, "__init__"),
        (metrics.io, "FileIO"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_bug_in_what_judges_a_run_keeps_its_traceback(of, name, bug, saved, monkeypatch, tmp_path):
    """Each of these was one sentence while every ValueError and OSError from there was taken for a user's mistake."""
    assert run_command(lambda argv: judge_a_run(saved, tmp_path), []) == 0

    def broken(*args, **kwargs):
        raise bug

    monkeypatch.setattr(of, name, broken)
    with pytest.raises(type(bug)) as caught:
        run_command(lambda argv: judge_a_run("tinynet_e" if name == "__init__" else saved, tmp_path), [])
    assert caught.value is bug


def test_a_folder_for_a_log_is_a_users_mistake(tmp_path):
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(RunError, match=r"metrics\.jsonl must be a file, and is a folder"):
        MetricsLog(tmp_path / "metrics.jsonl")


def test_a_bug_is_exit_code_1_and_a_traceback():
    code = (
        "import sys\nfrom training.command import run_command\n"
        "def main(argv): raise ValueError('a bug')\nsys.exit(run_command(main, []))"
    )
    answer = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert answer.returncode == 1
    assert answer.stderr.startswith("Traceback") and answer.stderr.endswith("ValueError: a bug\n")


def test_what_stdout_cannot_show_is_escaped(monkeypatch):
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", terminal)
    assert run_command(lambda argv: print("caf\u00e9"), []) == 0
    terminal.flush()
    assert terminal.buffer.getvalue() == b"caf\\xe9\n"


def test_endings_that_are_told_are_one_family():
    assert issubclass(WorkersLost, Ending) and not issubclass(WorkersLost, UserError)
    assert ending_of(ValueError("Connection reset by peer")) is None
    lost = ending_of(torch.distributed.DistBackendError("NCCL: remote process exited or there was a network error"))
    assert str(lost) == "rank 0 ends, because another rank has ended, which says why, or hangs: remote process exited"
    assert (lost.prefix, lost.exit_code) == ("", 2)
