"""What people see while a run trains: a progress bar for the whole run, a table row per epoch, where the time goes."""

import math
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TextIO

from tqdm import tqdm

from training.evaluation.metrics import TABLE, TOP_1, shown_in
from training.reporting.metrics import goodness

PARTS = ("data", "forward_backward", "optimizer", "evaluation", "saving", "other")
DATA_WAIT_LIMIT_PERCENT = 20.0
LINES_BETWEEN_HEADERS = 20
LEFT = [("epoch", 7), ("loss", 6), ("lr", 7), (f"{TOP_1.label} raw", 9), ("EMA", 7)]  # headings, widths
RIGHT = [("images/s", 8), ("wait", 5), ("time", 7)]


@dataclass
class SmoothedLoss:
    """Exponential average with bias correction: the first value is the first loss, not a tenth of it.

    Its fields are plain numbers and all of its state: saved with a checkpoint, they let a resumed run smooth on.
    A loss that is not finite stays visible: it makes the average NaN for good.
    """

    decay: float = 0.98
    average: float = 0.0
    updates: int = 0

    def update(self, loss: float) -> float:
        """Take in `loss` and return the smoothed loss."""
        self.average = self.decay * self.average + (1 - self.decay) * loss
        self.updates += 1
        return self.value

    @property
    def value(self) -> float:
        return self.average / (1 - self.decay**self.updates) if self.updates else math.nan


class StepTimer:
    """Attributes wall time to the parts of a run: `with timer("data"): batch = next(batches)`.

    Each moment belongs to one part, the innermost one entered, or to "other"; so the shares add up to 100 %.
    The device is not synchronized, which would slow the run to measure it: on CUDA a part's time is what the host
    spent there, and device work shows up where the host waits for it, usually where the loss is read.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._since = clock()
        self._open_parts = ["other"]
        self._seconds = dict.fromkeys(PARTS, 0.0)

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        if part not in PARTS:
            raise ValueError(f"there is no part of a run called {part!r}; the parts are {', '.join(PARTS)}")
        self._attribute()
        self._open_parts.append(part)
        try:
            yield
        finally:
            self._attribute()
            self._open_parts.pop()

    def seconds(self) -> dict[str, float]:
        """Seconds by part since the timer was made, up to this moment."""
        self._attribute()
        return dict(self._seconds)

    def shares(self, since: Mapping[str, float] | None = None) -> dict[str, float]:
        """Percent of wall time by part, since the timer was made or since `since`, an earlier answer of `seconds`."""
        spent = {part: seconds - (since[part] if since else 0.0) for part, seconds in self.seconds().items()}
        total = sum(spent.values())
        return {part: 100.0 * seconds / total if total else 0.0 for part, seconds in spent.items()}

    def _attribute(self) -> None:
        now = self._clock()
        self._seconds[self._open_parts[-1]] += now - self._since
        self._since = now


def advice(shares: Mapping[str, float]) -> str | None:
    """What to do about the shares of `StepTimer.shares`: a sentence when data is the limit, else None."""
    if shares["data"] <= DATA_WAIT_LIMIT_PERCENT:
        return None
    return (
        f"{shares['data']:.0f} % of the time went into waiting for data: raise --num_workers (up to the number of CPU "
        "cores), install simplejpeg (decodes JPEGs faster), or store the images smaller (shorter side 256 pixels)."
    )


def format_duration(seconds: float) -> str:
    """`0:04:12`, `23:59:59`, and from a day on without seconds: `1 d 06:12`."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    return f"{days} d {hour:02}:{minute:02}" if days else f"{hour}:{minute:02}:{second:02}"


def format_speed(images_per_s: float | None) -> str:
    """`5,210`, or `-` where it was not measured."""
    return "-" if images_per_s is None else f"{images_per_s:,.0f}"


class TrainingDisplay:
    """Progress of a whole run: a bar on a terminal, plain lines elsewhere (a file, a batch system's log, a notebook).

    Args:
        total_steps: optimizer steps of the whole run.
        steps_per_epoch: optimizer steps of one epoch.
        images_per_step: the global batch.
        epochs: epochs of the whole run.
        start_step: steps done before this process began; above 0 after a resume.
        stream: where to write; standard output when None.
        enabled: False prints nothing (every rank but 0, or on request), while the rates are still worked out.
        line_every_s: seconds between the lines that stand for the bar where there is no terminal.
        clock: seconds, from any origin.
    """

    def __init__(
        self,
        total_steps: int,
        steps_per_epoch: int,
        images_per_step: int,
        epochs: int,
        start_step: int = 0,
        *,
        stream: TextIO | None = None,
        enabled: bool = True,
        line_every_s: float = 30.0,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._total_steps = total_steps
        self._steps_per_epoch = steps_per_epoch
        self._images_per_step = images_per_step
        self._epochs = epochs
        self._stream = sys.stdout if stream is None else stream
        self._enabled = enabled
        self._line_every_s = line_every_s
        self._clock = clock

        self._step = start_step
        self._step_at = clock()
        self._epochs_done = start_step // steps_per_epoch
        self._epochs_seen = 0
        self._between_epochs_s = 0.0
        self._evaluation_seen = False
        # (step, seconds of training): the rate of the last reports, so that a compilation at the start is forgotten.
        self._reports = deque([(start_step, self._step_at)], maxlen=50)

        self._figures = ""
        self._line_at = -math.inf
        self._lines_since_header: int | None = None
        self._bar = None
        if enabled and self._stream.isatty():
            self._bar = tqdm(
                total=total_steps,
                initial=start_step,
                file=self._stream,
                dynamic_ncols=True,
                bar_format="{percentage:3.0f}%|{bar}| {desc}",
            )

    @property
    def images_per_s(self) -> float | None:
        """Images per second over the last reports, evaluation left out; None before the first."""
        seconds_per_step = self._seconds_per_step()
        return self._images_per_step / seconds_per_step if seconds_per_step else None

    @property
    def seconds_left(self) -> float | None:
        """Estimate for the rest of the run: its steps at the present rate, and for each epoch the mean time that
        evaluation and saving have taken so far. None before the first report."""
        seconds_per_step = self._seconds_per_step()
        if seconds_per_step is None:
            return None
        seconds_between_epochs = self._between_epochs_s / self._epochs_seen if self._epochs_seen else 0.0
        steps_left, epochs_left = self._total_steps - self._step, self._epochs - self._epochs_done
        return steps_left * seconds_per_step + epochs_left * seconds_between_epochs

    def update(self, step: int, *, loss: float, lr: float) -> None:
        """Report that `step` optimizer steps are done; not every step needs a report. `loss` is the smoothed one, NaN
        before the first was read from the device."""
        self._step = step
        self._step_at = self._clock()
        self._reports.append((step, self._step_at - self._between_epochs_s))
        if not self._enabled:
            return
        self._figures = f"lr {lr:.2g}" if math.isnan(loss) else f"loss {loss:.3g}, lr {lr:.2g}"
        if self._bar is not None:
            self._bar.set_description_str(self._progress(), refresh=False)
            self._bar.update(step - self._bar.n)
        elif self._step_at - self._line_at >= self._line_every_s:
            self._line_at = self._step_at
            percent = 100.0 * step / self._total_steps
            self.message(f"{percent:3.0f} %, step {step:,}/{self._total_steps:,}, {self._progress()}")

    def epoch(self, record: Mapping[str, Any], *, is_best: bool) -> None:
        """Print the table row of an epoch, `record` being what `MetricsLog.log_epoch` returned.

        The time since the last report counts as spent between epochs: evaluation and saving."""
        now = self._clock()
        self._between_epochs_s += now - self._step_at
        self._step_at = now
        self._epochs_seen += 1
        self._epochs_done = record["epoch"]
        self._evaluation_seen |= bool(record["raw"] or record["ema"])
        if not self._enabled:
            return
        if self._bar is not None:
            self._bar.set_description_str(self._progress(), refresh=False)
        if self._lines_since_header is None:
            self.message(_legend())
        if self._lines_since_header is None or self._lines_since_header >= LINES_BETWEEN_HEADERS:
            self.message(_table_line(heading for heading, _ in _columns()))
            self._lines_since_header = 0
        self.message(_table_line(_row(record, self._epochs, is_best)))

    def message(self, text: str) -> None:
        """Print a line of its own, above the bar."""
        if not self._enabled:
            return
        if self._bar is not None:
            self._bar.write(text, file=self._stream)
        else:
            print(text, file=self._stream, flush=True)
        if self._lines_since_header is not None:
            self._lines_since_header += 1

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()

    def _seconds_per_step(self) -> float | None:
        (first_step, first_s), (last_step, last_s) = self._reports[0], self._reports[-1]
        return (last_s - first_s) / (last_step - first_step) if last_step > first_step else None

    def _progress(self) -> str:
        epoch = max(0, self._step - 1) // self._steps_per_epoch + 1
        # Before the first evaluation nobody knows how long one takes, so the time left is a lower bound.
        bound = "" if self._evaluation_seen else ">"
        left = "" if self.seconds_left is None else f", {bound}{format_duration(self.seconds_left)} left"
        return f"epoch {epoch}/{self._epochs}{left}, {format_speed(self.images_per_s)} images/s, {self._figures}"


def _columns() -> list[tuple[str, int]]:
    """Headings of the table and their widths: 79 columns in all, as long as nobody declares another metric."""
    labels = [metric.label for metric in shown_in(TABLE) if metric is not TOP_1]
    return [*LEFT, *((label, max(6, len(label))) for label in labels), *RIGHT]


def _legend() -> str:
    labels = [metric.label for metric in shown_in(TABLE) if metric is not TOP_1]
    return (
        f"* best so far; EMA: {TOP_1.label} of the EMA weights; {', '.join(labels)}: of the better weights; "
        "wait: % of the time waiting for data"
    )


def _row(record: Mapping[str, Any], epochs: int, is_best: bool) -> list[str]:
    evaluated = [counts for counts in (record["raw"], record["ema"]) if counts]
    better = max(evaluated, key=goodness, default=None)
    ema_is_better = better is record["ema"]
    return [
        f"{record['epoch']}/{epochs}",
        f"{record['train_loss']:.3f}",
        f"{record['lr']:.2g}",
        _cell(TOP_1.number(record["raw"])) + ("*" if is_best and not ema_is_better else " "),
        _cell(TOP_1.number(record["ema"])) + ("*" if is_best and ema_is_better else " "),
        *(_cell(metric.number(better)) for metric in shown_in(TABLE) if metric is not TOP_1),
        format_speed(record["images_per_s"]),
        f"{record['time_shares']['data']:.1f}",
        format_duration(record["epoch_s"]),
    ]


def _cell(number: float) -> str:
    return "-" if math.isnan(number) else f"{number:.2f}"


def _table_line(cells: Iterable[str]) -> str:
    return " ".join(f"{cell:>{width}}" for cell, (_, width) in zip(cells, _columns(), strict=True)).rstrip()
