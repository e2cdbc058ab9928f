"""The model card of a run: facts of its files, put into `template.md`. What is not known is left out.

Source of form and keys: the Hub's documentation of model cards, through huggingface_hub's ModelCardData.
"""

import json
import re
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from hub_card.markdown import count, plain
from hub_card.metrics import class_metrics_of, hub_args, metric_text, metric_value, metrics_of
from hub_card.run import Run
from hub_card.transform import input_sentence
from modeling_tinynet import TINYNET_VARIANTS

TEMPLATE = Path(__file__).with_name("template.md")
BENCHMARKS = Path(__file__).parents[1] / "benchmarks" / "results" / "model.json"
ARXIV = "2010.14819"
MOST_CLASSES = 20  # named in the introduction
MOST_WEAK_CLASSES = 10
# In a generated card, and gone from one that somebody made their own.
MARK = "<!-- Written by hub_card.push from a run. Without this line it is yours, and never replaced. -->"
# Settings that do not decide about the weights, and those that another one makes idle.
NOT_SHOWN = {
    *("streaming", "on_bad_image", "on_nonfinite", "rescale", "compile", "channels_last", "allow_data_change", "keep"),
    *("save_every_epochs", "save_every", "eval_every_epochs", "log_every_steps", "num_workers", "timeout_s"),
    *("train_split", "validation_split", "image_column", "label_column"),
}
IDLE = {
    ("schedule", "cosine"): {"decay_epochs", "decay_rate"},
    ("schedule", "staircase"): {"min_lr"},
    ("optimizer", "adamw"): {"momentum", "rho"},
    ("optimizer", "sgd"): {"rho", "optimizer_eps"},
}


def model_card(run: Run, repository: str, license: str = "apache-2.0", benchmarks: Path = BENCHMARKS) -> str:
    """The text of README.md.

    Args:
        run: a finished one.
        repository: `me/tinynet-flowers`, for title and snippets.
        license: of the weights, by the Hub's name for it.
        benchmarks: results of `python -m benchmarks.model`; left out where there is no such file.
    """
    facts = _facts(run, repository, benchmarks)
    card = ModelCard.from_template(
        _metadata(run, repository, license), template_path=str(TEMPLATE), license=license, **facts
    )
    return re.sub(r"\n{3,}", "\n\n", str(card)).rstrip() + "\n"


def _metadata(run: Run, repository: str, license: str) -> ModelCardData:
    best, metrics = run.summary["best"], metrics_of(run.summary)
    results = [
        EvalResult(
            task_type="image-classification",
            task_name="Image classification",
            dataset_type=run.hub_dataset or "imagefolder",
            dataset_name=run.dataset,
            metric_type=metric["hub_type"],
            metric_name=metric["label"],
            metric_value=metric_value(metric, best),
            metric_args=hub_args(metric, best),
        )
        for metric in metrics
    ]
    return ModelCardData(
        license=license,
        library_name="transformers",
        pipeline_tag="image-classification",
        tags=["tinynet", f"arxiv:{ARXIV}"],
        datasets=[run.hub_dataset] if run.hub_dataset else None,
        metrics=list(dict.fromkeys(metric["hub_type"] for metric in metrics)),
        base_model=run.base_model,
        base_model_relation="finetune" if run.base_model else None,
        model_name=repository.partition("/")[2],
        eval_results=results,
    )


def _facts(run: Run, repository: str, benchmarks: Path) -> dict[str, Any]:
    """By the names that the template uses."""
    network, summary = run.network, run.summary
    labels = [network.id2label[index] for index in range(network.num_labels)]
    return {
        "repository": repository,
        "title": plain(repository.partition("/")[2]),
        "network": _network_name(network.variant),
        "variant": network.variant,
        "width": network.width_multiplier,
        "depth": network.depth_multiplier,
        "labels": [plain(label) for label in labels] if len(labels) <= MOST_CLASSES else [],
        "num_labels": len(labels),
        "mark": MARK,
        "dataset": _dataset(run),
        "base_model": _link(run.base_model) if run.base_model else None,
        "is_fine_tuned": run.is_fine_tuned,
        "is_imagenet": "imagenet" in run.dataset.lower(),
        "knows_imagenet": bool(re.search(r"in1k|imagenet", run.base_model or "")),
        "training": ", ".join(
            count(summary[number], noun)
            for number, noun in (("num_train", "image"), ("epochs", "epoch"), ("steps", "update"))
        ),
        "held_out": count(summary["num_validation"], "held-out image"),
        "image_size": summary["image_size"],
        "input": input_sentence(run.processor),
        "parameters": f"{summary['parameters']:,}",
        "macs": f"{summary['macs'] / 1e6:,.1f} M",
        "hidden_size": f"{network.hidden_size:,}",
        "channels": [network.hidden_sizes[index] for index in (2, 4, 6)] if network.num_hidden_layers == 7 else [],
        "best": summary["best"],
        "metrics": [plain(metric["label"]) for metric in metrics_of(summary)],
        "metric_rows": _metric_rows(run),
        "class_metrics": [plain(metric["label"]) for metric in class_metrics_of(summary)],
        "weak_classes": _weak_classes(run),
        "latency": _latency(run, benchmarks),
        "recipe": _recipe_rows(run.public_recipe()),
        "processes": summary["processes"],
        "changes": [plain(change) for change in run.changes],
        "duration": _duration(summary["elapsed_s"]),
        "images_per_s": f"{summary['images_per_s']:.0f}" if summary["images_per_s"] else None,
        "device": _device(summary["environment"]),
        "versions": ", ".join(
            plain(f"{name} {version}")
            for name, version in summary["environment"]["versions"].items()
            if version and name in ("modeling-tinynet", "torch", "transformers", "accelerate")
        ),
        "commit": plain(summary["environment"]["commit"] or ""),
        "date": plain(summary["environment"]["date"]),
        "arxiv": ARXIV,
    }


def _link(repository: str, folder: str = "") -> str:
    return f"[{plain(repository)}](https://huggingface.co/{folder}{repository})"


def _dataset(run: Run) -> str:
    if run.hub_dataset:
        return _link(run.hub_dataset, "datasets/")
    return "scikit-learn's handwritten digits" if run.summary["dataset"] == "digits" else plain(run.dataset)


def _device(environment: dict[str, Any]) -> str:
    if environment["gpu"]:
        return plain(environment["gpu"])
    cores = environment["cpu_cores"]
    return plain(environment["processor"]) + (f" ({count(cores, 'core')})" if cores else "")


def _network_name(variant: str | None) -> str:
    return f"TinyNet-{variant[-1].upper()}" if variant else "TinyNet"


def _metric_rows(run: Run) -> list[tuple[str, list[str]]]:
    """(weights, the metrics) at the epoch whose weights are published."""
    best, metrics = run.summary["best"], metrics_of(run.summary)
    record = next((r for r in run.records if r["kind"] == "epoch" and r["epoch"] == best["epoch"]), {})
    counts = {name: record[name] for name in ("raw", "ema") if record.get(name)} or {best["weights"]: best}
    words = {"raw": "as trained", "ema": "EMA"}
    return [
        (
            words[name] + (" (published here)" if name == best["weights"] else ""),
            [metric_text(metric, c) for metric in metrics],
        )
        for name, c in counts.items()
    ]


def _weak_classes(run: Run) -> list[tuple[str, list[str]]]:
    """(class, its metrics), the lowest recall first; classes whose images are all correct are not among them."""
    wrong = [c for c in run.summary["best"].get("per_class", []) if c["top_1_correct"] < c["n"]]
    wrong.sort(key=lambda c: c["top_1_correct"] / c["n"])
    metrics = class_metrics_of(run.summary)
    return [(plain(c["class"]), [metric_text(metric, c) for metric in metrics]) for c in wrong[:MOST_WEAK_CLASSES]]


def _latency(run: Run, benchmarks: Path) -> dict[str, Any] | None:
    """The forward pass as benchmarked, where that was of this variant at this image size; else None."""
    variant = run.network.variant
    if variant is None or run.network.image_size != TINYNET_VARIANTS[variant]["image_size"] or not benchmarks.exists():
        return None
    measured = json.loads(benchmarks.read_text())
    forward = [r for r in measured["results"] if r["variant"] == variant and r["what"] == "forward"]
    if not forward:
        return None
    machine = measured["environment"]
    return {
        "batch_size": measured["batch_size"],
        "threads": measured["threads"],
        "ms": f"{forward[0]['ours_ms']:.1f}",
        "machine": machine["gpu"] or machine["processor"],
        "torch": machine["versions"]["torch"],
    }


def _duration(seconds: float) -> str:
    if seconds < 600:
        return count(round(seconds), "second")
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"


def _recipe_rows(recipe: dict[str, Any]) -> list[tuple[str, str]]:
    hidden = NOT_SHOWN.union(*(idle for (name, value), idle in IDLE.items() if recipe[name] == value))
    return [(name, _setting(value)) for name, value in recipe.items() if value is not None and name not in hidden]


def _setting(value: Any) -> str:
    if isinstance(value, list):
        return " to ".join(_setting(item) for item in value)
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else plain(str(value))
