import errno
import io
import os
from pathlib import Path

import pytest

from training.reporting import metrics as records
from training.reporting.metrics import MetricsLog, write_atomically
from training.run import checkpoint
from training.run.checkpoint import save_checkpoint
from training.run.run_folder import save_model_folder
from training.system.write_errors import errors_name

pytestmark = pytest.mark.fault("08 disk full")


def full(*args: object, **kwargs: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # as write and fsync raise it


class Unwritable:
    """A network and an image processor for which the disk has no room."""

    save_pretrained = staticmethod(full)


@pytest.mark.parametrize("what", ["checkpoint", "file", "log", "model"])
def test_a_full_disk_is_named(what, tmp_path, monkeypatch):
    path = tmp_path / "target"
    log = MetricsLog(tmp_path / "metrics.jsonl")
    monkeypatch.setattr(checkpoint.os, "fsync", full)
    monkeypatch.setattr(records.os, "fsync", full)
    with pytest.raises(OSError) as caught:
        if what == "checkpoint":
            save_checkpoint(path, 1, {}, {})
        elif what == "file":
            write_atomically(path, b"text")
        elif what == "log":
            path = log.path
            log.sync()
        else:
            save_model_folder(path, Unwritable(), Unwritable())
    log.close()
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(path))
    assert str(path) in str(caught.value)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device of Linux that is always full")
def test_a_record_that_finds_no_room_names_the_log(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.close()
    log._file = io.FileIO("/dev/full", "a")
    with pytest.raises(OSError) as caught:
        log._append({"kind": "step", "step": 1})
    log.close()
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(log.path))


def test_a_name_that_is_there_stays():
    with pytest.raises(FileNotFoundError, match="missing"), errors_name("other"):
        Path("missing").read_bytes()
