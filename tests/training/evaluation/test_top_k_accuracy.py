from pathlib import Path

import evaluate
import numpy as np
import pytest
import torch
from sklearn.metrics import top_k_accuracy_score

from training.evaluation.top_k_accuracy.target_ranks import target_ranks

METRIC = str(Path(__file__).parents[3] / "training" / "evaluation" / "top_k_accuracy")


def draw(n, num_classes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, num_classes, generator=generator)
    return logits, torch.randint(num_classes, (n,), generator=generator)


@pytest.mark.parametrize("k", [1, 5])
@pytest.mark.parametrize("num_classes", [6, 40])
def test_ranks_give_the_counts_of_sklearn_and_of_torch_topk(k, num_classes):
    logits, labels = draw(500, num_classes)
    correct = int((target_ranks(logits, labels) < k).sum())
    classes = np.arange(num_classes)
    assert correct == top_k_accuracy_score(labels.numpy(), logits.numpy(), k=k, labels=classes, normalize=False)
    assert correct == int((logits.topk(k).indices == labels[:, None]).sum())


def test_a_rank_is_the_place_in_a_stable_sort():
    """Logits from a small set, so that most rows have ties; Python's sort is stable."""
    logits, labels = draw(300, 12)
    logits = logits.round()
    expected = [
        sorted(range(12), key=lambda c, row=row: -row[c]).index(label)
        for row, label in zip(logits.tolist(), labels.tolist(), strict=True)
    ]
    assert target_ranks(logits, labels).tolist() == expected


def test_equal_logits_are_one_right_answer_in_all():
    """A model that says nothing must not score: every class of a row of zeros has a rank of its own."""
    assert target_ranks(torch.zeros(7, 7), torch.arange(7)).tolist() == list(range(7))


@pytest.mark.parametrize("where", ["label", "elsewhere", "everywhere"])
@pytest.mark.parametrize("num_classes", [3, 10])
def test_a_row_with_nan_is_wrong_at_any_k(where, num_classes):
    logits = torch.zeros(1, num_classes)
    logits[0, 0] = 9.0
    logits[0, {"label": 0, "elsewhere": 1, "everywhere": slice(None)}[where]] = float("nan")
    assert target_ranks(logits, torch.tensor([0])).item() == num_classes


def test_infinite_logits_are_ordered():
    logits = torch.tensor([[float("-inf"), 0.0, float("inf")]] * 3)
    assert target_ranks(logits, torch.arange(3)).tolist() == [2, 1, 0]


def test_metric_loads_from_its_folder_and_agrees_with_sklearn():
    metric = evaluate.load(METRIC)
    logits, labels = draw(200, 30)
    for start in range(0, 200, 64):
        metric.add_batch(predictions=logits[start : start + 64], references=labels[start : start + 64])
    result = metric.compute()
    counts = [
        top_k_accuracy_score(labels.numpy(), logits.numpy(), k=k, labels=np.arange(30), normalize=False)
        for k in (1, 5)
    ]
    assert result == {
        "top_1_correct": counts[0],
        "top_5_correct": counts[1],
        "n": 200,
        "top_1": counts[0] / 200,
        "top_5": counts[1] / 200,
    }
    assert all(type(result[key]) is int for key in ("top_1_correct", "top_5_correct", "n"))


def test_metric_takes_top_5_as_all_of_three_classes_and_counts_nan_as_wrong():
    metric = evaluate.load(METRIC)
    logits = np.array([[1.0, 2.0, 3.0], [1.0, 2.0, float("nan")]], dtype=np.float32)
    result = metric.compute(predictions=logits, references=[0, 1])
    assert (result["top_1_correct"], result["top_5_correct"], result["n"]) == (0, 1, 2)


def test_metric_names_a_reference_that_is_no_class():
    metric = evaluate.load(METRIC)
    with pytest.raises(ValueError, match=r"references must lie in \[0, 3\), got -1"):
        metric.compute(predictions=[[1.0, 2.0, 3.0]], references=[-1])
