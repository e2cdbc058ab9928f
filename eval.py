"""Exact top-1 and top-5 of saved models, several at once: folders, timm-format folders and Hub ids.

python eval.py runs/first/best timm/tinynet_a.in1k --dataset ILSVRC/imagenet-1k --json results.json

Under `torchrun` or `accelerate launch` each process evaluates its share of the images, and the counts are added up.
"""

import argparse
import dataclasses
import os
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import torch
import transformers
from accelerate import Accelerator
from torch import nn
from tqdm import tqdm

from modeling_tinynet import TinyNetImageProcessor
from training.arguments import output_file, whole_number
from training.augmentation import EvalTransform
from training.config import default_num_workers
from training.data import build_dataset, build_eval_loader
from training.data_error import DataError
from training.decoding import ImageDecodeError
from training.device_transforms import DeviceTransform
from training.evaluation import EvaluationResult, evaluate
from training.loader_workers import end_workers
from training.memory import keep_freed_memory
from training.model import ModelError, head_rows, load_saved_model, loading_errors
from training.records import write_summary
from training.sources import Splits, load_splits, num_samples
from training.unicode_text import escape_what_stdout_lacks

MAX_NAMED_CLASSES = 30  # in the confusion matrix: more names would overlap


@dataclass(frozen=True)
class Transform:
    """From a decoded image to a network's input, as the model's image processor states it."""

    image_size: int  # pixels
    resize_size: int  # pixels
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class Model:
    name: str
    network: nn.Module
    labels: list[str]
    transform: Transform

    @property
    def parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.network.parameters())


@dataclass(frozen=True)
class Evaluated:
    model: Model
    result: EvaluationResult
    images_per_s: float  # of the pass over the images, which several models may have shared


# Models


def load_model(name: str, device: torch.device) -> Model:
    """Loads a folder or a Hub id, in float32 whatever its weights are stored in.

    Raises:
        ModelError: see `training.model.load_saved_model`; or the model has no head.
    """
    saved = load_saved_model(name)
    if saved.headless:
        raise ModelError(f"model {name} has no classifier to evaluate: {saved.headless}")
    with loading_errors(name):
        processor = TinyNetImageProcessor.from_pretrained(saved.source)
    return Model(
        name=name,
        network=saved.network.to(device, memory_format=torch.channels_last),
        labels=saved.labels,
        transform=Transform(
            image_size=processor.crop_size["height"],
            resize_size=processor.size["shortest_edge"],
            mean=tuple(processor.image_mean),
            std=tuple(processor.image_std),
        ),
    )


class Reordered(nn.Module):
    """A network whose logits come in another order."""

    def __init__(self, network: nn.Module, order: list[int]) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("order", torch.tensor(order, device=next(network.parameters()).device))

    def forward(self, pixel_values: torch.Tensor) -> transformers.modeling_outputs.ModelOutput:
        outputs = self.network(pixel_values)
        outputs.logits = outputs.logits[:, self.order]
        return outputs


def with_classes_of(class_names: list[str], model: Model) -> Model:
    """The model with its labels in the order of the data set's classes, and those that the data set lacks behind them.

    Raises:
        ModelError: the data set has classes that the model does not know.
    """
    rows = head_rows(class_names, model.labels)
    if unknown := [name for name, row in zip(class_names, rows, strict=True) if row is None]:
        raise ModelError(
            f"the data set's classes are not those of {model.name}: {len(unknown)} of {len(class_names)}, such as "
            f"{unknown[0]!r}, are none of the model's {len(model.labels)}, such as {model.labels[0]!r}"
        )
    others = sorted(set(range(len(model.labels))) - set(rows))
    labels = class_names + [model.labels[row] for row in others]
    return dataclasses.replace(model, network=Reordered(model.network, rows + others), labels=labels)


# Data and evaluation


def load_data(options: argparse.Namespace) -> Splits:
    """The data set, with the split to evaluate as its `validation`.

    Raises:
        DataError: see `training.sources.load_splits`.
    """
    arguments = {
        "name": options.dataset_name,
        "image_column": options.image_column,
        "label_column": options.label_column,
        "class_names": options.class_names,
        "validation_fraction": options.validation_fraction,
        "streaming": options.streaming,
    }
    if options.split is None:
        return load_splits(options.dataset, **arguments)
    if not options.streaming:  # the split on its own: nothing is held out of it
        arguments |= {"train_split": options.split, "validation_split": options.split}
    elif options.split != "train":
        arguments["validation_split"] = options.split
    data = load_splits(options.dataset, **arguments)
    split = data.train if options.split == "train" else data.validation
    size = f"{num_samples(split):,} pictures, {len(data.class_names)} classes"
    return dataclasses.replace(data, validation=split, description=f"{options.dataset}, {options.split}: {size}")


def evaluate_together(
    models: Sequence[Model],
    data: Splits,
    accelerator: Accelerator,
    *,
    batch_size: int,
    num_workers: int,
    confusion: bool,
) -> list[Evaluated]:
    """One pass over the images for models with the same transform and equally many labels.

    Each process evaluates its share; all return the results of the whole.
    """
    transform = models[0].transform
    processes = {"rank": accelerator.process_index, "num_processes": accelerator.num_processes}
    dataset = build_dataset(
        data.validation,
        EvalTransform(transform.image_size, transform.resize_size),
        columns=(data.image_column, data.label_column),
        num_classes=len(data.class_names),
        seed=0,
        **processes,
    )
    loader = build_eval_loader(dataset, batch_size=batch_size, num_workers=num_workers, **processes)
    normalize = DeviceTransform(transform.mean, transform.std).normalize_only
    n = num_samples(data.validation)
    title = models[0].name if len(models) == 1 else f"{len(models)} models at {transform.image_size} px"
    is_main = accelerator.is_main_process
    started_at = time.perf_counter()
    with tqdm(total=n, desc=title, unit=" images", dynamic_ncols=True, disable=not is_main) as bar:
        results = evaluate(
            {model.name: model.network for model in models},
            loader,
            preprocess=lambda pixel_values: normalize(pixel_values.to(accelerator.device, non_blocking=True)),
            num_samples=n,
            num_classes=len(models[0].labels),
            confusion=confusion,
            # The other processes are about as far.
            progress=lambda images: bar.update(min(images * accelerator.num_processes, n - bar.n)),
        )
        bar.update(n - bar.n)
    images_per_s = n / (time.perf_counter() - started_at)
    return [Evaluated(model, results[model.name], images_per_s) for model in models]


# Results


def results_table(evaluated: Sequence[Evaluated]) -> str:
    rows = [("model", "image", "parameters", "top-1", "top-5", "images/s")]
    for one in evaluated:
        image = f"{one.model.transform.image_size} px"
        top_1, top_5 = one.result.line().removeprefix("top-1 "), f"{100 * one.result.top_5:.3f} %"
        rows.append((one.model.name, image, f"{one.model.parameters:,}", top_1, top_5, f"{one.images_per_s:,.0f}"))
    name_width, *widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join([name.ljust(name_width), *(cell.rjust(width) for cell, width in zip(cells, widths, strict=True))])
        for name, *cells in rows
    )


def per_class_table(one: Evaluated) -> str:
    """The worst classes first."""
    rows = sorted(
        (tuple(row.values()) for row in one.result.per_class(one.model.labels)), key=lambda row: row[1] / row[2]
    )
    width = max(len(label) for label, _, _ in rows)
    lines = [f"  {label:<{width}}  {k}/{n} = {100 * k / n:.1f} %" for label, k, n in rows]
    return "\n".join([f"top-1 by class, {one.model.name}", *lines])


def summary(
    evaluated: Sequence[Evaluated], data: Splits, options: argparse.Namespace, accelerator: Accelerator
) -> dict[str, Any]:
    """What --json writes."""
    models = [
        {
            "model": one.model.name,
            "image_size": one.model.transform.image_size,
            "resize_size": one.model.transform.resize_size,
            "parameters": one.model.parameters,
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
        draw_confusion(evaluated, options.confusion)


def draw_confusion(evaluated: Sequence[Evaluated], path: str) -> None:
    """A panel for each model: rows are the classes, columns what the model says, and colours the share of a row."""
    # Here, because matplotlib takes a second to import.
    import matplotlib.style
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from training.curves import write_png

    with matplotlib.style.context("default"):
        figure = Figure(figsize=(8 * len(evaluated), 9), dpi=100, layout="constrained")
        FigureCanvasAgg(figure)
        for axes, one in zip(figure.subplots(1, len(evaluated), squeeze=False)[0], evaluated, strict=True):
            counts = np.array(one.result.confusion)
            shares = counts / counts.sum(axis=1, keepdims=True).clip(min=1)
            axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
            axes.set(title=f"{one.model.name}\n{one.result}", xlabel="what the model says", ylabel="class")
            if len(counts) <= MAX_NAMED_CLASSES:
                axes.set_xticks(range(len(counts)), one.model.labels, rotation=90)
                axes.set_yticks(range(len(counts)), one.model.labels)
                for row, column in np.argwhere(counts):
                    color = "white" if shares[row, column] > 0.5 else "black"
                    axes.text(column, row, counts[row, column], ha="center", va="center", color=color)
        write_png(figure, path)


# Command line


def device(text: str) -> str:
    if text not in ("auto", "cpu", "cuda"):
        raise argparse.ArgumentTypeError(f"must be auto, cpu or cuda, got {text!r}")
    if text == "cuda" and not torch.cuda.is_available():
        raise argparse.ArgumentTypeError("there is no cuda on this machine, try auto")
    return text


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        # One sentence from one process, as from train.py.
        self.exit(2, f"error: {message}\n" if int(os.environ.get("RANK", 0)) == 0 else None)


def build_parser() -> Parser:
    parser = Parser(
        description=__doc__.partition("\n")[0],
        epilog="Images are resized, cropped and normalised as each model's image processor states; models that agree "
        "on that, and on the number of labels, share one pass over the images. Exit code 2: something is wrong with "
        "the command, a model or the data.",
    )
    parser.add_argument("models", nargs="+", metavar="MODEL", help="saved folder, timm-format folder or Hub id")
    data = parser.add_argument_group("data, as for train.py")
    data.add_argument("--dataset", required=True, help="Hub id, folder of pictures or of Parquet files, or digits")
    data.add_argument(
        "--split",
        help="evaluate all of this split; unset: what train.py evaluates on. A folder of class folders alone is the "
        "split train",
    )
    data.add_argument("--dataset_name", metavar="NAME", help="configuration of a Hub data set that has several")
    data.add_argument("--image_column", metavar="NAME", help="column of the pictures; unset: found by its type")
    data.add_argument("--label_column", metavar="NAME", help="column of the labels; unset: found by its type")
    data.add_argument("--class_names", metavar="FILE", help="a class name in each line, for labels that are integers")
    data.add_argument(
        "--validation_fraction",
        type=float,
        default=0.2,
        metavar="X",
        help="share that train.py held out where there is no validation split (default: %(default)s)",
    )
    data.add_argument("--streaming", action="store_true", help="read a Hub data set without storing it")
    running = parser.add_argument_group("running")
    running.add_argument(
        "--batch_size", type=whole_number(1), default=64, metavar="N", help="images (default: %(default)s)"
    )
    running.add_argument("--num_workers", type=int, metavar="N", help="loader processes; unset: by CPU cores")
    running.add_argument("--device", type=device, default="auto", help="auto, cpu or cuda (default: %(default)s)")
    results = parser.add_argument_group("results")
    results.add_argument("--json", type=output_file, metavar="FILE", help="write the counts")
    results.add_argument("--per_class", action="store_true", help="top-1 of each class, worst first, and in --json")
    results.add_argument("--confusion", type=output_file, metavar="FILE.png", help="draw the confusion matrix")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    parser = build_parser()
    options = parser.parse_args(argv)
    transformers.utils.logging.disable_progress_bar()  # of loading weights
    # Said, not left to Accelerate: it takes processes that find no accelerator for so many separate runs.
    on_cpu = options.device == "cpu" or not torch.accelerator.is_available()
    accelerator = Accelerator(cpu=on_cpu)
    if accelerator.device.type == "cpu":
        keep_freed_memory()
    num_workers = options.num_workers
    if num_workers is None:
        num_workers = default_num_workers(int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
    try:
        models = [load_model(name, accelerator.device) for name in dict.fromkeys(options.models)]
        with accelerator.main_process_first():  # the others find datasets' cache filled
            data = load_data(options)
        if accelerator.is_main_process:
            print(data.description, flush=True)  # or loader workers, which are forks, print it too
        models = [with_classes_of(data.class_names, model) for model in models]
    except (ModelError, DataError) as error:
        parser.error(str(error))

    alike: dict[tuple[Transform, int], list[Model]] = {}
    for model in models:
        alike.setdefault((model.transform, len(model.labels)), []).append(model)
    evaluated = []
    try:
        for group in alike.values():
            evaluated += evaluate_together(
                group,
                data,
                accelerator,
                batch_size=options.batch_size,
                num_workers=num_workers,
                confusion=options.confusion is not None,
            )
    except (DataError, ImageDecodeError) as error:
        # From whichever process has that image. One from a loader's worker begins with the worker's traceback.
        sentence = re.sub(r"^[\w.]+Error: ", "", str(error).strip().splitlines()[-1])
        print(f"error: {sentence}", file=sys.stderr)
        sys.exit(2)

    if accelerator.is_main_process:
        write_results(evaluated, data, options, accelerator)
    accelerator.end_training()


if __name__ == "__main__":
    escape_what_stdout_lacks()
    try:
        main()
    finally:
        end_workers()
