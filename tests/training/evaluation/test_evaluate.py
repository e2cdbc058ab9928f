import dataclasses
import json
import math
import os
from pathlib import Path

import pytest
import torch
from sklearn.metrics import confusion_matrix, f1_score, precision_recall_fscore_support
from torch import nn

from tests import launcher
from tests.training.evaluation.evaluate_two_ranks import (
    BATCH_SIZE,
    NUM_CLASSES,
    SIZES,
    batches,
    make_models,
    make_samples,
    preprocess,
)
from training.evaluation.evaluate import evaluate
from training.evaluation.metrics import EvaluationResult

ROOT = Path(__file__).parents[3]


def plain_loop(model, images, labels):
    """One image at a time, in Python's own numbers."""
    model = model.eval()
    n = top_1 = top_5 = 0
    loss = 0.0
    class_correct, class_total, class_predicted = ([0] * NUM_CLASSES for _ in range(3))
    confusion = [[0] * NUM_CLASSES for _ in range(NUM_CLASSES)]
    for image, label in zip(images, labels.tolist(), strict=True):
        with torch.no_grad():
            logits = model(preprocess(image[None])).logits[0].tolist()
        n += 1
        class_total[label] += 1
        if any(math.isnan(logit) for logit in logits):
            loss = math.nan
            continue
        order = sorted(range(NUM_CLASSES), key=lambda c, logits=logits: -logits[c])
        top_1 += order[0] == label
        top_5 += label in order[:5]
        class_correct[label] += order[0] == label
        class_predicted[order[0]] += 1
        confusion[label][order[0]] += 1
        loss += math.log(sum(math.exp(logit - logits[label]) for logit in logits))
    return EvaluationResult(n, top_1, top_5, loss, class_correct, class_total, class_predicted, confusion)


def assert_equal(result, expected):
    """In integers; the loss is a sum of float32 numbers on one side, and of Python's on the other."""
    assert dataclasses.replace(result, loss_sum=0.0) == dataclasses.replace(expected, loss_sum=0.0)
    assert result.loss_sum == pytest.approx(expected.loss_sum, rel=1e-6, nan_ok=True)


def run(models, images, labels, **options):
    options = {"num_samples": len(images), "num_classes": NUM_CLASSES, "preprocess": preprocess} | options
    return evaluate(models, batches(images, labels, range(len(images))), **options)


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    """The results of one launch for all sizes."""
    path = tmp_path_factory.mktemp("two_ranks") / "results.json"
    script = Path(__file__).with_name("evaluate_two_ranks.py")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    launcher.run([script, path], env=environment, num_ranks=2).check_returncode()
    return json.loads(path.read_text())


@pytest.mark.fault("20 evaluation counts, 1 to 65 images")
@pytest.mark.parametrize("n", SIZES)
def test_one_rank_counts_what_a_plain_loop_counts(n):
    images, labels = make_samples(n)
    results = run(make_models(), images, labels, confusion=True)
    for name, model in make_models().items():
        assert_equal(results[name], plain_loop(model, images, labels))


@pytest.mark.fault("20 evaluation counts, 1 to 65 images")
@pytest.mark.parametrize("n", SIZES)
def test_two_ranks_count_what_a_plain_loop_counts(two_ranks, n):
    images, labels = make_samples(n)
    for name, model in make_models().items():
        assert_equal(EvaluationResult(**two_ranks[str(n)][name]), plain_loop(model, images, labels))


def test_images_repeated_over_ranks_are_an_error_naming_both_numbers(two_ranks):
    assert two_ranks["repeated"] == "evaluation counted 4 images of a dataset of 3: each must be seen once"


def test_missing_images_are_an_error_naming_both_numbers():
    images, labels = make_samples(31)
    with pytest.raises(RuntimeError, match="evaluation counted 31 images of a dataset of 50000"):
        run(make_models(), images, labels, num_samples=50000)


def test_confusion_matrix_is_sklearns():
    images, labels = make_samples(65)
    result = run(make_models(), images, labels, confusion=True)["raw"]
    with torch.no_grad():
        predictions = make_models()["raw"].eval()(preprocess(images)).logits.argmax(1)
    expected = confusion_matrix(labels, predictions, labels=range(NUM_CLASSES))
    assert result.confusion == expected.tolist()
    assert sum(result.class_total) == 65


def test_confusion_is_counted_on_request_only():
    images, labels = make_samples(3)
    assert run(make_models(), images, labels)["raw"].confusion is None


def test_the_models_see_each_batch_once_and_progress_counts_the_images():
    images, labels = make_samples(33)
    taken, progress = [], []

    def loader():
        for batch in batches(images, labels, range(33)):
            taken.append(len(batch["labels"]))
            yield batch

    options = {"preprocess": preprocess, "num_samples": 33, "num_classes": NUM_CLASSES}
    evaluate(make_models(), loader(), progress=progress.append, **options)
    assert taken == progress == [BATCH_SIZE, BATCH_SIZE, 1]


def test_a_stop_on_one_rank_leaves_all_without_a_result(two_ranks):
    assert two_ranks["stopped"] == [True, True]
    asked = iter([False, True])
    seen = []
    images, labels = make_samples(65)
    assert run(make_models(), images, labels, should_stop=lambda: next(asked), progress=seen.append) is None
    assert seen == [BATCH_SIZE]


def test_every_module_gets_its_mode_back_after_an_error_too():
    images, labels = make_samples(3)
    model = make_models()["raw"]
    model.frozen = nn.BatchNorm1d(4).eval()
    modes = {name: module.training for name, module in model.named_modules()}
    assert modes == {"": True, "dropout": True, "frozen": False}
    run({"raw": model}, images, labels)
    assert {name: module.training for name, module in model.named_modules()} == modes
    with pytest.raises(ValueError, match="raw gives 7 logits for a dataset of 10 classes"):
        run({"raw": model}, images, labels, num_classes=10)
    assert {name: module.training for name, module in model.named_modules()} == modes


def test_evaluation_leaves_statistics_and_gradients_alone():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm2d(3)
            self.inner = make_models()["raw"]

        def forward(self, pixel_values):
            return self.inner(self.norm(pixel_values))

    images, labels = make_samples(20)
    model = Model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    run({"raw": model}, images, labels)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    model(preprocess(images)).logits.sum().backward()
    assert model.inner.weight.grad is not None


def test_the_line_is_the_published_one():
    """TinyNet-C's released weights on ImageNet, in timm's results table: 71.214."""
    result = EvaluationResult(50000, 35607, 44873, 60000.0, [35607], [50000], [50000])
    assert f"{result}" == "top-1 35607/50000 = 71.214 %"
    assert result.to_dict() == {
        "n": 50000,
        "top_1_correct": 35607,
        "top_5_correct": 44873,
        "top_1": 0.71214,
        "top_5": 0.89746,
        "loss": 1.2,
        "macro_f1": 0.71214,
    }
    json.dumps(result.to_dict())


def assert_scores_are_sklearns(result, labels, predictions):
    """Whole and by class; a class that was never predicted has no precision, where scikit-learn has 0."""
    assert dict(result.metrics())["macro_f1"] == pytest.approx(
        f1_score(labels, predictions, average="macro", zero_division=0), rel=1e-12
    )
    keys = ("precision", "recall", "f1", "n")
    columns = precision_recall_fscore_support(labels, predictions, labels=range(NUM_CLASSES), zero_division=math.nan)
    expected = {str(index): row for index, row in enumerate(zip(*columns, strict=True)) if row[-1]}
    rows = {row["class"]: row for row in result.per_class([str(index) for index in range(NUM_CLASSES)])}
    assert list(rows) == list(expected)
    for name, row in rows.items():
        shown = [math.nan if row[key] is None else row[key] for key in keys]
        assert shown == pytest.approx(expected[name], rel=1e-12, nan_ok=True)
        assert row["predicted"] == (predictions == int(name)).sum()


@pytest.mark.parametrize("n", SIZES)
def test_precision_recall_and_f1_are_sklearns_on_one_rank_and_on_two(two_ranks, n):
    """Few of 7 classes among few images: some have no image, some are never predicted, some both."""
    images, labels = make_samples(n)
    results = run(make_models(), images, labels)
    for name in ("raw", "ema"):  # where a logit is a NaN, scikit-learn knows no prediction
        with torch.no_grad():
            predictions = make_models()[name].eval()(preprocess(images)).logits.argmax(1)
        assert_scores_are_sklearns(results[name], labels.numpy(), predictions.numpy())
        assert_scores_are_sklearns(EvaluationResult(**two_ranks[str(n)][name]), labels.numpy(), predictions.numpy())


def test_the_samples_hold_classes_without_images_and_classes_that_are_never_predicted(two_ranks):
    """And both at once: what the test before compares is worth it."""
    seen = set()
    for n in SIZES:
        for counts in EvaluationResult(**two_ranks[str(n)]["raw"]).class_counts:
            seen.add((counts.n > 0, counts.predicted > 0))
    assert seen == {(True, True), (True, False), (False, True), (False, False)}


def test_an_image_without_a_prediction_costs_recall_and_no_precision():
    """Three images, of which the one of class 1 has a NaN among its logits: classes 0, 1, 0 are predicted 0, -, 1."""
    result = EvaluationResult(3, 1, 2, math.nan, [1, 0], [2, 1], [1, 1])
    rows = {row["class"]: row for row in result.per_class(["a", "b"])}
    assert rows["a"] == {"class": "a", "top_1_correct": 1, "n": 2, "predicted": 1, **scores(1 / 2, 1, 2 / 3)}
    assert rows["b"] == {"class": "b", "top_1_correct": 0, "n": 1, "predicted": 1, **scores(0, 0, 0)}


def scores(recall, precision, f1):
    return {"recall": recall, "precision": precision, "f1": f1}


def test_low_precision_logits_are_counted_as_they_are():
    """Under autocast: bfloat16 has 8 bits, so that near logits become equal, and the first class of them leads."""
    images, labels = make_samples(33)
    model = make_models()["raw"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = run({"raw": model}, images, labels)["raw"]
        with torch.no_grad():
            logits = model.eval()(preprocess(images)).logits
    assert logits.dtype == torch.bfloat16
    assert result.top_1_correct == int((logits.float().argmax(1) == labels).sum())
