"""Draws the results of `benchmarks.input` for docs/benchmarks.md."""

from pathlib import Path
from typing import Any

import matplotlib.style
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from training.reporting.curves import STYLE, write_png

BARS = {"transformers": "tab:gray", "timm": "tab:blue", "here": "tab:green", "prepared": "tab:olive"}
NAMES = {"transformers": "transformers' example", "prepared": "here, prepared copy"}


def save_plot(report: dict[str, Any], path: Path) -> None:
    """Training images per second of everybody, by image size and number of workers: 1200 x 600 pixels."""
    rows = [row for row in report["results"] if row["what"] == "training"]
    limits = {
        row["image_size"]: row["images_per_s"]["decoding"] for row in report["results"] if row["what"] == "decoding"
    }
    with matplotlib.style.context(["default", STYLE]):
        figure = Figure(figsize=(12, 6), dpi=100, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(1, len(limits), sharey=True, squeeze=False)[0]
        for panel, (image_size, limit) in zip(axes, limits.items(), strict=True):
            of_size = [row for row in rows if row["image_size"] == image_size]
            for position, (name, color) in enumerate(BARS.items()):
                offset = (position - (len(BARS) - 1) / 2) / (len(BARS) + 1)
                bars = panel.bar(
                    [index + offset for index in range(len(of_size))],
                    [row["images_per_s"][name] for row in of_size],
                    width=1 / (len(BARS) + 1),
                    color=color,
                    label=NAMES.get(name, name),
                )
                panel.bar_label(bars, fmt="%.0f", fontsize=9)
            panel.axhline(limit, color="black", linestyle=":", label="decoding alone, one core")
            panel.set_xticks(range(len(of_size)), [_workers(row["num_workers"]) for row in of_size])
            panel.set_title(f"{image_size} px")
        axes[0].set_ylabel("images/s, from JPEG files to normalized batches")
        figure.legend(*axes[0].get_legend_handles_labels(), frameon=False, loc="outside lower center", ncols=5)
        write_png(figure, path)


def _workers(number: int) -> str:
    return "one process" if number == 0 else f"{number} worker{'' if number == 1 else 's'}"
