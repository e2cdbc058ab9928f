from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.text import Text
from PIL import Image

from training.reporting import confusion
from training.reporting.confusion import Panel, save_confusion


def result(counts, without_prediction=0):
    counts = np.array(counts)
    totals = counts.sum(axis=1)
    totals[0] += without_prediction
    return SimpleNamespace(confusion=counts.tolist(), class_total=totals.tolist())


@pytest.fixture
def figure(monkeypatch):
    """What `save_confusion` would have written, as matplotlib's figure."""
    drawn = []

    def keep(figure, path):
        figure.draw_without_rendering()
        drawn.append(figure)

    monkeypatch.setattr(confusion, "write_png", keep)

    def draw(*panels):
        save_confusion(panels, "unused.png")
        return drawn[0]

    return draw


def cells(axes):
    return [text.get_text() for text in axes.texts]


def test_cells_hold_count_and_share_of_all_images_of_their_class(figure):
    """One image of "a" has no prediction, for its logits were no numbers."""
    panel = Panel("model", result([[6, 1], [0, 3]], without_prediction=1), ["a", "b"])
    axes, colorbar = figure(panel).axes
    assert cells(axes) == ["6\n75 %", "1\n12.5 %", "3\n100 %"]
    assert axes.images[0].get_array().tolist() == [[75, 12.5], [0, 100]]
    assert axes.images[0].get_clim() == (0, 100)
    assert colorbar.get_xlabel() == "share of the class (%)"


@pytest.mark.parametrize(("classes", "cell"), [(15, "2\n100 %"), (16, "2"), (30, "2"), (31, None)])
def test_many_classes_leave_no_room_for_shares_and_then_for_counts(figure, classes, cell):
    panel = Panel("model", result(2 * np.eye(classes, dtype=int)), [f"class {index}" for index in range(classes)])
    axes, _ = figure(panel).axes
    assert cells(axes) == [cell] * classes if cell else cells(axes) == []
    assert (axes.get_yticklabels()[0].get_text() == "class 0") == (cell is not None)


def test_every_text_is_drawn_as_it_is(figure):
    r"""matplotlib would take `$x$` for a formula, and end in an error at `$\foo$`."""
    drawn = figure(Panel(r"runs/$\bar$", result([[1, 0], [0, 1]]), [r"$\foo$", "$x$"]))
    texts = drawn.findobj(Text)
    assert r"$\foo$" in [text.get_text() for text in texts]
    assert not any(text.get_parse_math() for text in texts)


def test_there_is_a_panel_for_each_model(tmp_path):
    panels = [
        Panel(name, result(counts), ["a", "b"]) for name, counts in (("x", [[1, 0], [0, 1]]), ("y", [[0, 1]] * 2))
    ]
    save_confusion(panels, tmp_path / "confusion.png")
    with Image.open(tmp_path / "confusion.png") as image:
        assert image.size == (1600, 900)
        pixels = np.array(image.convert("L"))
    assert (pixels[:, :800] < 200).any()
    assert (pixels[:, 800:] < 200).any()
    assert (pixels[:, :800] != pixels[:, 800:]).any()
