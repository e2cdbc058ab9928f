"""Compares finished runs: a table, the recipe keys in which they differ, and all their curves in one plot.

Usage: python -m training.compare runs/a runs/b [--output compare.png]
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.lines import Line2D

from training.command import CommandParser, run_command
from training.errors import RunError
from training.evaluation.metrics import TABLE, TOP_1, shown_in
from training.reporting.console import format_duration, format_speed
from training.reporting.curves import (
    column,
    four_panels,
    legend,
    lr_drawstyle,
    marker,
    metric_curve,
    start_at_zero,
    write_png,
)
from training.reporting.metrics import Record, goodness
from training.reporting.text_table import aligned
from training.run.finished_run import FinishedRun, damaged, read_finished_run

SUMMARY_KEYS = ("model", "dataset", "num_validation", "epochs", "images_per_s", "elapsed_s")
BOOKKEEPING = ("run_name", "output_dir", "resume")  # recipe keys that say where a run lies, not what it did


@dataclass(frozen=True)
class Run(FinishedRun):
    """A finished run, and what the table and the legend call it."""

    name: str


def load_run(folder: Path, name: str) -> Run:
    """
    Raises:
        FinishedRunError: the folder holds no finished run, or a file of it is missing or damaged.
    """
    run = Run(**vars(read_finished_run(folder)), name=name)
    if missing := [key for key in SUMMARY_KEYS if key not in run.summary]:
        raise damaged(folder / "summary.json", f"it has no {', '.join(missing)}")
    return run


def comparison(runs: Sequence[Run]) -> str:
    """The table of `runs`, one a line, and under it the recipe keys in which they differ."""
    best, others = f"best {TOP_1.label}", [metric for metric in shown_in(TABLE) if metric is not TOP_1]
    labels = [metric.label for metric in others]
    rows = [("run", "model", f"{best}, raw", f"{best}, EMA", *labels, "epochs", "images/s", "time")]
    rows += [
        (
            run.name,
            run.summary["model"],
            TOP_1.text(_best(run.epochs, "raw")),
            TOP_1.text(_best(run.epochs, "ema")),
            *(metric.text(_best(run.epochs, "raw", "ema")) for metric in others),  # of the weights in best/
            str(run.summary["epochs"]),
            format_speed(run.summary["images_per_s"]),
            format_duration(run.summary["elapsed_s"]),
        )
        for run in runs
    ]
    text = "\n".join(aligned(rows))
    if len({(run.summary["dataset"], run.summary["num_validation"]) for run in runs}) > 1:
        text += "\n\nThe runs were not evaluated on the same images, so their accuracies do not compare."
    for names in _equal_runs(runs):
        text += f"\n\nThe losses of {', '.join(names[:-1])} and {names[-1]} are equal at every step."
    differences = _recipe_differences(runs)
    if differences:
        text += "\n\n" + "\n".join(aligned([("recipe", *(run.name for run in runs)), *differences]))
    elif len(runs) > 1:
        text += "\n\nThe recipes are the same."
    return text


def save_comparison(runs: Sequence[Run], png_path: Path) -> None:
    """Draw `runs` into one PNG, a color each: smoothed loss, top-1, learning rate, images/s.

    A curve is wider for each later one that it coincides with, so that both can be seen.
    """
    colors = [f"C{index}" for index in range(len(runs))]
    styles = [lr_drawstyle(run.recipe.get("schedule") == "staircase") for run in runs]
    curves = {
        "loss": [(column(run.steps, "epoch"), column(run.steps, "loss_smoothed")) for run in runs],
        "lr": [(column(run.steps, "epoch"), column(run.steps, "lr")) for run in runs],
        "speed": [(column(run.epochs, "epoch"), column(run.epochs, "images_per_s")) for run in runs],
        "raw": [metric_curve(run.epochs, "raw", TOP_1) for run in runs],
        "ema": [metric_curve(run.epochs, "ema", TOP_1) for run in runs],
    }
    with four_panels(f"{len(runs)} runs") as (figure, (loss, accuracy, lr, speed)):
        for name, axes in (("loss", loss), ("lr", lr), ("speed", speed), ("raw", accuracy), ("ema", accuracy)):
            widths = _line_widths(curves[name])
            for (x, y), width, color, style in zip(curves[name], widths, colors, styles, strict=True):
                line: dict[str, Any] = {
                    "color": color,
                    "linewidth": width,
                    "linestyle": "--" if name == "raw" else "-",
                }
                if name == "lr":
                    line["drawstyle"] = style
                elif name != "loss":
                    line |= {"marker": marker(x), "markersize": width + 3}
                axes.plot(x, y, **line)
        start_at_zero(lr)
        start_at_zero(speed)
        speed.set_xlim(left=0)
        raw = Line2D([], [], color="gray", linestyle="--", label="raw weights")
        ema = Line2D([], [], color="gray", linestyle="-", label="EMA weights")
        legend(accuracy, [raw, ema])
        names = figure.legend(
            handles=[Line2D([], [], color=color, linewidth=2, label="run") for color in colors],
            loc="outside lower center",
            ncols=min(len(runs), 5),
        )
        for text, run in zip(names.get_texts(), runs, strict=True):
            text.set_text(run.name)  # set here, for a legend leaves out a label that begins with "_"
        write_png(figure, png_path)


def main(argv: Sequence[str]) -> None:
    """Print the comparison and write its plot.

    Raises:
        RunError: a run is not whole, or the plot cannot be written.
    """
    parser = CommandParser(prog="python -m training.compare", description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a finished run")
    parser.add_argument("--output", type=Path, default=Path("compare.png"), help="the plot (default: %(default)s)")
    arguments = parser.parse_args(argv)
    folder_names = [folder.resolve().name for folder in arguments.runs]
    names = folder_names if len(set(folder_names)) == len(folder_names) else map(str, arguments.runs)
    if not arguments.output.parent.is_dir():
        raise RunError(f"--output {arguments.output}: there is no folder {arguments.output.parent}")
    runs = [load_run(folder, name) for folder, name in zip(arguments.runs, names, strict=True)]
    print(comparison(runs))
    try:
        save_comparison(runs, arguments.output)
    except OSError as error:
        raise RunError(f"--output {arguments.output} cannot be written: {error.strerror or error}") from error
    print(f"\nThe curves are in {arguments.output}.")


def _line_widths(curves: Sequence[tuple[list[float], list[float]]]) -> list[float]:
    """In points: 2, and 3 more for each later curve of the same points, as far as the shorter one goes."""

    def coincide(one: tuple[list[float], list[float]], other: tuple[list[float], list[float]]) -> bool:
        common = min(len(one[0]), len(other[0]))
        return common > 0 and all(a[:common] == b[:common] for a, b in zip(one, other, strict=True))

    later = [sum(coincide(curve, other) for other in curves[index + 1 :]) for index, curve in enumerate(curves)]
    return [2 + min(3.0, 10.0 / max(later)) * number if number else 2.0 for number in later]


def _best(epochs: Sequence[Record], *weights: str) -> Record | None:
    """The best evaluation of these weights, by the rule of train.py."""
    evaluations = [record[name] for record in epochs for name in weights if record[name]]
    return max(evaluations, key=goodness, default=None)


def _equal_runs(runs: Sequence[Run]) -> list[list[str]]:
    """Names of runs that recorded the same losses, at least two in a list."""
    groups: dict[tuple, list[str]] = {}
    for run in runs:
        losses = tuple((record["step"], record["loss"]) for record in run.steps)
        groups.setdefault(losses, []).append(run.name)
    return [names for losses, names in groups.items() if losses and len(names) > 1]


def _recipe_differences(runs: Sequence[Run]) -> list[tuple[str, ...]]:
    keys = dict.fromkeys(key for run in runs for key in run.recipe if key not in BOOKKEEPING)
    rows = [(key, *(str(run.recipe.get(key, "-")) for run in runs)) for key in keys]
    return [row for row in rows if len(set(row[1:])) > 1]


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
