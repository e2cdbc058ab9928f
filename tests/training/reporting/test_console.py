import fcntl
import io
import math
import os
import struct
import termios
import threading

import pytest

from training.reporting.console import SmoothedLoss, StepTimer, TrainingDisplay, advice, format_duration


class Clock:
    """Time that passes only when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def wait(self, seconds: float) -> None:
        self.now += seconds


def epoch_record(epoch: int, top_1: tuple[int, int] | None = (300, 200), **changes) -> dict:
    raw, ema = (None, None)
    if top_1:
        raw, ema = [{"top_1_correct": k, "top_5_correct": k + 100, "n": 1000, "macro_f1": 0.25} for k in top_1]
    record = {
        "kind": "epoch",
        "epoch": epoch,
        "step": 100 * epoch,
        "train_loss": 2.34567,
        "lr": 0.0465,
        "raw": raw,
        "ema": ema,
        "images_per_s": 5210.4,
        "time_shares": {"data": 3.14},
        "epoch_s": 252.0,
    }
    return record | changes


def run(display: TrainingDisplay, clock: Clock, epochs: int, steps_per_epoch: int = 100, start_step: int = 0) -> None:
    """0.1 s a step and 5 s an evaluation."""
    for step in range(start_step + 1, epochs * steps_per_epoch + 1):
        clock.wait(0.1)
        display.update(step, loss=6.9, lr=0.0465)
        if step % steps_per_epoch == 0:
            clock.wait(5.0)
            display.epoch(epoch_record(step // steps_per_epoch), is_best=True)


def screen_of(display_and_run, columns: int) -> list[str]:
    """What a real pseudo-terminal of that width shows in the end, line by line."""
    master, slave = os.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    received = bytearray()

    def read() -> None:
        while chunk := os.read(master, 4096):
            received.extend(chunk)
            if received.endswith(b"END\r\n"):
                return

    reader = threading.Thread(target=read)
    reader.start()
    with open(slave, "w", encoding="utf-8") as stream:
        display_and_run(stream)
        stream.write("END\n")
        stream.flush()
        reader.join(timeout=20)
    os.close(master)

    screen = []
    for line in received.decode().replace("\r\n", "\n").split("\n"):
        shown = ""
        for part in line.split("\r"):  # a carriage return writes over what stands there
            shown = part + shown[len(part) :]
        screen.append(shown.rstrip())
    assert screen[-2:] == ["END", ""]
    return screen[:-2]


def test_time_is_attributed_to_the_innermost_part():
    clock = Clock()
    timer = StepTimer(clock)
    with timer("data"):
        clock.wait(1)
    with timer("forward_backward"):
        clock.wait(4)
    clock.wait(0.5)
    with timer("evaluation"):
        clock.wait(2)
        with timer("saving"):
            clock.wait(2)
        clock.wait(0.5)

    seconds = {"data": 1, "forward_backward": 4, "optimizer": 0, "evaluation": 2.5, "saving": 2, "other": 0.5}
    assert timer.seconds() == seconds
    assert timer.shares() == {part: 10.0 * value for part, value in seconds.items()}


def test_shares_since_an_earlier_moment_count_only_what_followed():
    clock = Clock()
    timer = StepTimer(clock)
    with timer("data"):
        clock.wait(100)
    epoch_start = timer.seconds()
    with timer("data"):
        clock.wait(1)
    with timer("optimizer"):
        clock.wait(3)

    assert timer.shares(since=epoch_start)["data"] == 25.0
    assert timer.shares(since=epoch_start)["optimizer"] == 75.0
    assert sum(timer.shares().values()) == pytest.approx(100.0)


def test_a_part_that_fails_is_closed():
    clock = Clock()
    timer = StepTimer(clock)
    with pytest.raises(StopIteration), timer("data"):
        clock.wait(2)
        next(iter(()))
    clock.wait(3)
    assert timer.seconds()["data"] == 2.0
    assert timer.seconds()["other"] == 3.0


def test_an_unknown_part_is_refused_and_no_time_gives_no_share():
    clock = Clock()
    timer = StepTimer(clock)
    with pytest.raises(ValueError, match=r"'date'; the parts are data, forward_backward"), timer("date"):
        pass
    assert set(timer.shares().values()) == {0.0}


def test_advice_comes_only_when_data_is_the_limit():
    assert advice({"data": 20.0}) is None
    sentence = advice({"data": 34.6})
    assert sentence.startswith("35 % of the time")
    for remedy in ("--num_workers", "simplejpeg", "smaller"):
        assert remedy in sentence


def test_smoothed_loss_is_the_bias_corrected_average():
    losses = [7.0, 5.0, 6.0, 1.0]
    smoothed = SmoothedLoss(decay=0.9)
    assert math.isnan(smoothed.value)
    assert smoothed.update(losses[0]) == pytest.approx(7.0)
    for loss in losses[1:]:
        smoothed.update(loss)
    weights = [0.9**age for age in (3, 2, 1, 0)]
    expected = sum(weight * loss for weight, loss in zip(weights, losses, strict=True)) / sum(weights)
    assert smoothed.value == pytest.approx(expected, rel=1e-12)

    continued = SmoothedLoss(decay=0.9, average=smoothed.average, updates=smoothed.updates)
    assert continued.update(2.0) == smoothed.update(2.0)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0:00:00"), (252, "0:04:12"), (86_399.4, "23:59:59"), (86_399.6, "1 d 00:00"), (108_760, "1 d 06:12")],
)
def test_durations_read_like_a_clock(seconds, text):
    assert format_duration(seconds) == text


def test_time_left_counts_the_steps_and_the_evaluations_to_come():
    clock = Clock()
    display = TrainingDisplay(1000, 100, 32, 10, stream=io.StringIO(), enabled=False, clock=clock)
    assert display.seconds_left is None and display.images_per_s is None

    run(display, clock, epochs=1)
    assert display.images_per_s == pytest.approx(320.0)
    assert display.seconds_left == pytest.approx(900 * 0.1 + 9 * 5.0)

    run(display, clock, epochs=10, start_step=100)
    assert display.images_per_s == pytest.approx(320.0)  # evaluations do not slow the training rate
    assert display.seconds_left == pytest.approx(0.0)


def test_a_resumed_run_counts_only_its_own_steps():
    clock = Clock()
    display = TrainingDisplay(1000, 100, 32, 10, start_step=850, stream=io.StringIO(), enabled=False, clock=clock)
    run(display, clock, epochs=9, start_step=850)
    assert display.images_per_s == pytest.approx(320.0)
    assert display.seconds_left == pytest.approx(100 * 0.1 + 5.0)


def test_a_slow_start_is_forgotten():
    clock = Clock()
    display = TrainingDisplay(1000, 1000, 32, 1, stream=io.StringIO(), enabled=False, clock=clock)
    clock.wait(60.0)  # compilation
    run(display, clock, epochs=1, steps_per_epoch=1000)
    assert display.images_per_s == pytest.approx(320.0)


def test_without_a_terminal_lines_come_at_intervals_and_hold_no_control_characters():
    clock, stream = Clock(), io.StringIO()
    display = TrainingDisplay(1000, 100, 32, 10, stream=stream, line_every_s=30.0, clock=clock)
    run(display, clock, epochs=10)
    display.close()

    text = stream.getvalue()
    assert all(character.isprintable() or character == "\n" for character in text)
    lines = [line for line in text.splitlines() if "images/s, loss" in line]
    first = "  0 %, step 1/1,000, epoch 1/10, >0:01:40 left, 320 images/s, loss 6.9, lr 0.046"
    assert lines[0] == first  # at once, so that people see it runs
    # 150 s in all, lines at least 30 s apart.
    assert len(lines) == 5
    later = " 20 %, step 201/1,000, epoch 3/10, 0:02:00 left, 320 images/s, loss 6.9, lr 0.046"
    assert lines[1] == later


def test_each_epoch_is_a_row_under_its_headings():
    stream = io.StringIO()
    display = TrainingDisplay(45_000, 100, 32, 450, stream=stream)
    display.epoch(epoch_record(1), is_best=True)
    display.epoch(epoch_record(2, (300, 712)), is_best=True)
    display.epoch(epoch_record(3, (301, 711)), is_best=False)
    display.epoch(epoch_record(4, None, images_per_s=None), is_best=False)
    display.epoch(epoch_record(450, (900, 900), train_loss=math.nan, lr=0.000161271), is_best=False)

    legend, *table = stream.getvalue().splitlines()
    assert legend.startswith("* best so far")
    assert table == [
        "  epoch   loss      lr top-1 raw     EMA  top-5 macro-F1 images/s  wait    time",
        "  1/450  2.346   0.046    30.00*  20.00   40.00    25.00    5,210   3.1 0:04:12",
        "  2/450  2.346   0.046    30.00   71.20*  81.20    25.00    5,210   3.1 0:04:12",
        "  3/450  2.346   0.046    30.10   71.10   81.10    25.00    5,210   3.1 0:04:12",
        "  4/450  2.346   0.046        -       -       -        -        -   3.1 0:04:12",
        "450/450    nan 0.00016    90.00   90.00  100.00    25.00    5,210   3.1 0:04:12",
    ]
    assert max(map(len, table)) < 80


def test_among_equal_counts_the_smaller_loss_has_the_star():
    """As in train.py: those weights are the ones in best/."""
    counts = {"top_1_correct": 300, "top_5_correct": 900, "n": 1000}
    for raw_loss, ema_loss, row in ((2.5, 2.4, "30.00   30.00* "), (2.4, 2.5, "30.00*  30.00  ")):
        stream = io.StringIO()
        display = TrainingDisplay(100, 100, 32, 1, stream=stream)
        both = {"raw": counts | {"loss": raw_loss}, "ema": counts | {"loss": ema_loss}}
        display.epoch(epoch_record(1, **both), is_best=True)
        assert row in stream.getvalue()


def test_headings_are_never_more_than_a_screen_away():
    stream = io.StringIO()
    display = TrainingDisplay(10_000, 100, 32, 100, stream=stream)
    for epoch in range(1, 101):
        display.message("a line of something else")
        display.epoch(epoch_record(epoch), is_best=False)
    lines = stream.getvalue().splitlines()
    headings = [number for number, line in enumerate(lines) if line.startswith("  epoch   loss")]
    assert len(headings) > 5
    assert max(b - a for a, b in zip(headings, [*headings[1:], len(lines)], strict=True)) <= 24
    assert sum("best so far" in line for line in lines) == 1


def test_the_longest_bar_fits_80_columns():
    def train(stream) -> None:
        clock = Clock()
        display = TrainingDisplay(450 * 1251, 1251, 16_384, 450, start_step=100 * 1251, stream=stream, clock=clock)
        clock.wait(1.0)
        display.update(100 * 1251 + 1, loss=1.23456, lr=0.000161271)
        display.close()

    (bar,) = screen_of(train, 80)
    assert bar.endswith("| epoch 101/450, >5 d 01:37 left, 16,384 images/s, loss 1.23, lr 0.00016")


@pytest.mark.parametrize("columns", [80, 120])
def test_on_a_terminal_the_rows_stand_above_one_bar(columns):
    def train(stream) -> None:
        clock = Clock()
        display = TrainingDisplay(300, 100, 32, 3, stream=stream, clock=clock)
        run(display, clock, epochs=3)
        display.message("Done.")
        display.close()

    screen = screen_of(train, columns)

    assert screen[0].startswith("* best so far")
    assert screen[1] == "  epoch   loss      lr top-1 raw     EMA  top-5 macro-F1 images/s  wait    time"
    assert [line.split()[0] for line in screen[2:5]] == ["1/3", "2/3", "3/3"]
    assert screen[5] == "Done."
    (bar,) = screen[6:]
    assert bar.startswith("100%|")
    assert bar.endswith("| epoch 3/3, 0:00:00 left, 320 images/s, loss 6.9, lr 0.046")
    assert len(bar) <= columns


def test_a_disabled_display_prints_nothing():
    def train(stream) -> None:
        clock = Clock()
        display = TrainingDisplay(300, 100, 32, 3, stream=stream, enabled=False, clock=clock)
        run(display, clock, epochs=3)
        display.message("Done.")
        display.close()

    assert screen_of(train, 80) == []
