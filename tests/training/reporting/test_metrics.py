import json
import math
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests import launcher
from training.reporting.metrics import MetricsLog, read_metrics, write_atomically, write_summary

ROOT = Path(__file__).parents[3]


def write_step(log: MetricsLog, step: int, loss: float = 1.5) -> None:
    log.log_step(
        step=step,
        epoch=step / 10,
        loss=loss,
        loss_smoothed=loss,
        lr=0.1 / step,
        grad_norm=0.7,
        images_per_s=1234.5,
        data_wait_s=0.01,
    )


def write_epoch(log: MetricsLog, epoch: int) -> None:
    counts = {"top_1_correct": 10 * epoch, "top_5_correct": 40, "n": 65}
    log.log_epoch(
        epoch=epoch,
        step=10 * epoch,
        train_loss=1.5,
        lr=0.1,
        raw=counts,
        ema=None,
        images_per_s=1234.5,
        time_shares={"data": 12.5},
        epoch_s=3.25,
    )


def write_run(log: MetricsLog, first_step: int, last_step: int) -> None:
    for step in range(first_step, last_step + 1):
        write_step(log, step)
        if step % 10 == 0:
            write_epoch(log, step // 10)


def test_what_was_logged_is_read_back_in_order(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    write_run(log, 1, 10)

    records = read_metrics(log.path)  # the log is still open: every line is there as soon as it is written

    assert [record["step"] for record in records] == [*range(1, 11), 10]
    assert records[2] == {
        "kind": "step",
        "step": 3,
        "epoch": 0.3,
        "loss": 1.5,
        "loss_smoothed": 1.5,
        "lr": 0.1 / 3,
        "grad_norm": 0.7,
        "images_per_s": 1234.5,
        "data_wait_s": 0.01,
        "memory_mb": None,
    }
    assert records[-1]["kind"] == "epoch"
    assert records[-1]["raw"] == {"top_1_correct": 10, "top_5_correct": 40, "n": 65}


def test_a_resumed_log_has_the_bytes_of_an_uninterrupted_one(tmp_path):
    whole = MetricsLog(tmp_path / "whole.jsonl")
    write_run(whole, 1, 50)

    killed = MetricsLog(tmp_path / "killed.jsonl")
    write_run(killed, 1, 37)
    killed.close()
    with open(killed.path, "ab") as file:
        file.write(b'{"kind": "step", "step": 38, "lo')
    resumed = MetricsLog(killed.path)
    resumed.truncate_after(30)
    write_run(resumed, 31, 50)

    assert resumed.path.read_bytes() == whole.path.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["killed.jsonl", "whole.jsonl"]


def test_an_epoch_whose_end_is_to_be_done_again_is_forgotten(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    write_run(log, 1, 25)
    log.truncate_after(20, epoch_end_due=True)
    records = [(record["kind"], record["step"]) for record in read_metrics(log.path)]
    assert records == [*(("step", n) for n in range(1, 11)), ("epoch", 10), *(("step", n) for n in range(11, 21))]


def test_a_last_line_cut_at_any_byte_is_passed_over_and_then_overwritten(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    write_run(log, 1, 4)
    log.close()
    whole = log.path.read_bytes()
    start_of_last = whole.rstrip(b"\n").rfind(b"\n") + 1

    for end in range(start_of_last, len(whole)):
        log.path.write_bytes(whole[:end])
        assert [record["step"] for record in read_metrics(log.path)] == [1, 2, 3]
    for end in range(start_of_last, len(whole), 25):
        log.path.write_bytes(whole[:end])
        reopened = MetricsLog(log.path)
        write_step(reopened, 4)
        reopened.close()
        assert log.path.read_bytes() == whole


@pytest.mark.parametrize(
    "damage",
    [b'{"kind": "step", "step": 2, "lo', b"", b"\xff\xfe\x00", b"[1, 2]", b'{"step": 2}', b'{"kind": "step"}'],
)
def test_a_damaged_line_inside_the_log_is_an_error_that_names_it(tmp_path, damage):
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path)
    write_run(log, 1, 3)
    log.close()
    lines = path.read_bytes().split(b"\n")
    lines[1] = damage
    path.write_bytes(b"\n".join(lines))

    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2 is not"):
        read_metrics(path)
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2 is not"):
        MetricsLog(path)
    assert path.read_bytes() == b"\n".join(lines)


def test_a_log_whose_writer_was_killed_is_read_without_gap_or_double(tmp_path):
    path = tmp_path / "metrics.jsonl"
    program = f"""
import itertools
from tests.training.reporting.test_metrics import write_step
from training.reporting.metrics import MetricsLog
log = MetricsLog({str(path)!r})
for step in itertools.count(1):
    write_step(log, step)
    if step == 200:
        print("going", flush=True)
"""
    with subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE) as writer:
        writer.stdout.readline()
        writer.kill()
    assert writer.returncode == -signal.SIGKILL

    MetricsLog(path).truncate_after(150)

    assert [record["step"] for record in read_metrics(path)] == list(range(1, 151))


def test_a_full_disk_is_an_error_and_leaves_whole_files(tmp_path):
    log_path, summary_path = tmp_path / "metrics.jsonl", tmp_path / "summary.json"
    program = f"""
import itertools, resource
from tests.training.reporting.test_metrics import write_step
from training.reporting.metrics import MetricsLog, write_summary
write_summary({str(summary_path)!r}, {{"epochs": 1}})
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
try:
    write_summary({str(summary_path)!r}, {{"text": "x" * 10_000}})
except OSError:
    print("summary refused")
log = MetricsLog({str(log_path)!r})
try:
    for step in itertools.count(1):
        write_step(log, step)
except OSError as error:
    print(error)
"""
    answer = launcher.run(["-c", program])
    assert answer.returncode == 0, answer.stderr

    assert "summary refused" in answer.stdout
    assert "bytes could be written; is the disk full?" in answer.stdout
    assert json.loads(summary_path.read_text()) == {"epochs": 1}
    assert log_path.stat().st_size == 5000
    records = read_metrics(log_path)
    assert [record["step"] for record in records] == list(range(1, len(records) + 1))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.jsonl", "summary.json"]


def test_numbers_that_are_not_finite_are_null_and_named(tmp_path):
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    log = MetricsLog(tmp_path / "metrics.jsonl")
    returned = log.log_step(
        step=1,
        epoch=0.1,
        loss=math.nan,
        loss_smoothed=2.0,
        lr=0.1,
        grad_norm=math.inf,
        images_per_s=None,
        data_wait_s=0.0,
        norms={"stem": [1.0, -math.inf]},
    )
    record = json.loads(log.path.read_text(), parse_constant=refuse)

    assert math.isnan(returned["loss"])  # what is shown to people must not hide it
    assert record["loss"] is None and record["grad_norm"] is None and record["images_per_s"] is None
    assert record["norms"] == {"stem": [1.0, None]}
    assert record["nonfinite"] == {"loss": "nan", "grad_norm": "inf", "norms.stem.1": "-inf"}


def test_a_summary_is_strict_readable_json_and_replaces_the_old_one(tmp_path):
    path = tmp_path / "summary.json"
    write_summary(path, {"epochs": 1, "best": {"top_1": math.nan}})
    write_summary(path, {"epochs": 2, "best": {"top_1": 71.214}})

    assert path.read_text() == '{\n  "epochs": 2,\n  "best": {\n    "top_1": 71.214\n  }\n}\n'
    assert [path.name for path in tmp_path.iterdir()] == ["summary.json"]


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    (tmp_path / "summary.json").mkdir()  # a folder cannot be replaced by a file
    with pytest.raises(OSError):
        write_atomically(tmp_path / "summary.json", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["summary.json"]
