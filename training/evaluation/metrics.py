"""The metrics of an evaluation: each is declared once, in METRICS or CLASS_METRICS below.

From there it reaches metrics.jsonl, the epoch table, curves.png, the tracker, summary.json, the model card,
`training.compare` and eval.py. A metric is a function of integer counts that are exact on any number of ranks. What is
shown is read from files, and a file that was written before a metric was declared lacks it: that shows as "-".
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, TypeVar

TABLE, CURVES, CARD = "table", "curves", "card"  # where people see a metric; logs, tracker and summary hold all
EVERYWHERE = frozenset({TABLE, CURVES, CARD})


class ClassCounts(NamedTuple):
    """Images of one class: predicted correctly, belonging to it, predicted to belong to it."""

    top_1_correct: int
    n: int
    predicted: int


@dataclass(frozen=True)
class EvaluationResult:
    """What one model predicted, over all ranks. With fewer than five classes top-5 is top-K.

    `confusion[label][prediction]` counts images, and is None unless it was asked for. An image whose logits hold a NaN
    has no prediction: it is in no column, adds to no `class_predicted`, and counts as wrong.
    """

    n: int
    top_1_correct: int
    top_5_correct: int
    loss_sum: float
    class_correct: list[int]
    class_total: list[int]
    class_predicted: list[int]
    confusion: list[list[int]] | None = None

    @property
    def class_counts(self) -> list[ClassCounts]:
        """The counts of each class, by its index."""
        columns = (self.class_correct, self.class_total, self.class_predicted)
        return [ClassCounts(*counts) for counts in zip(*columns, strict=True)]

    def metrics(self) -> Iterator[tuple[str, float | None]]:
        """(name, value) of each metric. A fraction lies in [0, 1]."""
        for metric in METRICS:
            yield metric.name, metric.value(self)

    def to_dict(self) -> dict[str, int | float | None]:
        """The counts and the metrics, for a metrics file."""
        counts = {"n": self.n, "top_1_correct": self.top_1_correct, "top_5_correct": self.top_5_correct}
        return counts | dict(self.metrics())

    def per_class(self, class_names: Sequence[str]) -> list[dict[str, Any]]:
        """Counts and metrics of each class by its name, for a file of results; classes without images are left out."""
        return [
            {"class": name, **counts._asdict(), **{metric.name: metric.value(counts) for metric in CLASS_METRICS}}
            for name, counts in zip(class_names, self.class_counts, strict=True)
            if counts.n
        ]

    def __str__(self) -> str:
        """`top-1 35607/50000 = 71.214 %`"""
        return f"{TOP_1.label} {TOP_1.text(self.to_dict())}"


Counts = TypeVar("Counts", EvaluationResult, ClassCounts)


@dataclass(frozen=True)
class Metric(Generic[Counts]):
    """One number of an evaluation, or of one class: how it is computed, and how people see it.

    Args:
        name: the key in files and trackers.
        label: what people read.
        value: computes it; None where it is undefined.
        ratio: the keys of the two counts whose ratio it is, if it is one: it is then shown with them.
        percent: a fraction in [0, 1], shown in percent.
        digits: decimals in a text.
        least_classes: with fewer, it says nothing and is left out of the card.
        places: some of TABLE, CURVES (in percent only) and CARD.
        hub_type: the Hub's name for it in a card's metadata; its own name if None.
        hub_args: the arguments that the Hub shows with it.
    """

    name: str
    label: str
    value: Callable[[Counts], float | None]
    ratio: tuple[str, str] | None = None
    percent: bool = True
    digits: int = 3
    least_classes: int = 1
    places: frozenset[str] = EVERYWHERE
    hub_type: str | None = None
    hub_args: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if CURVES in self.places and not self.percent:
            raise ValueError(f"metric {self.name} is not in percent, as the panel of the curves is: leave out CURVES")

    def number(self, record: Mapping[str, Any] | None) -> float:
        """As people see it, in percent if it is a fraction.

        Args:
            record: what `to_dict` or a row of `per_class` gave, from a file of any age; None without an evaluation.

        Returns:
            NaN where the record does not have it.
        """
        scale = 100.0 if self.percent else 1.0
        if record and self.ratio and all(key in record for key in self.ratio):
            part, whole = (record[key] for key in self.ratio)
            return scale * part / whole if whole else math.nan
        value = record.get(self.name) if record else None
        return math.nan if value is None else scale * value

    def text(self, record: Mapping[str, Any] | None) -> str:
        """`35607/50000 = 71.214 %`, or `71.214 %` if it is no ratio of counts, or `-` where the record lacks it."""
        number = self.number(record)
        if record is None or math.isnan(number):
            return "-"
        text = f"{number:.{self.digits}f}" + (" %" if self.percent else "")
        if self.ratio and all(key in record for key in self.ratio):
            text = "{}/{} = {}".format(*(record[key] for key in self.ratio), text)
        return text

    def description(self) -> dict[str, Any]:
        """What a reader of the summary needs to show it."""
        return {
            "name": self.name,
            "label": self.label,
            "ratio": dict(zip(("part", "whole"), self.ratio, strict=True)) if self.ratio else None,
            "percent": self.percent,
            "digits": self.digits,
            "hub_type": self.hub_type or self.name,
            "hub_args": dict(self.hub_args),
        }


def _ratio(name: str, label: str, part: str, whole: str, **shown: Any) -> Metric[Any]:
    def value(counts: EvaluationResult | ClassCounts) -> float | None:
        return getattr(counts, part) / getattr(counts, whole) if getattr(counts, whole) else None

    return Metric(name, label, value, ratio=(part, whole), **shown)


def _f1(counts: ClassCounts) -> float | None:
    """Harmonic mean of precision and recall; None for a class that has no images and was never predicted."""
    images = counts.n + counts.predicted
    return 2 * counts.top_1_correct / images if images else None


def macro_f1(result: EvaluationResult) -> float:
    """The mean F1 of the classes that have images or were predicted, as scikit-learn's
    `f1_score(average="macro", zero_division=0)`: a class that has images and was never predicted has F1 0, and so has
    one that was predicted and has no images; one that is neither is left out."""
    scores = [score for counts in result.class_counts if (score := _f1(counts)) is not None]
    return math.fsum(scores) / len(scores)


# The best checkpoint is chosen by this one, and among equals by the loss.
TOP_1 = _ratio("top_1", "top-1", "top_1_correct", "n", hub_type="accuracy")
METRICS: list[Metric[EvaluationResult]] = [
    TOP_1,
    _ratio(
        "top_5",
        "top-5",
        "top_5_correct",
        "n",
        hub_type="accuracy",
        least_classes=6,
        places=frozenset({TABLE, CARD}),
    ),
    # Mean cross-entropy without label smoothing, in nats.
    Metric("loss", "loss", lambda result: result.loss_sum / result.n, percent=False, places=frozenset()),
    Metric("macro_f1", "macro-F1", macro_f1, hub_type="f1", hub_args={"average": "macro"}),
]
CLASS_METRICS: list[Metric[ClassCounts]] = [
    _ratio("recall", "recall", "top_1_correct", "n", digits=1),  # the class's own top-1 accuracy
    _ratio("precision", "precision", "top_1_correct", "predicted", digits=1),  # undefined for one never predicted
    Metric("f1", "F1", _f1, digits=1),
]


def shown_in(place: str) -> list[Metric[EvaluationResult]]:
    """The metrics of `place`: TABLE, CURVES or CARD."""
    return [metric for metric in METRICS if place in metric.places]


def card_metrics(num_classes: int) -> dict[str, list[dict[str, Any]]]:
    """Descriptions of what a model card shows, for the summary, which is all that the card knows of a run."""
    return {
        "metrics": [metric.description() for metric in shown_in(CARD) if num_classes >= metric.least_classes],
        "class_metrics": [metric.description() for metric in CLASS_METRICS if CARD in metric.places],
    }
