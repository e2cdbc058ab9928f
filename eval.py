"""Exact evaluation of saved models, several at once: folders, timm-format folders and Hub ids.

python eval.py runs/first/best timm/tinynet_a.in1k --dataset ILSVRC/imagenet-1k --json results.json

Under `torchrun` or `accelerate launch` each process evaluates its share of the images, and the counts are added up.
"""

import argparse
import dataclasses
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import transformers
from accelerate import Accelerator
from tqdm import tqdm

from training.command import CommandParser, run_command
from training.config.arguments import add_data_flags, fraction, input_file, nonempty, output_file, whole_number
from training.config.fields import FIELDS
from training.data.sources import Splits, is_folder_of_classes, load_splits, num_samples
from training.errors import DataError
from training.evaluation.evaluate import evaluate
from training.evaluation.metrics import CLASS_METRICS, TABLE, EvaluationResult, shown_in
from training.evaluation.saved_models import Model, load_model, with_classes_of
from training.loading.loaders import build_dataset, build_eval_loader
from training.loading.workers import workers_lost
from training.reporting.metrics import write_summary
from training.reporting.text_table import aligned
from training.system.cores import default_num_workers
from training.system.memory import keep_freed_memory
from training.transforms.device_transforms import DeviceTransform
from training.transforms.preprocessing import Preprocessing

HELD_OUT = FIELDS["validation_fraction"].default  # share of each class


@dataclass(frozen=True)
class Evaluated:
    model: Model
    result: EvaluationResult
    images_per_s: float  # of the pass over the images, which several models may have shared


# Data and evaluation


def load_data(options: argparse.Namespace) -> Splits:
    """The dataset, with the split to evaluate as its `validation`.

    Raises:
        DataError: see `load_splits`; or a split is named that a folder of class folders cannot have.
    """
    arguments = {
        "name": options.dataset_name,
        "image_column": options.image_column,
        "label_column": options.label_column,
        "class_names": options.class_names,
        "streaming": options.streaming,
        "least_classes": 1,
    }
    if options.validation_fraction is not None:
        return load_splits(options.dataset, validation_fraction=options.validation_fraction, **arguments)
    if options.split is None:
        data = load_splits(options.dataset, hold_out_of_folder=False, **arguments)
        if data.validation is not data.train:
            return data
        what, remark = "all of it", f"; --validation_fraction {HELD_OUT:g} evaluates what train.py holds out of it"
    else:  # the split on its own: nothing is held out of it
        data = load_splits(options.dataset, train_split=options.split, validation_split=options.split, **arguments)
        if options.split != "train" and is_folder_of_classes(options.dataset, data.train, data.image_column):
            raise DataError(
                f"{options.dataset} has no split {options.split!r}, for it holds class folders: leave out --split, "
                "or evaluate what train.py holds out by --validation_fraction"
            )
        what, remark = options.split, ""
    size = f"{num_samples(data.validation):,} images, {len(data.class_names)} classes"
    return dataclasses.replace(data, description=f"{options.dataset}, {what}: {size}{remark}")


def evaluate_together(
    models: Sequence[Model],
    data: Splits,
    accelerator: Accelerator,
    *,
    batch_size: int,
    num_workers: int,
    confusion: bool,
) -> list[Evaluated]:
    """One pass over the images for models with the same preprocessing and equally many labels.

    Each process evaluates its share; all return the results of the whole.
    """
    preprocessing = models[0].preprocessing
    processes = {"rank": accelerator.process_index, "num_processes": accelerator.num_processes}
    n = num_samples(data.validation)
    dataset = build_dataset(
        data.validation,
        preprocessing,
        columns=(data.image_column, data.label_column),
        num_classes=len(data.class_names),
        seed=0,
        **processes,
    )
    # Images of different sizes make no batch.
    batch_size = min(batch_size, n) if preprocessing.output_size else 1
    loader = build_eval_loader(dataset, batch_size=batch_size, num_workers=num_workers, **processes)
    device_transform = DeviceTransform(preprocessing.mean, preprocessing.std)
    title = models[0].name if len(models) == 1 else f"{len(models)} models at {image_text(preprocessing)}"
    is_main = accelerator.is_main_process
    started_at = time.perf_counter()
    with tqdm(total=n, desc=title, unit=" images", dynamic_ncols=True, disable=not is_main) as bar:
        results = evaluate(
            {model.name: model.network for model in models},
            loader,
            preprocess=lambda images: device_transform.normalize_only(
                images.to(accelerator.device, non_blocking=True)
            ),
            num_samples=n,
            num_classes=len(models[0].labels),
            confusion=confusion,
            # The other processes are about as far.
            progress=lambda images: bar.update(min(images * accelerator.num_processes, n - bar.n)),
        )
        bar.update(n - bar.n)
    images_per_s = n / (time.perf_counter() - started_at)
    results = cast(dict[str, EvaluationResult], results)  # nothing stops it
    return [Evaluated(model, results[model.name], images_per_s) for model in models]


# Results


def print_what_is_evaluated(data: Splits, models: Sequence[Model]) -> None:
    """What the numbers to come are of, with what a user may not expect."""
    lines = [data.description]
    for model in models:
        if model.by_position:
            lines.append(f"{model.name}: classes by position ({model.by_position})")
        if model.preprocessing.output_size is None:
            lines.append(f"{model.name}: images keep their sizes, so they are evaluated one by one")
    print("\n".join(lines), flush=True)  # flushed, or loader workers, which are forks, print it too


def image_text(preprocessing: Preprocessing) -> str:
    """`192 px`, `192 x 160 px` (height, width), or that images keep their sizes."""
    sides = preprocessing.output_size
    if sides is None:
        return "any size"
    return f"{sides[0]} px" if sides[0] == sides[1] else f"{sides[0]} x {sides[1]} px"


def results_table(evaluated: Sequence[Evaluated]) -> str:
    metrics = shown_in(TABLE)
    rows = [("model", "image", "parameters", *(metric.label for metric in metrics), "images/s")]
    for one in evaluated:
        record, image = one.result.to_dict(), image_text(one.model.preprocessing)
        cells = [metric.text(record) for metric in metrics]
        rows.append((one.model.name, image, f"{one.model.parameters:,}", *cells, f"{one.images_per_s:,.0f}"))
    return "\n".join(aligned(rows, right=True))


def per_class_table(one: Evaluated) -> str:
    """The worst classes first: those of the lowest recall."""
    metrics = [metric for metric in CLASS_METRICS if TABLE in metric.places]
    classes = sorted(one.result.per_class(one.model.labels), key=lambda row: row["top_1_correct"] / row["n"])
    rows = [("  class", *(metric.label for metric in metrics))]
    rows += [(f"  {row['class']}", *(metric.text(row) for metric in metrics)) for row in classes]
    return "\n".join([f"by class, {one.model.name}", *aligned(rows, right=True)])


def one_number_if_square(sides: tuple[int, ...] | None) -> int | tuple[int, ...] | None:
    return sides[0] if sides and len(set(sides)) == 1 else sides


def summary(
    evaluated: Sequence[Evaluated], data: Splits, options: argparse.Namespace, accelerator: Accelerator
) -> dict[str, Any]:
    """What --json writes."""
    models = [
        {
            "model": one.model.name,
            "image_size": one_number_if_square(one.model.preprocessing.output_size),
            "resize_size": one_number_if_square(one.model.preprocessing.resize),
            "parameters": one.model.parameters,
            "classes": "by position" if one.model.by_position else "by name",
            **one.result.to_dict(),
            "images_per_s": round(one.images_per_s, 1),
            **({"per_class": one.result.per_class(one.model.labels)} if options.per_class else {}),
        }
        for one in evaluated
    ]
    device = accelerator.device
    return {
        "dataset": options.dataset,
        "split": options.split,
        "data": data.description,
        "models": models,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "processes": accelerator.num_processes,
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }


def write_results(
    evaluated: Sequence[Evaluated], data: Splits, options: argparse.Namespace, accelerator: Accelerator
) -> None:
    print(results_table(evaluated))
    if options.per_class:
        for one in evaluated:
            print(per_class_table(one))
    if options.json:
        write_summary(options.json, summary(evaluated, data, options, accelerator))
    if options.confusion:
        # Here, because matplotlib takes a second to import.
        from training.reporting.confusion import Panel, save_confusion

        save_confusion([Panel(one.model.name, one.result, one.model.labels) for one in evaluated], options.confusion)


# Command line


def device(text: str) -> str:
    if text not in ("auto", "cpu", "cuda"):
        raise argparse.ArgumentTypeError(f"must be auto, cpu or cuda, got {text!r}")
    if text == "cuda" and not torch.cuda.is_available():
        raise argparse.ArgumentTypeError("there is no cuda on this machine, try auto")
    return text


def build_parser() -> CommandParser:
    parser = CommandParser(
        launched=True,
        description=__doc__.partition("\n")[0],
        epilog="Images are resized, cropped and normalized by every setting of each model's image processor, as in "
        "transformers' pipelines. Models that agree on that, and on the number of labels, share one pass over the "
        "images. Exit code 2: something is wrong with the command, a model or the data.",
    )
    parser.add_argument(
        "models", type=nonempty, nargs="+", metavar="MODEL", help="saved folder, timm-format folder or Hub id"
    )
    data = add_data_flags(parser, ("dataset", "dataset_name", "image_column", "label_column"))
    part = data.add_mutually_exclusive_group()
    part.add_argument(
        "--split",
        type=nonempty,
        help="evaluate all of this split; unset: the split that train.py evaluates on; of a folder of class folders, "
        "all of it",
    )
    part.add_argument(
        "--validation_fraction",
        type=fraction,
        metavar="X",
        help="evaluate the share that train.py holds out of each class where there is no validation split (train.py's "
        f"default: {HELD_OUT:g}); for a folder of class folders, which is evaluated whole otherwise",
    )
    data.add_argument(
        "--class_names", type=input_file, metavar="FILE", help="a class name per line, for labels that are integers"
    )
    data.add_argument("--streaming", action="store_true", help="read a Hub dataset without storing it")
    running = parser.add_argument_group("running")
    running.add_argument(
        "--batch_size", type=whole_number(1), default=64, metavar="N", help="images (default: %(default)s)"
    )
    running.add_argument(
        "--num_workers", type=whole_number(0), metavar="N", help="loader processes; unset: by CPU cores"
    )
    running.add_argument("--device", type=device, default="auto", help="auto, cpu or cuda (default: %(default)s)")
    results = parser.add_argument_group("results")
    results.add_argument("--json", type=output_file, metavar="FILE", help="write counts and metrics")
    results.add_argument("--per_class", action="store_true", help="metrics of each class, worst first, and in --json")
    results.add_argument("--confusion", type=output_file, metavar="FILE.png", help="draw the confusion matrix")
    return parser


def main(argv: Sequence[str]) -> None:
    parser = build_parser()
    options = parser.parse_args(argv)
    if options.json and options.json == options.confusion:
        parser.error(f"--json and --confusion must be two files, got {options.json} for both")
    transformers.utils.logging.disable_progress_bar()  # of loading weights
    # Said, not left to Accelerate: it takes processes that find no accelerator for so many separate runs.
    on_cpu = options.device == "cpu" or not torch.accelerator.is_available()
    accelerator = Accelerator(cpu=on_cpu)
    if accelerator.device.type == "cpu":
        keep_freed_memory()
    num_workers = options.num_workers
    if num_workers is None:
        num_workers = default_num_workers(int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
    models = [load_model(name, accelerator.device) for name in dict.fromkeys(options.models)]
    with accelerator.main_process_first():  # the others find datasets' cache filled
        data = load_data(options)
    models = [with_classes_of(data.class_names, model) for model in models]

    if accelerator.is_main_process:
        print_what_is_evaluated(data, models)

    alike: dict[tuple[Preprocessing, int], list[Model]] = {}
    for model in models:
        alike.setdefault((model.preprocessing, len(model.labels)), []).append(model)
    evaluated = []
    for group in alike.values():
        evaluated += evaluate_together(
            group,
            data,
            accelerator,
            batch_size=options.batch_size,
            num_workers=num_workers,
            confusion=options.confusion is not None,
        )

    if accelerator.is_main_process:
        write_results(evaluated, data, options, accelerator)
    accelerator.end_training()


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:], launched=True, recognize=workers_lost))
