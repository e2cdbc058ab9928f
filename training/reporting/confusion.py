"""The confusion matrices of evaluated models as one image."""

import os
from collections.abc import Sequence
from typing import NamedTuple

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from training.evaluation.metrics import EvaluationResult
from training.reporting.curves import LITERAL_TEXT, write_png

MAX_NAMED_CLASSES = 30  # more names would overlap
MAX_SHARES = 15  # classes; with more, a cell has no room for a second line
PERCENT = Normalize(0, 100)
COLORS = ScalarMappable(PERCENT, "Blues")


class Panel(NamedTuple):
    """What is drawn of one model. `labels` are in the order of the counts."""

    title: str
    result: EvaluationResult
    labels: Sequence[str]


def save_confusion(panels: Sequence[Panel], path: str | os.PathLike[str]) -> None:
    """Draw a matrix for each panel: rows are the classes, columns the predictions, colors the share of a class.

    Up to 30 classes the cells hold the counts, up to 15 the shares as well. All texts are drawn as they are.

    Raises:
        OSError: the image cannot be written.
    """
    with matplotlib.style.context(["default", LITERAL_TEXT]):
        figure = Figure(figsize=(8 * len(panels), 9), dpi=100, layout="constrained")
        FigureCanvasAgg(figure)
        all_axes = figure.subplots(1, len(panels), squeeze=False)[0]
        for axes, panel in zip(all_axes, panels, strict=True):
            _draw(axes, panel)
        figure.colorbar(COLORS, ax=list(all_axes), location="bottom", shrink=0.5, label="share of the class (%)")
        write_png(figure, path)


def _draw(axes: Axes, panel: Panel) -> None:
    counts, totals = np.array(panel.result.confusion), np.array(panel.result.class_total)
    percents = 100 * counts / totals[:, None].clip(min=1)  # of all its images, those without a prediction too
    axes.imshow(percents, cmap=COLORS.cmap, norm=PERCENT)
    axes.set(title=f"{panel.title}\n{panel.result}", xlabel="prediction", ylabel="class")
    if len(counts) > MAX_NAMED_CLASSES:
        return
    axes.set_xticks(range(len(counts)), panel.labels, rotation=90)
    axes.set_yticks(range(len(counts)), panel.labels)
    for row, column in np.argwhere(counts):
        text, percent = str(counts[row, column]), percents[row, column]
        if len(counts) <= MAX_SHARES:
            text += f"\n{percent:.3g} %"
        axes.text(column, row, text, ha="center", va="center", color="white" if percent > 50 else "black")
