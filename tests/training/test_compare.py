import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from matplotlib.colors import to_rgb
from PIL import Image
from sklearn.datasets import load_digits

from tests import launcher
from training import compare
from training.command import run_command
from training.reporting.console import StepTimer
from training.reporting.metrics import MetricsLog, write_summary

ROOT = Path(__file__).parents[2]


def main(arguments):
    return run_command(compare.main, arguments)


def train_digits(folder: Path, lr: float, epochs: int, *, macro_f1: bool = False, **recipe) -> dict[str, list[int]]:
    """Train a linear classifier of digits, leave a run's files in `folder`, return its correct answers by epoch."""
    torch.manual_seed(0)
    digits = load_digits()
    images, labels = torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target)
    model, ema = torch.nn.Linear(64, 10), torch.nn.Linear(64, 10)
    folder.mkdir(parents=True)
    log, timer, correct = MetricsLog(folder / "metrics.jsonl"), StepTimer(), {"raw": [], "ema": []}
    for step in range(1, 10 * epochs + 1):
        loss = torch.nn.functional.cross_entropy(model(images[:1400]), labels[:1400])
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        with torch.no_grad():
            for weight, average, gradient in zip(model.parameters(), ema.parameters(), gradients, strict=True):
                weight -= lr * gradient
                average.lerp_(weight, 0.05)
        figures = {"lr": lr, "images_per_s": 1400.0 - 200 * lr}  # apart, to be seen in one picture
        log.log_step(
            step=step,
            epoch=step / 10,
            loss=loss.item(),
            loss_smoothed=loss.item(),
            grad_norm=None,
            data_wait_s=0.0,
            **figures,
        )
        if step % 10 == 0:
            for name, weights in (("raw", model), ("ema", ema)):
                correct[name].append(int((weights(images[1400:]).argmax(1) == labels[1400:]).sum()))
            counts = {name: {"top_1_correct": c[-1], "top_5_correct": 397, "n": 397} for name, c in correct.items()}
            if macro_f1:  # made up, and another one for each evaluation
                counts = {name: c | {"macro_f1": c["top_1_correct"] / 794} for name, c in counts.items()}
            log.log_epoch(
                epoch=step // 10,
                step=step,
                train_loss=loss.item(),
                time_shares=timer.shares(),
                epoch_s=1.0,
                **counts,
                **figures,
            )
    log.close()
    summary = {"run": folder.name, "model": "linear", "dataset": "digits", "num_validation": 397, "epochs": epochs}
    write_summary(folder / "summary.json", summary | {"images_per_s": 1400.0 - 200 * lr, "elapsed_s": 65.0 * epochs})
    full_recipe = {
        "model": "linear",
        "lr": lr,
        "epochs": epochs,
        "run_name": folder.name,
        "output_dir": "runs",
    } | recipe
    (folder / "recipe.yaml").write_text(yaml.safe_dump(full_recipe))
    return correct


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory) -> tuple[Path, Path, dict[str, dict[str, list[int]]]]:
    folder = tmp_path_factory.mktemp("runs")
    correct = {
        "slow": train_digits(folder / "slow", lr=0.05, epochs=4),
        "fast": train_digits(folder / "fast", lr=1.0, epochs=6, macro_f1=True, mixup_alpha=0.2),
    }
    return folder / "slow", folder / "fast", correct


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.split("  ") if cell.strip()]


def test_the_command_prints_a_table_and_draws_both_runs(two_runs, tmp_path):
    slow, fast, correct = two_runs
    answer = launcher.run(["-m", "training.compare", slow, fast, "--output", tmp_path / "both.png"])

    assert (answer.returncode, answer.stderr) == (0, "")
    lines = answer.stdout.splitlines()
    metrics = ["best top-1, raw", "best top-1, EMA", "top-5", "macro-F1"]
    assert cells(lines[0]) == ["run", "model", *metrics, "epochs", "images/s", "time"]
    rows = (("slow", "4", "1,390", "0:04:20"), ("fast", "6", "1,200", "0:06:30"))
    for line, (name, *figures) in zip(lines[1:3], rows, strict=True):
        best = [f"{k}/397 = {100 * k / 397:.3f} %" for k in (max(correct[name]["raw"]), max(correct[name]["ema"]))]
        # The first run is from before there was a macro-F1; of the other, that of its best evaluation is shown.
        macro_f1 = "-" if name == "slow" else f"{50 * max(map(max, correct[name].values())) / 397:.3f} %"
        assert cells(line) == [name, "linear", *best, "397/397 = 100.000 %", macro_f1, *figures]
    assert "do not compare" not in answer.stdout and "are equal" not in answer.stdout
    differences = {tuple(cells(line)) for line in lines[5:8]}
    assert cells(lines[4]) == ["recipe", "slow", "fast"]
    assert differences == {("lr", "0.05", "1.0"), ("epochs", "4", "6"), ("mixup_alpha", "-", "0.2")}
    assert lines[-1] == f"The curves are in {tmp_path / 'both.png'}."

    with Image.open(tmp_path / "both.png") as image:
        assert (image.format, image.size) == ("PNG", (1600, 1000))
        pixels = np.asarray(image.convert("RGB"))
    for color in ("C0", "C1"):
        drawn = (pixels == np.round(255 * np.array(to_rgb(color)))).all(axis=-1)
        quarters = [drawn[y : y + 450, x : x + 800].sum() for y in (0, 450) for x in (0, 800)]
        assert min(quarters) > 100, f"{color} is not in every panel: {quarters}"


def test_runs_of_one_name_on_other_images_are_told_apart(two_runs, tmp_path, capsys):
    slow, _, _ = two_runs
    train_digits(tmp_path / "slow", lr=0.05, epochs=4)
    summary = (tmp_path / "slow" / "summary.json").read_text().replace('"digits"', '"letters"')
    (tmp_path / "slow" / "summary.json").write_text(summary)

    assert main([str(slow), str(tmp_path / "slow"), "--output", str(tmp_path / "c.png")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [cells(line)[0] for line in lines[1:3]] == [str(slow), str(tmp_path / "slow")]
    assert lines[4] == "The runs were not evaluated on the same images, so their accuracies do not compare."
    assert lines[6].endswith("are equal at every step.")
    assert lines[8] == "The recipes are the same."


@pytest.mark.parametrize(("number", "epochs"), [(2, 4), (4, 4), (2, 6)], ids=["two", "four", "the last is longer"])
def test_equal_curves_do_not_hide_each_other(number, epochs, tmp_path, capsys):
    folders = [tmp_path / f"run-{index}" for index in range(number)]
    for folder in folders:
        train_digits(folder, lr=0.05, epochs=epochs if folder == folders[-1] else 4, schedule="staircase")
    assert main([*map(str, folders), "--output", str(tmp_path / "equal.png")]) == 0
    names = [folder.name for folder in folders]
    said = f"The losses of {', '.join(names[:-1])} and {names[-1]} are equal at every step."
    assert (said in capsys.readouterr().out) == (epochs == 4)
    with Image.open(tmp_path / "equal.png") as image:
        pixels = np.asarray(image.convert("RGB"))
    for index in range(number):
        drawn = (pixels == np.round(255 * np.array(to_rgb(f"C{index}")))).all(axis=-1)
        quarters = [drawn[y : y + 450, x : x + 800].sum() for y in (0, 450) for x in (0, 800)]
        assert min(quarters) > 100, f"run {index} is not in every panel: {quarters}"


def test_names_of_runs_are_drawn_as_they_are(two_runs, tmp_path, monkeypatch):
    r"""`$\foo$` is no formula that matplotlib knows, and its legends leave out what begins with "_"."""
    names = [r"$\foo$", "_second"]
    for folder, name in zip(two_runs[:2], names, strict=True):
        shutil.copytree(folder, tmp_path / name)
    legends = []

    def write(figure, path):
        figure.draw_without_rendering()
        legends.extend(legend.get_texts() for legend in figure.legends)

    monkeypatch.setattr(compare, "write_png", write)
    assert main([str(tmp_path / name) for name in names]) == 0
    assert [[text.get_text() for text in legend] for legend in legends] == [names]


@pytest.mark.parametrize(
    ("missing", "word"),
    [
        ("summary.json", "finished; start it again with the same command first\n"),
        ("recipe.yaml", "complete: {}/recipe.yaml is missing\n"),
        ("metrics.jsonl", "complete: {}/metrics.jsonl is missing\n"),
    ],
)
def test_a_missing_file_is_one_sentence_and_exit_code_2(tmp_path, missing, word, capsys):
    train_digits(tmp_path / "run", lr=0.05, epochs=1)
    (tmp_path / "run" / missing).unlink()
    assert main([str(tmp_path / "run"), "--output", str(tmp_path / "c.png")]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(
        f"error: the run in {tmp_path / 'run'} is not {word.replace('{}', str(tmp_path / 'run'))}"
    )
    assert captured.err.count("\n") == 1 and captured.out == ""
    assert not (tmp_path / "c.png").exists()


@pytest.mark.parametrize(
    ("file", "content", "sentence"),
    [
        ("summary.json", "{", "run/summary.json is damaged (Expecting property name"),
        (
            "summary.json",
            '{"model": "linear"}',
            "summary.json is damaged (it has no dataset, num_validation, epochs, ",
        ),
        ("summary.json", '{"epochs": ' + 5000 * "1" + "}", "run/summary.json is damaged (Exceeds the limit"),
        ("recipe.yaml", "lr: [1", "run/recipe.yaml is damaged (while parsing a flow sequence"),
        ("recipe.yaml", "", "recipe.yaml is damaged (it must hold keys and values, got 'None'"),
        ("metrics.jsonl", "x\n", "metrics.jsonl, line 1 is not JSON"),
        (
            "metrics.jsonl",
            '{"kind": "step", "step": 1}\n{"kind": "st',
            "metrics.jsonl is damaged (line 2 is cut short)",
        ),
    ],
)
def test_a_damaged_file_is_one_sentence_and_exit_code_2(tmp_path, file, content, sentence, capsys):
    train_digits(tmp_path / "run", lr=0.05, epochs=1)
    (tmp_path / "run" / file).write_text(content)
    assert main([str(tmp_path / "run"), "--output", str(tmp_path / "c.png")]) == 2
    captured = capsys.readouterr()
    assert sentence in captured.err
    assert captured.err.count("\n") == 1 and captured.out == ""


def test_a_missing_folder_for_run_or_picture_is_one_sentence_and_exit_code_2(two_runs, tmp_path, capsys):
    slow, _, _ = two_runs
    assert main([str(tmp_path / "nowhere")]) == 2
    assert f"there is no folder {tmp_path / 'nowhere'}; give the folder of a run" in capsys.readouterr().err
    assert main([str(slow), "--output", str(tmp_path / "nowhere" / "c.png")]) == 2
    assert "there is no folder" in capsys.readouterr().err
