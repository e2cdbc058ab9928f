"""The result of a run: its summary, and the proof that its best model is usable."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import PIL.Image
from transformers import pipeline

from modeling_tinynet import TinyNetConfig
from training.config.train_config import TrainConfig
from training.data.decoding import decode_rgb
from training.data.sources import Splits, num_samples
from training.evaluation.metrics import EvaluationResult, card_metrics
from training.loading.sampling import TrainingPlan
from training.reporting.console import advice, format_duration
from training.run.progress import Progress
from training.system.environment import environment


def run_summary(
    config: TrainConfig,
    run_name: str,
    splits: Splits,
    plan: TrainingPlan,
    network_config: TinyNetConfig,
    progress: Progress,
    results: Mapping[str, EvaluationResult],
    *,
    images_per_s: float | None,
    elapsed_s: float,
    time_shares: Mapping[str, float],
) -> dict[str, Any]:
    """What `summary.json` holds of a finished run.

    Args:
        results: of the last evaluation, by weights: raw, ema.
        images_per_s: of the last steps.
        elapsed_s: of training, over all starts.
        time_shares: percent of this start's time by part.
    """
    return {
        "run": run_name,
        "model": config.model,
        "dataset": config.dataset,
        "is_local": {
            "model": Path(config.model).expanduser().exists(),
            "dataset": Path(config.dataset).expanduser().exists(),
        },
        "num_train": plan.num_samples,
        "num_validation": num_samples(splits.validation),
        "num_classes": len(splits.class_names),
        "parameters": network_config.parameter_count,
        "macs": network_config.macs,
        "image_size": network_config.image_size,
        "epochs": config.epochs,
        "steps": config.epochs * plan.steps_per_epoch,
        "best": progress.best,
        **card_metrics(len(splits.class_names)),
        "last": {name: result.to_dict() for name, result in results.items()},
        "images_per_s": images_per_s,
        "elapsed_s": elapsed_s,
        "changes": progress.changes,
        "time_shares": time_shares,
        "processes": plan.num_processes,
        "precision": config.precision,
        "environment": environment(),
    }


def print_result(run_folder: Path, summary: Mapping[str, Any], splits: Splits) -> None:
    """The result, and the proof that it is usable: one held-out image through transformers' own pipeline."""
    best, shares = summary["best"], summary["time_shares"]
    print(
        f"\nbest: top-1 {best['top_1_correct']}/{best['n']} = {100 * best['top_1']:.3f} % ({best['weights']} weights, "
        f"epoch {best['epoch']}); {format_duration(summary['elapsed_s'])} in all"
    )
    spent = [f"{part.replace('_', '/')} {share:.0f} %" for part, share in shares.items() if share >= 1]
    print(f"time: {', '.join(spent)}")
    if hint := advice(shares):
        print(hint)
    sample = next(iter(splits.validation))
    image = PIL.Image.fromarray(decode_rgb(sample[splits.image_column]).permute(1, 2, 0).numpy())
    answer = pipeline("image-classification", model=str(run_folder / "best"))(image)[0]
    print(
        f'pipeline("image-classification", model="{run_folder}/best"): a held-out image of '
        f"{splits.class_names[sample[splits.label_column]]!r} is {answer['label']!r} with score {answer['score']:.3f}"
    )
