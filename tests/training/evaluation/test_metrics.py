import json
import math
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.training_jobs import SMALL, trained
from training.evaluation.metrics import (
    CLASS_METRICS,
    CURVES,
    METRICS,
    TOP_1,
    ClassCounts,
    Metric,
    card_metrics,
    shown_in,
)
from training.reporting.metrics import read_metrics

BY_NAME = {metric.name: metric for metric in [*METRICS, *CLASS_METRICS]}
# An evaluation as train.py wrote it before there was a macro-F1.
OLD = {"n": 50000, "top_1_correct": 35607, "top_5_correct": 44873, "top_1": 0.71214, "top_5": 0.89746, "loss": 1.2}


def test_a_ratio_of_counts_is_shown_with_them():
    """TinyNet-C's released weights on ImageNet, in timm's results table: 71.214."""
    assert TOP_1.text(OLD) == "35607/50000 = 71.214 %"
    assert TOP_1.number(OLD) == 71.214


def test_another_metric_is_shown_as_it_is():
    record = {"macro_f1": 0.54321, "loss": 1.23456}
    assert BY_NAME["macro_f1"].text(record) == "54.321 %"
    assert BY_NAME["loss"].text(record) == "1.235"


@pytest.mark.parametrize("name", METRICS, ids=lambda metric: metric.name)
def test_without_an_evaluation_nothing_is_shown(name):
    assert math.isnan(name.number(None)) and name.text(None) == "-"


def test_what_an_old_file_lacks_or_what_was_no_number_is_not_shown():
    assert BY_NAME["macro_f1"].text(OLD) == "-"
    assert math.isnan(BY_NAME["macro_f1"].number(OLD))
    assert BY_NAME["loss"].text(OLD | {"loss": None}) == "-"


def test_a_class_that_was_never_predicted_has_no_precision():
    assert BY_NAME["precision"].text({"top_1_correct": 0, "n": 3, "predicted": 0, "precision": None}) == "-"
    assert BY_NAME["precision"].text({"top_1_correct": 2, "n": 3, "predicted": 4, "precision": 0.5}) == "2/4 = 50.0 %"


def test_top_5_of_five_classes_is_not_for_the_card():
    names = {n: [metric["name"] for metric in card_metrics(n)["metrics"]] for n in (5, 6)}
    assert names == {5: ["top_1", "macro_f1"], 6: ["top_1", "top_5", "macro_f1"]}


def test_a_metric_that_is_not_in_percent_has_no_place_among_the_curves():
    with pytest.raises(ValueError, match=r"metric loss is not in percent, .* leave out CURVES"):
        Metric("loss", "loss", lambda result: result.loss_sum, percent=False)
    assert all(metric.percent for metric in shown_in(CURVES))


def test_no_name_is_taken_twice():
    """The second metric of a name would replace the first, or a count."""
    counts = ["n", "top_1_correct", "top_5_correct"]
    for names in (
        [*counts, *(metric.name for metric in METRICS)],
        ["class", *ClassCounts._fields, *(metric.name for metric in CLASS_METRICS)],
    ):
        assert len(names) == len(set(names))


# A metric more


@pytest.fixture(scope="module")
def extra(tmp_path_factory):
    """(folder, what was printed) of a run with a metric more, see extra_metric.py."""
    folder = tmp_path_factory.mktemp("extra")
    script = Path(__file__).with_name("extra_metric.py")
    flags = ("--epochs", "1", "--warmup_epochs", "0", "--num_workers", "0", "--report_to", "tensorboard")
    return folder, trained(*SMALL, *flags, script=script, folder=folder)


@pytest.fixture(scope="module")
def summary(extra):
    return json.loads((extra[0] / "runs" / "extra" / "summary.json").read_text())


def percent(value):
    return f"{100 * value:.3f} %"


def test_a_metric_declared_once_is_logged_and_summed_up(extra, summary):
    *_, epoch = read_metrics(extra[0] / "runs" / "extra" / "metrics.jsonl")
    rows = summary["best"]["per_class"]
    expected = sum(row["top_1_correct"] / row["n"] for row in rows) / len(rows)
    assert summary["best"]["balanced_accuracy"] == pytest.approx(expected, rel=1e-12)
    assert summary["best"]["balanced_accuracy"] == epoch[summary["best"]["weights"]]["balanced_accuracy"]
    assert summary["last"]["raw"] == epoch["raw"] and summary["last"]["ema"] == epoch["ema"]
    unions = [row["n"] + row["predicted"] - row["top_1_correct"] for row in rows]
    assert [row["jaccard"] for row in rows] == [
        row["top_1_correct"] / union for row, union in zip(rows, unions, strict=True)
    ]


def test_a_metric_declared_once_is_tracked(extra, summary):
    tracked = EventAccumulator(str(extra[0] / "runs" / "extra" / "tinynet")).Reload()
    for weights, record in summary["last"].items():
        for name in ("balanced_accuracy", "macro_f1", "top_1", "top_5", "loss"):
            (event,) = tracked.Scalars(f"{name}_{weights}")
            assert event.value == pytest.approx(record[name], rel=1e-6)
            assert event.step == summary["steps"]


def test_a_metric_declared_once_is_in_the_epoch_table_and_the_curves(extra, summary):
    folder, output = extra
    lines = output.splitlines()
    (number,) = [number for number, line in enumerate(lines) if line.startswith("  epoch ")]
    heading, row = lines[number], lines[number + 1]
    start = heading.index("balanced accuracy")
    cell = row[start : start + len("balanced accuracy")].strip()
    assert cell == f"{100 * summary['best']['balanced_accuracy']:.2f}"
    legends = json.loads((folder / "legends.json").read_text())
    assert "macro-F1" in legends and "balanced accuracy" in legends


def test_a_metric_declared_once_is_printed_and_written_by_eval(extra, summary):
    folder, output = extra
    (entry,) = json.loads((folder / "eval.json").read_text())["models"]
    assert entry["balanced_accuracy"] == summary["best"]["balanced_accuracy"]
    assert entry["per_class"] == summary["best"]["per_class"]
    table = output[output.index("\nmodel ") :]
    assert "balanced accuracy" in table.splitlines()[1]
    assert percent(entry["balanced_accuracy"]) in table.splitlines()[2]
    assert table.partition("\nby class")[2].splitlines()[1].endswith("F1  Jaccard index")


def test_a_metric_declared_once_is_on_the_card(extra, summary):
    card, best = ModelCard((extra[0] / "README.md").read_text()), summary["best"]
    assert card.data.metrics == ["accuracy", "f1", "balanced_accuracy"]
    results = {result.metric_name: result for result in card.data.eval_results}
    assert results["balanced accuracy"].metric_value == best["balanced_accuracy"]
    assert results["balanced accuracy"].metric_type == "balanced_accuracy"
    assert (results["macro-F1"].metric_value, results["macro-F1"].metric_args) == (
        best["macro_f1"],
        {"average": "macro"},
    )
    assert "| top-1 | top-5 | macro-F1 | balanced accuracy |" in card.text
    top_1 = f"{best['top_1_correct']}/{best['n']} = {percent(best['top_1'])}"
    top_5 = f"{best['top_5_correct']}/{best['n']} = {percent(best['top_5'])}"
    cells = (top_1, top_5, percent(best["macro_f1"]), percent(best["balanced_accuracy"]))
    assert f"(published here) | {' | '.join(cells)} |" in card.text
    assert "| class | recall | precision | F1 | Jaccard index |" in card.text
    worst = min(best["per_class"], key=lambda row: row["top_1_correct"] / row["n"])
    (line,) = [line for line in card.text.splitlines() if line.startswith(f"| {worst['class']} | ")]
    assert line.endswith(f" | {100 * worst['f1']:.1f} % | {100 * worst['jaccard']:.1f} % |")
