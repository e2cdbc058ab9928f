"""
Training images per second beside timm's train.py and transformers' example, on one folder of JPEGs.

    python -m benchmarks.train tinynet_e --timm_train TRAIN_PY --hf_example RUN_IMAGE_CLASSIFICATION_NO_TRAINER_PY

The two scripts are in no wheel: take them from the repositories of timm and transformers. Seven minutes on two cores;
on a machine with more, `taskset -c 0,1` before the command leaves two.

What is compared: the whole of training, from JPEG files to updated weights, in float32 on a CPU, by the published
recipe: random crops, flips, colour jitter 0.4, label smoothing, dropout, RMSProp, EMA. All have the same
folder of crops from photographs (about 450 x 430 pixels, as ImageNet's), network, image size, batch, number of loader
workers and number of threads. All else is as each script comes:

- timm's script gets that recipe by its flags, bicubic resizing too, and channels-last memory, which is the default
  here and makes timm faster.
- transformers' example has a recipe of its own, and does less: no jitter, bilinear resizing, no smoothing, no moving
  average, AdamW. It trains this package's network. It has no flag for loader workers, and gets them from here.

How: each run is a process of its own. A hook on its optimizer notes when each step ends and stops the run after some
seconds, in its first epoch and before any evaluation. The first steps, which wait for start-up, do not count. The
trainers take turns, the order swapped at each round. A ratio is the median over rounds of images per second here to
there, above 1 where training is faster here.

--variables NAME=VALUE ... sets environment variables for all trainers alike.
"""

import argparse
import functools
import json
import math
import os
import runpy
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from transformers.utils.logging import disable_progress_bar

from benchmarks.timing import median_ratio, stop_after
from modeling_tinynet import TINYNET_VARIANTS, TinyNetConfig, TinyNetForImageClassification, TinyNetImageProcessor
from tests.photos import PHOTOS, write_photo_folder
from training.config.train_config import TrainConfig
from training.system.environment import environment

ROOT = Path(__file__).parents[1]
PUBLISHED = TrainConfig()
CROP_SIZE = (440, 500)  # longer side of an image, in pixels
RUN = "run"  # first argument of the processes that this script starts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("variant", choices=TINYNET_VARIANTS)
    parser.add_argument("--timm_train", type=Path, required=True, help="timm's train.py")
    parser.add_argument("--hf_example", type=Path, required=True, help="run_image_classification_no_trainer.py")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each trainer")
    parser.add_argument("--seconds", type=float, default=20, help="that count in a run")
    parser.add_argument("--warmup_steps", type=int, default=4, help="steps before them")
    parser.add_argument("--images", type=int, default=6000, help="in the folder: more than a run takes")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--num_workers", type=int, default=2)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of the training process")
    parser.add_argument("--variables", nargs="*", default=[], metavar="NAME=VALUE")
    parser.add_argument(
        "--output", type=Path, help="JSON file for the results, such as benchmarks/results/train_tinynet_e.json"
    )
    options = parser.parse_args()
    disable_progress_bar()

    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder, "photos")
        crops_per_class = math.ceil(options.images / len(PHOTOS))
        write_photo_folder(data, crops_per_class=crops_per_class, val_crops_per_class=5, size=CROP_SIZE)
        commands = {
            "ours": our_command(data, options),
            "timm": timms_command(data, options),
            "transformers": transformers_command(data, options, Path(folder, "model")),
        }
        seconds = seconds_per_image(commands, Path(folder), options)

    names = ("variant", "batch_size", "num_workers", "threads", "variables", "rounds", "seconds", "warmup_steps")
    report = {
        "environment": environment(),
        **{name: getattr(options, name) for name in names},
        "images_per_s": {name: 1 / statistics.median(values) for name, values in seconds.items()},
        "ratio_to": {name: median_ratio(seconds[name], seconds["ours"]) for name in commands if name != "ours"},
        "images_per_s_by_round": {name: [1 / value for value in values] for name, values in seconds.items()},
    }
    if options.output:
        options.output.write_text(json.dumps(report, indent=2) + "\n")
    for name, rate in report["images_per_s"].items():
        ratio = f", ratio {report['ratio_to'][name]:.3f}" if name in report["ratio_to"] else ""
        print(f"{options.variant} {name:>12}: {rate:6.1f} images/s{ratio}")


def our_command(data: Path, options: argparse.Namespace) -> list[str]:
    return [
        str(ROOT / "train.py"),
        *("--recipe", str(ROOT / "configuration" / f"{options.variant}.yaml"), "--dataset", str(data)),
        *("--global_batch_size", str(options.batch_size), "--per_device_batch_size", str(options.batch_size)),
        *("--rescale", "--num_workers", str(options.num_workers)),
    ]


def timms_command(data: Path, options: argparse.Namespace) -> list[str]:
    flags = {
        "data-dir": data,
        "val-split": "",
        "model": options.variant,
        "num-classes": len(PHOTOS),
        "drop": TinyNetConfig.from_variant(options.variant).dropout_rate,
        "batch-size": options.batch_size,
        "workers": options.num_workers,
        "device": "cpu",
        "epochs": PUBLISHED.epochs,
        "sched": "step",
        "lr": PUBLISHED.lr * options.batch_size / PUBLISHED.global_batch_size,
        "warmup-epochs": int(PUBLISHED.warmup_epochs),
        "warmup-lr": PUBLISHED.warmup_lr,
        "decay-epochs": PUBLISHED.decay_epochs,
        "decay-rate": PUBLISHED.decay_rate,
        "opt": "rmsproptf",
        "opt-eps": PUBLISHED.optimizer_eps,
        "momentum": PUBLISHED.momentum,
        "weight-decay": PUBLISHED.weight_decay,
        "model-ema-decay": PUBLISHED.ema_decay,
        "color-jitter": PUBLISHED.color_jitter,
        "train-interpolation": "bicubic",
        "smoothing": PUBLISHED.label_smoothing,
        "output": "timm",
    }
    words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    return [str(options.timm_train.resolve()), *words, "--model-ema", "--channels-last"]


def transformers_command(data: Path, options: argparse.Namespace, model: Path) -> list[str]:
    # The example crops to the size that a processor resizes to before its central crop: here the network's own.
    config = TinyNetConfig.from_variant(options.variant, num_labels=len(PHOTOS), crop_pct=1.0)
    TinyNetForImageClassification(config).save_pretrained(model)
    TinyNetImageProcessor.from_config(config).save_pretrained(model)
    return [
        str(options.hf_example.resolve()),
        *("--model_name_or_path", str(model), "--dataset_name", str(data), "--output_dir", "transformers"),
        *("--per_device_train_batch_size", str(options.batch_size), "--num_train_epochs", "1"),
        *("--learning_rate", "1e-3", "--weight_decay", str(PUBLISHED.weight_decay)),
    ]


def seconds_per_image(
    commands: dict[str, list[str]], folder: Path, options: argparse.Namespace
) -> dict[str, list[float]]:
    """Of each trainer by round."""
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for round_number in range(options.rounds):
        for name in list(commands)[:: -1 if round_number % 2 else 1]:
            with tempfile.TemporaryDirectory(dir=folder) as run_folder:
                times = step_times(name, commands[name], Path(run_folder), folder / "huggingface", options)
            if (options.warmup_steps + len(times)) * options.batch_size > options.images:
                sys.exit(f"{name} came to the end of an epoch: raise --images above {options.images}")
            seconds[name].append((times[-1] - times[0]) / ((len(times) - 1) * options.batch_size))
    return seconds


def step_times(
    name: str, command: list[str], run_folder: Path, hugging_face: Path, options: argparse.Namespace
) -> list[float]:
    """When each step of one run ended, from the last warm-up step on."""
    times = run_folder / "times.json"
    variables = {
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": str(options.threads),
        "CUDA_VISIBLE_DEVICES": "",
        "ACCELERATE_USE_CPU": "true",
        "HF_HOME": str(hugging_face),
        "HF_HUB_OFFLINE": "1",
        **dict(variable.split("=", 1) for variable in options.variables),
    }
    arguments = [RUN, name, times, options.seconds, options.warmup_steps, options.num_workers, *command]
    result = subprocess.run(
        [sys.executable, "-m", "benchmarks.train", *map(str, arguments)],
        cwd=run_folder,
        env=os.environ | variables,
        capture_output=True,
        text=True,
    )
    if not times.exists():
        sys.exit(f"{name} ended too early:\n{result.stdout[-2000:]}\n{result.stderr[-4000:]}")
    return json.loads(times.read_text())


def run(
    name: str, times: str, seconds: str, warmup_steps: str, num_workers: str, script: str, *arguments: str
) -> None:
    """Run a trainer's script as if it had been started itself, with a clock on its optimizer."""
    if name == "transformers":
        # Its loaders say nothing of workers, and its metric, which is not reached, would be fetched from the Hub.
        import evaluate

        loader = torch.utils.data.DataLoader
        loader.__init__ = functools.partialmethod(loader.__init__, num_workers=int(num_workers))
        evaluate.load = lambda name: None
    stop_after(float(seconds), int(warmup_steps), Path(times))
    sys.argv = [script, *arguments]
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    if sys.argv[1:2] == [RUN]:
        run(*sys.argv[2:])
    else:
        main()
