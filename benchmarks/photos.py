"""
What training and fine-tuning are good for on a few real photographs, with two CPU cores.

    python -m benchmarks.photos                     # about seven minutes

1. TinyNet-E learns eight photographs from scratch: crops of the left part of each are for training, crops of the right
   part for validation, so that no pixel is in both.
2. Six other photographs, of which it gets few crops, are learned twice by one and the same recipe and in equally many
   steps: beginning from the weights of 1, and from scratch. Once for each seed.

Accuracies are counts of held-out crops, those of 2 at the last step.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from itertools import accumulate
from pathlib import Path
from typing import Any

from tests.photos import PHOTOS, write_photo_folder
from training.reporting.metrics import read_metrics
from training.system.environment import environment

ROOT = Path(__file__).parents[1]

IMAGE_SIZE = 96
FIRST_CLASSES = 8
GOAL = 0.9

FROM_SCRATCH = (
    *("--recipe", ROOT / "configuration" / "quickstart.yaml", "--image_size", IMAGE_SIZE),
    *("--horizontal_flip", 0.5, "--color_jitter", 0.4, "--crop_scale", 0.25, 1.0),
)
TRANSFER = (
    *("--recipe", ROOT / "configuration" / "finetune.yaml", "--image_size", IMAGE_SIZE),
    *("--global_batch_size", 32, "--per_device_batch_size", 32, "--lr", 1e-3),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=22, help="of the first training")
    parser.add_argument("--transfer_epochs", type=int, default=8, help="of each of the others")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--output", type=Path, help="JSON file for the results, such as benchmarks/results/photos.json"
    )
    options = parser.parse_args()

    names = sorted(PHOTOS)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_photo_folder(
            folder / "first", classes=names[:FIRST_CLASSES], crops_per_class=200, val_crops_per_class=50
        )
        write_photo_folder(folder / "new", classes=names[FIRST_CLASSES:], crops_per_class=20, val_crops_per_class=50)

        run = train(folder, "first", *FROM_SCRATCH, "--epochs", options.epochs)
        first = result(run) | {"classes": names[:FIRST_CLASSES]} | time_to_goal(run)
        print(f"first classes: {counts(first)} after {first['seconds']:.0f} s")

        last_only = ("--epochs", options.transfer_epochs, "--eval_every_epochs", options.transfer_epochs)
        rows = []
        for seed in range(options.seeds):
            row: dict[str, Any] = {"seed": seed}
            for how, model in (("fine_tuned", run / "best"), ("from_scratch", "tinynet_e")):
                row[how] = result(train(folder, "new", *TRANSFER, *last_only, "--model", model, "--seed", seed))
            rows.append(row)
            print(f"new classes, seed {seed}: fine-tuned {counts(row['fine_tuned'])}, ", end="")
            print(f"from scratch {counts(row['from_scratch'])}, {row['fine_tuned']['steps']} steps each")

    report = {
        "environment": environment(),
        "image_size": IMAGE_SIZE,
        "first": first,
        "new": {"classes": names[FIRST_CLASSES:], "by_seed": rows},
    }
    if options.output:
        options.output.write_text(json.dumps(report, indent=2) + "\n")


def train(folder: Path, dataset: str, *arguments: object) -> Path:
    """One run of train.py; returns its folder."""
    name = f"{dataset}-{len(list(folder.glob('runs/*')))}"
    command = [ROOT / "train.py", "--dataset", folder / dataset, "--run_name", name, *arguments]
    result = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=folder,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "true"},
        capture_output=True,
        text=True,
    )
    if result.returncode:
        sys.exit(result.stderr)
    return folder / "runs" / name


def result(run: Path) -> dict[str, Any]:
    summary = json.loads((run / "summary.json").read_text())
    return {
        "correct": summary["best"]["top_1_correct"],
        "n": summary["best"]["n"],
        "weights": summary["best"]["weights"],
        "num_train": summary["num_train"],
        "steps": summary["steps"],
        "seconds": summary["elapsed_s"],
    }


def time_to_goal(run: Path) -> dict[str, float | int | None]:
    """The first epoch that ends with the goal reached, and the seconds of training and evaluation up to there."""
    epochs = [record for record in read_metrics(run / "metrics.jsonl") if record["kind"] == "epoch"]
    for epoch, seconds in zip(epochs, accumulate(epoch["epoch_s"] for epoch in epochs), strict=True):
        if max(epoch[weights]["top_1_correct"] for weights in ("raw", "ema")) >= GOAL * epoch["raw"]["n"]:
            return {"goal": GOAL, "epochs_to_goal": epoch["epoch"], "seconds_to_goal": seconds}
    return {"goal": GOAL, "epochs_to_goal": None, "seconds_to_goal": None}


def counts(figures: dict[str, Any]) -> str:
    return f"{figures['correct']}/{figures['n']} = {100 * figures['correct'] / figures['n']:.1f} %"


if __name__ == "__main__":
    main()
