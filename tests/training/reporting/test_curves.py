import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from matplotlib.legend import Legend
from PIL import Image
from sklearn.datasets import load_digits

from training.evaluation.metrics import TOP_1
from training.reporting import curves
from training.reporting.console import SmoothedLoss, StepTimer
from training.reporting.curves import ALARM, EMA, LR, RAW, SPEED, best_point, column, metric_curve, save_curves
from training.reporting.metrics import MetricsLog, read_metrics

ROOT = Path(__file__).parents[3]


def train_digits(folder: Path, epochs: int, evaluate: bool = True, poisoned_step: int = 0) -> Path:
    """Train a linear classifier of digits, its weights and their average, and return the metrics it leaves."""
    torch.manual_seed(0)
    digits = load_digits()
    images, labels = torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target)
    model, ema = torch.nn.Linear(64, 10), torch.nn.Linear(64, 10)
    log, timer, smoothed = MetricsLog(folder / "metrics.jsonl"), StepTimer(), SmoothedLoss(0.9)

    def counts(weights: torch.nn.Module) -> dict[str, int]:
        top_5 = weights(images[1400:]).topk(5).indices == labels[1400:, None]
        return {"top_1_correct": int(top_5[:, 0].sum()), "top_5_correct": int(top_5.sum()), "n": len(top_5)}

    step = 0
    for epoch in range(1, epochs + 1):
        for start in range(0, 1400, 140):
            step += 1
            with timer("data"):
                batch = slice(start, start + 140)
            with timer("forward_backward"):
                loss = torch.nn.functional.cross_entropy(model(images[batch]), labels[batch])
                gradients = torch.autograd.grad(loss, list(model.parameters()))
            with timer("optimizer"), torch.no_grad():
                for weight, average, gradient in zip(model.parameters(), ema.parameters(), gradients, strict=True):
                    weight -= 0.5 * gradient
                    average.lerp_(weight, 0.05)
            log.log_step(
                step=step,
                epoch=step / 10,
                loss=math.inf if step == poisoned_step else loss.item(),
                loss_smoothed=smoothed.update(loss.item()),
                lr=0.5,
                grad_norm=torch.cat([g.flatten() for g in gradients]).norm().item(),
                images_per_s=140 * step / sum(timer.seconds().values()),
                data_wait_s=timer.seconds()["data"],
            )
        log.log_epoch(
            epoch=epoch,
            step=step,
            train_loss=smoothed.value,
            lr=0.5,
            raw=counts(model) if evaluate else None,
            ema=counts(ema) if evaluate else None,
            images_per_s=140 * step / sum(timer.seconds().values()),
            time_shares=timer.shares(),
            epoch_s=0.1,
        )
    log.close()
    return log.path


def panels_of(png: Path) -> dict[str, np.ndarray]:
    """The four quarters of a PNG of 1600 x 1000 pixels."""
    with Image.open(png) as image:
        assert image.format == "PNG"
        pixels = np.asarray(image.convert("RGB"))
    assert pixels.shape == (1000, 1600, 3)
    top, bottom = pixels[:500], pixels[500:]
    return {"loss": top[:, :800], "accuracy": top[:, 800:], "lr": bottom[:, :800], "speed": bottom[:, 800:]}


def pixels_in(panel: np.ndarray, color: str) -> int:
    return int((panel == np.round(255 * np.array(to_rgb(color)))).all(axis=-1).sum())


@pytest.fixture(scope="module")
def drawn_run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    save_curves(train_digits(folder, epochs=5, poisoned_step=23), folder / "curves.png")
    return folder


def test_a_run_is_drawn_with_its_loss_both_accuracies_lr_and_speed(drawn_run):
    panels = panels_of(drawn_run / "curves.png")
    assert pixels_in(panels["loss"], RAW) > 500
    assert pixels_in(panels["accuracy"], RAW) > 500
    assert pixels_in(panels["accuracy"], EMA) > 500
    assert pixels_in(panels["lr"], LR) > 500
    assert pixels_in(panels["speed"], SPEED) > 500
    assert pixels_in(panels["speed"], ALARM) > 100  # waiting for data
    assert pixels_in(panels["loss"], ALARM) > 5  # the loss that was not finite
    assert sorted(path.name for path in drawn_run.iterdir()) == ["curves.png", "metrics.jsonl"]


def test_the_name_of_a_run_is_drawn_as_it_is(drawn_run, tmp_path):
    r"""`$\foo$` is no formula that matplotlib knows."""
    folder = tmp_path / r"$\foo$"
    shutil.copytree(drawn_run, folder)
    save_curves(folder / "metrics.jsonl", folder / "again.png")
    assert panels_of(folder / "again.png").keys() == panels_of(drawn_run / "curves.png").keys()


def test_a_staircase_is_drawn_with_level_steps(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    for step in range(10, 101, 10):  # ten records of four epochs of 25 steps
        figures = {"loss": 1.0, "loss_smoothed": 1.0, "grad_norm": 1.0, "images_per_s": 1.0, "data_wait_s": 0.0}
        log.log_step(step=step, epoch=step / 25, lr=[0.4, 0.3, 0.2, 0.1][(step - 1) // 25], **figures)
    log.close()
    levels = {}
    for is_staircase in (True, False):
        save_curves(log.path, tmp_path / "curves.png", is_staircase=is_staircase)
        panel = panels_of(tmp_path / "curves.png")["lr"][100:]
        green = (panel == np.round(255 * np.array(to_rgb(LR)))).all(axis=-1)
        levels[is_staircase] = green.any(axis=0).nonzero()[0], green
    # Between two records of other rates a ramp passes every height on its own column; a step has them in one column.
    heights = {
        kind: np.array([np.ptp(column.nonzero()[0]) for column in green.T[x]]) for kind, (x, green) in levels.items()
    }
    assert (heights[True] > 50).sum() in range(3, 10)  # three edges, of two or three pixels each
    assert (heights[False] > 50).sum() == 0


def test_another_metric_is_drawn_where_the_log_has_it(drawn_run, tmp_path, monkeypatch):
    """A run that resumed after macro-F1 was declared has none of its first epochs."""
    records = read_metrics(drawn_run / "metrics.jsonl")
    for record in records:
        if record["kind"] == "epoch" and record["epoch"] > 2:
            record["raw"]["macro_f1"], record["ema"]["macro_f1"] = record["epoch"] / 10, record["epoch"] / 20
    (tmp_path / "metrics.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in records))
    drawn = []
    monkeypatch.setattr(curves, "write_png", lambda figure, path: drawn.append(figure.axes[1]))
    save_curves(tmp_path / "metrics.jsonl", tmp_path / "curves.png")
    save_curves(drawn_run / "metrics.jsonl", tmp_path / "curves.png")
    with_it, without = drawn
    lines = {line.get_color(): line for line in with_it.get_lines() if line.get_linestyle() == ":"}
    for color, values in ((RAW, [30, 40, 50]), (EMA, [15, 20, 25])):
        assert lines[color].get_xydata().tolist() == [[3, values[0]], [4, values[1]], [5, values[2]]]
    assert [axes.get_ylabel() for axes in drawn] == ["top-1, macro-F1 (%)", "top-1 (%)"]
    assert [len(axes.findobj(Legend)) for axes in drawn] == [2, 1]
    assert not any(line.get_linestyle() == ":" for line in without.get_lines())


def test_one_epoch_shows_as_points(tmp_path):
    save_curves(train_digits(tmp_path, epochs=1), tmp_path / "curves.png")
    panels = panels_of(tmp_path / "curves.png")
    for color in (RAW, EMA):
        assert pixels_in(panels["accuracy"][100:], color) > 20  # below title and legend
    assert pixels_in(panels["loss"], ALARM) == 0


def test_a_run_without_evaluation_is_drawn(tmp_path):
    save_curves(train_digits(tmp_path, epochs=1, evaluate=False), tmp_path / "curves.png")
    panels = panels_of(tmp_path / "curves.png")
    assert pixels_in(panels["loss"], RAW) > 500
    assert pixels_in(panels["accuracy"], RAW) == 0


def test_a_run_killed_in_its_first_epoch_is_drawn(drawn_run, tmp_path):
    lines = (drawn_run / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "metrics.jsonl").write_bytes(b"".join(lines[:4]) + lines[4][:9])
    save_curves(tmp_path / "metrics.jsonl", tmp_path / "curves.png")
    assert pixels_in(panels_of(tmp_path / "curves.png")["loss"], RAW) > 500


def test_a_run_of_which_nothing_is_finite_or_measured_is_drawn(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    unknown = {"loss": math.nan, "loss_smoothed": math.nan, "grad_norm": math.inf, "images_per_s": None}
    log.log_step(step=1, epoch=0.1, lr=0.0, data_wait_s=0.0, **unknown)
    log.close()
    save_curves(log.path, tmp_path / "curves.png")
    assert pixels_in(panels_of(tmp_path / "curves.png")["loss"], ALARM) > 5


def test_a_run_without_any_record_is_drawn(tmp_path):
    (tmp_path / "metrics.jsonl").touch()
    save_curves(tmp_path / "metrics.jsonl", tmp_path / "curves.png")
    assert pixels_in(panels_of(tmp_path / "curves.png")["loss"], RAW) == 0


def test_the_image_ignores_matplotlib_settings_and_leaves_pyplot_alone(drawn_run, tmp_path):
    program = f"""
import sys, matplotlib
from training.reporting.curves import save_curves
settings = {{"axes.facecolor": "black", "figure.dpi": 50, "savefig.bbox": "tight", "font.size": 30}}
matplotlib.rcParams.update(settings)
save_curves({str(drawn_run / "metrics.jsonl")!r}, {str(tmp_path / "curves.png")!r})
print({{name: matplotlib.rcParams[name] for name in settings}} == settings, "matplotlib.pyplot" in sys.modules)
"""
    answer = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert answer.stdout.split() == ["True", "False"]
    assert (tmp_path / "curves.png").read_bytes() == (drawn_run / "curves.png").read_bytes()


def test_the_drawn_numbers_are_those_of_the_records(tmp_path):
    records = read_metrics(train_digits(tmp_path, epochs=4, poisoned_step=2))
    steps, epochs = ([record for record in records if record["kind"] == kind] for kind in ("step", "epoch"))

    losses = column(steps, "loss")
    assert math.isnan(losses[1]) and losses[2] == steps[2]["loss"]
    assert column(epochs, "time_shares", "data") == [record["time_shares"]["data"] for record in epochs]
    x, top_1 = metric_curve(epochs, "ema", TOP_1)
    assert x == [1, 2, 3, 4]
    assert top_1 == pytest.approx([record["ema"]["top_1_correct"] / 3.97 for record in epochs])
    assert metric_curve([epochs[0] | {"raw": None}, epochs[1]], "raw", TOP_1)[0] == [2]


def test_the_best_among_equals_is_the_one_that_train_keeps():
    """train.py keeps the weights with the most correct images, and among equals those of the smaller loss."""
    points = [
        ({"top_1_correct": 9, "loss": loss, "n": 10}, epoch, "raw") for epoch, loss in enumerate([0.3, 0.1, 0.2])
    ]
    assert best_point([*points, ({"top_1_correct": 8, "loss": 0.0, "n": 10}, 3, "raw")])[1] == 1
    assert best_point([({"top_1_correct": 9, "loss": None, "n": 10}, 9, "raw"), *points])[1] == 1
