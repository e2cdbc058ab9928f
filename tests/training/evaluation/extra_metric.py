"""Declares two metrics more where metrics are declared, trains one epoch, evaluates the result and writes its card.

python tests/training/evaluation/extra_metric.py [train.py's arguments]

What the legends of the curves say goes to legends.json, eval.py's results to eval.json, the card to README.md.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3]))

from matplotlib.legend import Legend

import train
from hub_card.card import model_card
from hub_card.run import read_run
from tests.evaluation_runs import load_script
from training.evaluation.metrics import CLASS_METRICS, METRICS, Metric
from training.reporting import curves

RUN = Path("runs/extra")


def balanced_accuracy(result):
    recalls = [counts.top_1_correct / counts.n for counts in result.class_counts if counts.n]
    return sum(recalls) / len(recalls)


def jaccard(counts):
    union = counts.n + counts.predicted - counts.top_1_correct
    return counts.top_1_correct / union if union else None


def write_png(figure, path):
    texts = [text.get_text() for legend in figure.findobj(Legend) for text in legend.get_texts()]
    Path("legends.json").write_text(json.dumps(texts))
    draw(figure, path)


METRICS.append(Metric("balanced_accuracy", "balanced accuracy", balanced_accuracy))
CLASS_METRICS.append(Metric("jaccard", "Jaccard index", jaccard, digits=1))
draw, curves.write_png = curves.write_png, write_png
if code := train.run([*sys.argv[1:], "--run_name", RUN.name]):
    sys.exit(code)
evaluation = [str(RUN / "best"), "--dataset", "./digits", "--device", "cpu", "--num_workers", "0"]
load_script().main([*evaluation, "--per_class", "--json", "eval.json"])
Path("README.md").write_text(model_card(read_run(RUN), "me/extra"))
