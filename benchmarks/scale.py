"""
Start-up and memory with as many images as ImageNet-1k has.

    python -m benchmarks.scale --output benchmarks/results/scale.json      # some minutes, 3 GB of disk

Makes two datasets of 1,281,167 tiny JPEGs in 1,000 classes: rows of Parquet, and a tree of files (hard links to one
for each class). Then a process of its own does with each what train.py does before its first step: finds and checks
the splits, takes the fingerprints, starts loader workers and waits for their first batch; twice, because `datasets`
turns Parquet into its cache the first time. Counted are the seconds from the start of Python, and the peak of each
process's resident memory, in which the libraries and the pages of the mapped cache that it has read are included, and
what is its own at the end.

Not in the tests: nothing shorter than the real size shows what a list of a million items costs.
"""

import argparse
import io
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from training.data.fingerprint import data_fingerprint, file_sizes
from training.data.sources import IMAGENET_COUNTS, load_splits
from training.loading.loaders import build_dataset, build_eval_loader, build_train_loader
from training.loading.sampling import TrainingPlan
from training.system.environment import environment
from training.transforms.augmentation import EvalTransform, TrainTransform

START = "start"  # first argument of the processes that this script starts
NUM_CLASSES = 1000
SHARD = 20_000
DIFFERENT = 500  # tiny images, used again and again
BATCH_SIZE = 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=IMAGENET_COUNTS["train"])
    parser.add_argument("--classes", type=int, default=NUM_CLASSES)
    parser.add_argument("--num_workers", type=int, default=2)
    parser.add_argument("--kinds", nargs="*", choices=MAKERS, default=list(MAKERS))
    parser.add_argument("--folder", type=Path, help="where to put the data for a while (default: the system's)")
    parser.add_argument("--output", type=Path, help="JSON file for the results, such as benchmarks/results/scale.json")
    options = parser.parse_args()

    names = ("images", "classes", "num_workers")
    report: dict[str, Any] = {
        "environment": environment(),
        **{name: getattr(options, name) for name in names},
        "results": [],
    }
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        for kind in options.kinds:
            root = Path(temporary, kind)
            MAKERS[kind](root, options.images, options.classes)
            cache = {"HF_HOME": str(Path(temporary, "cache")), "HF_HUB_OFFLINE": "1"}
            for turn in ("first", "again"):
                command = [sys.executable, "-m", "benchmarks.scale", START, str(root), str(options.num_workers)]
                started_at = str(time.time())
                answer = subprocess.run([*command, started_at], env=os.environ | cache, capture_output=True, text=True)
                if answer.returncode:
                    sys.exit(answer.stderr)
                row = {"kind": kind, "turn": turn, **json.loads(answer.stdout.splitlines()[-1])}
                report["results"].append(row)
                print(json.dumps(row))
    if options.output:
        options.output.write_text(json.dumps(report, indent=2) + "\n")


def tiny_jpegs() -> list[bytes]:
    pictures = []
    for pixels in np.random.default_rng(0).integers(0, 256, (DIFFERENT, 8, 8, 3), np.uint8):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG")
        pictures.append(file.getvalue())
    return pictures


def make_parquet(root: Path, pictures: int, classes: int) -> None:
    """`root/train-*.parquet` with `images` rows, and a validation split of a hundredth."""
    root.mkdir()
    jpegs = pa.array(tiny_jpegs(), pa.binary())
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=[f"n{i:08}" for i in range(classes)])}
    )
    for split, count in (("train", pictures), ("validation", max(classes, pictures // 100))):
        shards = -(-count // SHARD)
        for shard in range(shards):
            rows = np.arange(count * shard // shards, count * (shard + 1) // shards)
            paths = pa.array([f"{split}_{row:08}.JPEG" for row in rows])
            images = pa.StructArray.from_arrays([jpegs.take(pa.array(rows % DIFFERENT)), paths], ["bytes", "path"])
            table = pa.Table.from_arrays([images, pa.array(rows % classes)], schema=features.arrow_schema)
            pq.write_table(table, root / f"{split}-{shard:05}-of-{shards:05}.parquet", compression="none")


def make_tree(root: Path, pictures: int, classes: int) -> None:
    """`root/{train,val}/<class>/*.JPEG`, hard links to one file for each class, which few file systems limit."""
    jpegs = tiny_jpegs()
    for split, count in (("train", pictures), ("val", max(classes, pictures // 100))):
        for label in range(classes):
            folder = root / split / f"n{label:08}"
            folder.mkdir(parents=True)
            first = folder / "00000000.JPEG"
            first.write_bytes(jpegs[label % DIFFERENT])
            for number in range(label + classes, count, classes):
                os.link(first, folder / f"{number:08}.JPEG")


MAKERS = {"parquet": make_parquet, "tree": make_tree}


def start(dataset: str, num_workers: str, started_at: str) -> None:
    """What train.py does with data before its first step; prints seconds and memory as JSON."""
    seconds = {"imports": time.time() - float(started_at)}

    def done(what: str) -> None:
        seconds[what] = time.time() - float(started_at) - sum(seconds.values())

    splits = load_splits(dataset)
    done("splits")
    for split in (splits.train, splits.validation):
        data_fingerprint(split, splits.image_column, splits.label_column)
        file_sizes(split, splits.image_column)
    done("fingerprints")
    reading = {
        "columns": (splits.image_column, splits.label_column),
        "num_classes": len(splits.class_names),
        "seed": 0,
        "rank": 0,
        "num_processes": 1,
    }
    plan = TrainingPlan(len(splits.train), BATCH_SIZE, BATCH_SIZE, drop_last=True)
    loader = build_train_loader(
        build_dataset(splits.train, TrainTransform(32), **reading),
        plan,
        rank=0,
        total_steps=10 * plan.steps_per_epoch,
        num_workers=int(num_workers),
    )
    build_eval_loader(build_dataset(splits.validation, EvalTransform(32, 36), **reading), batch_size=BATCH_SIZE)
    batches = iter(loader)
    next(batches)
    done("first_batch")
    for _ in range(10):
        next(batches)
    workers = [memory_mb(process.pid) for process in multiprocessing.active_children()]
    result = {
        "seconds": sum(seconds.values()),
        "seconds_by_part": seconds,
        "memory_mb": memory_mb(os.getpid()),
        "memory_mb_of_workers": workers,
    }
    print(json.dumps(result))


def memory_mb(process: int) -> dict[str, float]:
    """Of a process, from Linux's /proc: the peak of its resident memory, and what is its own now."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    status = dict(line.split(":", 1) for line in lines)
    return {name: int(status[key].split()[0]) / 1024 for name, key in (("peak", "VmHWM"), ("own", "RssAnon"))}


if __name__ == "__main__":
    if sys.argv[1:2] == [START]:
        start(*sys.argv[2:])
    else:
        main()
