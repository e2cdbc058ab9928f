"""The metrics of a run, as its summary describes them: the card needs to know no metric by its name."""

from typing import Any

Metric = dict[str, Any]  # of the kind METRIC of the schema


def metrics_of(summary: dict[str, Any]) -> list[Metric]:
    """Those that the published weights were evaluated by. Summaries did not always describe them."""
    described = summary.get("metrics", _accuracies(summary["num_classes"]))
    return [metric for metric in described if metric_value(metric, summary["best"]) is not None]


def class_metrics_of(summary: dict[str, Any]) -> list[Metric]:
    """Those of each class."""
    rows = summary["best"].get("per_class", [])
    described = summary.get("class_metrics", [_ratio("recall", "recall", "top_1_correct", digits=1)])
    return [metric for metric in described if any(metric_value(metric, row) is not None for row in rows)]


def metric_value(metric: Metric, record: dict[str, Any]) -> float | None:
    """A fraction if the metric is shown in percent; None where the record does not have it."""
    counts = _counts(metric, record)
    if counts is not None:
        return counts[0] / counts[1] if counts[1] else None
    return record.get(metric["name"])


def metric_text(metric: Metric, record: dict[str, Any]) -> str:
    """`351/359 = 97.772 %`, or `97.772 %` if it is no ratio of counts, or `-`."""
    number, counts = metric_value(metric, record), _counts(metric, record)
    if number is None:
        return "-"
    shown = f"{100 * number if metric['percent'] else number:.{metric['digits']}f}"
    shown += " %" if metric["percent"] else ""
    return f"{counts[0]}/{counts[1]} = {shown}" if counts else shown


def hub_args(metric: Metric, record: dict[str, Any]) -> dict[str, Any]:
    """What the Hub shows beside the value: its arguments and counts."""
    counts = _counts(metric, record)
    return metric["hub_args"] | ({"correct": counts[0], "n": counts[1]} if counts else {})


def _counts(metric: Metric, record: dict[str, Any]) -> tuple[int, int] | None:
    if metric["ratio"] is None:
        return None
    part, whole = record.get(metric["ratio"]["part"]), record.get(metric["ratio"]["whole"])
    return None if part is None or whole is None else (part, whole)


def _accuracies(num_classes: int) -> list[Metric]:
    """Top-5 of five classes is always correct, and says nothing."""
    ks = (1, 5) if num_classes > 5 else (1,)
    return [_ratio(f"top_{k}", f"top-{k}", f"top_{k}_correct", digits=3) for k in ks]


def _ratio(name: str, label: str, part: str, *, digits: int) -> Metric:
    shown = {"percent": True, "digits": digits, "hub_type": "accuracy", "hub_args": {}}
    return {"name": name, "label": label, "ratio": {"part": part, "whole": "n"}} | shown
