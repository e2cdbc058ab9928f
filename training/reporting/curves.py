"""Draws `curves.png`, the plots of one run: loss, accuracy, learning rate and speed over epochs."""

import io
import itertools
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import matplotlib.style
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.lines import Line2D

from training.evaluation.metrics import CURVES, TOP_1, Metric, shown_in
from training.reporting.console import DATA_WAIT_LIMIT_PERCENT
from training.reporting.metrics import Record, goodness, read_metrics, write_atomically

RAW, EMA, BEST, LR, SPEED, ALARM = "tab:blue", "tab:orange", "black", "tab:green", "tab:purple", "tab:red"
OTHER_METRICS: tuple[Literal["dotted", "dashdot", "dashed"], ...] = ("dotted", "dashdot", "dashed")  # line styles
LITERAL_TEXT = {"text.parse_math": False}  # names of runs, models and classes may hold a "$"
STYLE = {
    **LITERAL_TEXT,
    "font.size": 13.0,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.markersize": 5.0,
}


def save_curves(
    metrics_path: str | os.PathLike[str], png_path: str | os.PathLike[str], *, is_staircase: bool = False
) -> None:
    """Draw the run of `metrics_path` (a `metrics.jsonl`, finished or not) into `png_path`, 1600 x 1000 pixels.

    With `is_staircase` the learning rate jumps from record to record and has no slopes.

    The same records give the same pixels, whatever the user's matplotlib settings are; pyplot is not used.

    Raises:
        OSError: the metrics cannot be read, or the plot cannot be written.
        RunError: the metrics are damaged, see `read_metrics`.
    """
    records = read_metrics(metrics_path)
    steps = [record for record in records if record["kind"] == "step"]
    epochs = [record for record in records if record["kind"] == "epoch"]
    name = Path(metrics_path).resolve().parent.name
    done = max((record["epoch"] for record in records), default=0)
    with four_panels(f"{name}, epoch {round(done, 2):g}") as (figure, (loss, accuracy, lr, speed)):
        _draw_loss(loss, steps)
        _draw_accuracy(accuracy, epochs)
        _draw_lr(lr, steps, is_staircase)
        _draw_speed(speed, steps, epochs)
        speed.set_xlim(left=0)
        write_png(figure, png_path)


@contextmanager
def four_panels(title: str) -> Iterator[tuple[Figure, Sequence[Axes]]]:
    """An empty figure of 1600 x 1000 pixels with four panels over epochs, to be filled and written inside the block:
    loss, top-1 accuracy, learning rate, images/s."""
    with matplotlib.style.context(["default", STYLE]):
        figure = Figure(figsize=(16, 10), dpi=100, layout="constrained")
        FigureCanvasAgg(figure)
        figure.suptitle(title, fontsize=18)
        panels = figure.subplots(2, 2, sharex=True).flatten()
        headings = ("Training loss", "Validation accuracy", "Learning rate", "Training speed")
        labels = ("loss per image", f"{TOP_1.label} (%)", "learning rate", "images/s")
        for axes, heading, label in zip(panels, headings, labels, strict=True):
            axes.set_title(heading, pad=32)  # room for the legend
            axes.set(xlabel="epochs", ylabel=label)
            axes.tick_params(labelbottom=True)
        yield figure, panels


def column(records: Sequence[Record], *keys: str) -> list[float]:
    """One number a record, `keys` leading into nested records; NaN, which matplotlib leaves out, for a null."""
    values = []
    for record in records:
        value: Any = record
        for key in keys:
            value = (value or {}).get(key)
        values.append(math.nan if value is None else float(value))
    return values


def metric_curve(epochs: Sequence[Record], weights: str, metric: Metric[Any]) -> tuple[list[float], list[float]]:
    """Epochs whose records have `metric` of `weights` ("raw" or "ema"), and its values in percent."""
    points = [(record["epoch"], metric.number(record[weights])) for record in epochs]
    points = [(epoch, value) for epoch, value in points if not math.isnan(value)]
    return [float(epoch) for epoch, _ in points], [value for _, value in points]


def legend(axes: Axes, handles: Sequence[Artist]) -> None:
    """A legend between a panel's title and its curves, where it hides none of them."""
    axes.legend(
        handles=handles,
        ncols=len(handles),
        frameon=False,
        loc="lower center",
        bbox_to_anchor=(0.5, 0.99),
        borderaxespad=0.0,
    )


def start_at_zero(axes: Axes) -> None:
    """Let the vertical axis begin at 0, with room above the highest curve."""
    axes.update_datalim([(0, 0)], updatex=False)
    axes.margins(y=0.1)
    axes.set_ylim(bottom=0)


def marker(points: Sequence[float]) -> str | None:
    """A dot on each point as long as the dots stay apart; a single point would be no line at all."""
    return "o" if len(points) <= 40 else None


def write_png(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write `figure` as a PNG, whole or not at all: it may be looked at while the run redraws it."""
    image = io.BytesIO()
    figure.savefig(image, format="png")
    write_atomically(path, image.getvalue())


def note(axes: Axes, text: str) -> None:
    """Say in the middle of an empty panel why it is empty."""
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color="gray")


def _draw_loss(axes: Axes, steps: Sequence[Record]) -> None:
    if not steps:
        note(axes, "no step recorded yet")
        return
    x, smoothed = column(steps, "epoch"), column(steps, "loss_smoothed")
    axes.plot(x, column(steps, "loss"), color=RAW, alpha=0.25, linewidth=1, label="each record")
    axes.plot(x, smoothed, color=RAW, linewidth=2.5, marker=marker(x), label="smoothed")
    broken = [record["epoch"] for record in steps if "loss" in record.get("nonfinite", {})]
    if broken:
        bottom = axes.get_xaxis_transform()
        axes.plot(broken, [0.02] * len(broken), "x", color=ALARM, transform=bottom, label="not finite")
    legend(axes, axes.get_lines())


def _draw_accuracy(axes: Axes, epochs: Sequence[Record]) -> None:
    points = []
    for weights, name, color in (("raw", "raw", RAW), ("ema", "EMA", EMA)):
        x, top_1 = metric_curve(epochs, weights, TOP_1)
        if x:
            axes.plot(x, top_1, color=color, linewidth=2, marker=marker(x), label=f"{name} weights")
        points += [(record[weights], record["epoch"], name) for record in epochs if record[weights]]
    if not points:
        note(axes, "no evaluation yet")
        return
    counts, epoch, name = best_point(points)
    best = TOP_1.number(counts)
    text = f"best {best:.3f} % ({name}, epoch {epoch:g})"
    axes.plot([epoch], [best], "o", color=BEST, fillstyle="none", markersize=14, label=text)
    legend(axes, axes.get_lines())
    _draw_other_metrics(axes, epochs)


def _draw_other_metrics(axes: Axes, epochs: Sequence[Record]) -> None:
    """In the colors of the weights; the style of the line tells the metrics apart, in a legend within the panel."""
    handles: list[Artist] = []
    others = [metric for metric in shown_in(CURVES) if metric is not TOP_1]
    for metric, style in zip(others, itertools.cycle(OTHER_METRICS), strict=False):
        curves = [(*metric_curve(epochs, weights, metric), color) for weights, color in (("raw", RAW), ("ema", EMA))]
        for x, values, color in curves:
            if x:
                axes.plot(x, values, color=color, linestyle=style, marker=marker(x), markersize=3)
        if any(x for x, _, _ in curves):  # a run from before the metric was declared has none
            handles.append(Line2D([], [], color="gray", linestyle=style, label=metric.label))
    if handles:
        labels = [str(handle.get_label()) for handle in handles]
        axes.set_ylabel(f"{', '.join([TOP_1.label, *labels])} (%)")
        axes.add_artist(Legend(axes, handles, labels, loc="lower right"))


def best_point(points: Sequence[tuple[Record, float, str]]) -> tuple[Record, float, str]:
    """The (counts, epoch, name) whose weights train.py keeps."""
    return max(points, key=lambda point: goodness(point[0]))


def lr_drawstyle(is_staircase: bool) -> str:
    """matplotlib's name for how the records of a learning rate are joined. A record's rate holds up to its step."""
    return "steps-pre" if is_staircase else "default"


def _draw_lr(axes: Axes, steps: Sequence[Record], is_staircase: bool) -> None:
    if not steps:
        note(axes, "no step recorded yet")
        return
    x, lr = column(steps, "epoch"), column(steps, "lr")
    style = lr_drawstyle(is_staircase)
    axes.plot(x, lr, color=LR, linewidth=2, marker=marker(x), label=f"peak {max(lr):.5g}", drawstyle=style)
    start_at_zero(axes)
    legend(axes, axes.get_lines())


def _draw_speed(axes: Axes, steps: Sequence[Record], epochs: Sequence[Record]) -> None:
    """Images/s against the left edge, the share of time spent waiting for data against the right one."""
    if not steps:
        note(axes, "no step recorded yet")
        return
    axes.plot(column(steps, "epoch"), column(steps, "images_per_s"), color=SPEED, alpha=0.35, linewidth=1)
    x = column(epochs, "epoch")
    axes.plot(x, column(epochs, "images_per_s"), color=SPEED, linewidth=2, marker=marker(x), label="images/s")
    start_at_zero(axes)

    waiting = axes.twinx()
    waiting.grid(False)
    waiting.spines.right.set_visible(True)
    waiting.set(ylabel="waiting for data (% of the time)", ylim=(0, 100))
    waiting.plot(x, column(epochs, "time_shares", "data"), color=ALARM, marker=marker(x), label="waiting for data")
    limit = f"too much, above {DATA_WAIT_LIMIT_PERCENT:g} %"
    waiting.axhline(DATA_WAIT_LIMIT_PERCENT, color=ALARM, linestyle=":", linewidth=1, label=limit)
    legend(axes, [axes.get_lines()[1], *waiting.get_lines()])
