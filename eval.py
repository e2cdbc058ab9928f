"""Exact top-1 and top-5 of saved models, several at once: folders, timm-format folders and Hub ids.

python eval.py runs/first/best timm/tinynet_a.in1k --dataset ILSVRC/imagenet-1k --json results.json
"""

import argparse
import dataclasses
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
import transformers
from safetensors import SafetensorError
from torch import nn
from tqdm import tqdm

from modeling_tinynet import TinyNetConfig, TinyNetForImageClassification, TinyNetImageProcessor
from training.augmentation import EvalTransform
from training.config import default_num_workers
from training.data import ImageDataset, StreamingImageDataset, build_eval_loader
from training.decoding import ImageDecodeError
from training.device_transforms import DeviceTransform
from training.evaluation import EvaluationResult, evaluate
from training.records import write_summary
from training.sources import DataError, Splits, load_splits, num_samples

MAX_NAMED_CLASSES = 30  # in the confusion matrix: more names would overlap


class ModelError(ValueError):
    """A model cannot be evaluated. The message is one sentence and says why."""


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
        ModelError: there is no such model, it is no TinyNet, or its weights are damaged or incomplete.
    """
    path = Path(name).expanduser()
    if path.is_dir() and not (path / "config.json").exists():
        models = [str(folder) for folder in (path / "best", path / "last") if (folder / "config.json").exists()]
        hint = f", but it is the folder of a run: evaluate {' or '.join(models)}" if models else ""
        raise ModelError(f"folder {name} has no config.json{hint}")
    if not path.exists() and (path.is_absolute() or name.startswith((".", "~")) or len(path.parts) > 2):
        raise ModelError(f"folder {name} does not exist")
    try:
        source = str(path) if path.exists() else name
        model_type = TinyNetConfig.get_config_dict(source)[0].get("model_type")
        if model_type != TinyNetConfig.model_type:
            raise ModelError(f"its model_type is {model_type!r}, not {TinyNetConfig.model_type!r}")
        network, loading = TinyNetForImageClassification.from_pretrained(
            source, dtype=torch.float32, output_loading_info=True
        )
        if missing := sorted(loading["missing_keys"]):
            raise ModelError(f"its file lacks {len(missing)} tensors, such as {missing[0]}")
        processor = TinyNetImageProcessor.from_pretrained(source)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"model {name} cannot be loaded: {str(error).strip().splitlines()[0]}") from error
    return Model(
        name=name,
        network=network.to(device, memory_format=torch.channels_last),
        labels=[network.config.id2label[index] for index in range(network.config.num_labels)],
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

    Labels are matched by name. Only where names say nothing their position counts: labels that are just numbered, and
    ImageNet-1k, whose classes are called by WordNet id, by a list of synonyms, or by the first of these.

    Raises:
        ModelError: the data set has classes that the model does not know.
    """
    numbered = model.labels == [f"LABEL_{index}" for index in range(len(class_names))]
    if numbered or model.labels == class_names or (is_imagenet(model.labels) and is_imagenet(class_names)):
        return dataclasses.replace(model, labels=class_names)
    position = {label: index for index, label in enumerate(model.labels)}
    if unknown := [name for name in class_names if name not in position]:
        raise ModelError(
            f"the data set's classes are not those of {model.name}: {len(unknown)} of {len(class_names)}, such as "
            f"{unknown[0]!r}, are none of the model's {len(model.labels)}, such as {model.labels[0]!r}"
        )
    order = [position[name] for name in class_names]
    order += sorted(set(range(len(model.labels))) - set(order))
    labels = [model.labels[index] for index in order]
    return dataclasses.replace(model, network=Reordered(model.network, order), labels=labels)


def is_imagenet(names: list[str]) -> bool:
    """Whether these are the classes of ImageNet-1k in their usual order, which is that of their WordNet ids."""
    usual = TinyNetConfig().id2label
    if len(names) != len(usual):
        return False
    if all(re.fullmatch(r"n\d{8}", name) for name in names):
        return names == sorted(names)
    same = sum(name.split(",")[0] == usual[index] for index, name in enumerate(names))
    return same >= 0.99 * len(usual)  # lists differ in a few: "crane" is "crane bird" elsewhere


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
    *,
    streaming: bool,
    batch_size: int,
    num_workers: int,
    device: torch.device,
    confusion: bool,
) -> list[Evaluated]:
    """One pass over the images for models with the same transform and equally many labels."""
    transform = models[0].transform
    crop = EvalTransform(transform.image_size, transform.resize_size)
    arguments = (data.validation, data.image_column, data.label_column, crop, len(data.class_names))
    dataset = StreamingImageDataset(*arguments, shuffle_buffer=0) if streaming else ImageDataset(*arguments)
    loader = build_eval_loader(dataset, batch_size=batch_size, num_workers=num_workers)
    normalize = DeviceTransform(transform.mean, transform.std).normalize_only
    n = num_samples(data.validation)
    title = models[0].name if len(models) == 1 else f"{len(models)} models at {transform.image_size} px"
    with tqdm(total=n, desc=title, unit=" images", dynamic_ncols=True) as bar:
        results = evaluate(
            {model.name: model.network for model in models},
            loader,
            preprocess=lambda pixel_values: normalize(pixel_values.to(device, non_blocking=True)),
            num_samples=n,
            num_classes=len(models[0].labels),
            confusion=confusion,
            progress=bar.update,
        )
        images_per_s = n / bar.format_dict["elapsed"]
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


def per_class(one: Evaluated) -> list[dict[str, Any]]:
    """In the data set's order; classes without pictures are left out."""
    columns = (one.model.labels, one.result.class_correct, one.result.class_total)
    return [{"class": label, "top_1_correct": k, "n": n} for label, k, n in zip(*columns, strict=True) if n]


def per_class_table(one: Evaluated) -> str:
    """The worst classes first."""
    rows = sorted((tuple(row.values()) for row in per_class(one)), key=lambda row: row[1] / row[2])
    width = max(len(label) for label, _, _ in rows)
    lines = [f"  {label:<{width}}  {k}/{n} = {100 * k / n:.1f} %" for label, k, n in rows]
    return "\n".join([f"top-1 by class, {one.model.name}", *lines])


def summary(evaluated: Sequence[Evaluated], data: Splits, options: argparse.Namespace) -> dict[str, Any]:
    """What --json writes."""
    models = [
        {
            "model": one.model.name,
            "image_size": one.model.transform.image_size,
            "resize_size": one.model.transform.resize_size,
            "parameters": one.model.parameters,
            **one.result.to_dict(),
            "images_per_s": round(one.images_per_s, 1),
            **({"per_class": per_class(one)} if options.per_class else {}),
        }
        for one in evaluated
    ]
    on_cuda = options.device.type == "cuda"
    return {
        "dataset": options.dataset,
        "split": options.split,
        "data": data.description,
        "models": models,
        "device": torch.cuda.get_device_name(options.device) if on_cuda else str(options.device),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }


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


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text!r}")
    return int(text)


def output_file(text: str) -> str:
    """Checked before the evaluation, not after it."""
    folder = Path(text).absolute().parent
    if not folder.is_dir() or not os.access(folder, os.W_OK) or Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"{text} must be a file in a folder that can be written to")
    return text


def device(text: str) -> torch.device:
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if text == "auto":
        return accelerator or torch.device("cpu")
    try:
        found = torch.device(text)
    except RuntimeError:
        raise argparse.ArgumentTypeError(f"there is no kind of device called {text}, try auto") from None
    if found.type != "cpu" and (accelerator is None or found.type != accelerator.type):
        raise argparse.ArgumentTypeError(f"there is no {text} on this machine, try auto")
    return found


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}\n")  # one sentence, as from train.py


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
    data.add_argument(
        "--validation_fraction",
        type=float,
        default=0.2,
        metavar="X",
        help="share that train.py held out where there is no validation split (default: %(default)s)",
    )
    data.add_argument("--streaming", action="store_true", help="read a Hub data set without storing it")
    running = parser.add_argument_group("running")
    running.add_argument("--batch_size", type=positive, default=64, metavar="N", help="images (default: %(default)s)")
    running.add_argument("--num_workers", type=int, metavar="N", help="loader processes; unset: one for each CPU core")
    running.add_argument("--device", type=device, default="auto", help="cpu, cuda, cuda:1, ... (default: %(default)s)")
    results = parser.add_argument_group("results")
    results.add_argument("--json", type=output_file, metavar="FILE", help="write the counts")
    results.add_argument("--per_class", action="store_true", help="top-1 of each class, worst first, and in --json")
    results.add_argument("--confusion", type=output_file, metavar="FILE.png", help="draw the confusion matrix")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    parser = build_parser()
    options = parser.parse_args(argv)
    transformers.utils.logging.disable_progress_bar()  # of loading weights
    try:
        models = [load_model(name, options.device) for name in dict.fromkeys(options.models)]
        data = load_data(options)
        print(data.description)
        models = [with_classes_of(data.class_names, model) for model in models]
        alike: dict[tuple[Transform, int], list[Model]] = {}
        for model in models:
            alike.setdefault((model.transform, len(model.labels)), []).append(model)
        evaluated = []
        for group in alike.values():
            evaluated += evaluate_together(
                group,
                data,
                streaming=options.streaming,
                batch_size=options.batch_size,
                num_workers=default_num_workers(1) if options.num_workers is None else options.num_workers,
                device=options.device,
                confusion=options.confusion is not None,
            )
    except (ModelError, DataError, ImageDecodeError) as error:
        # One from a loader's worker begins with the worker's traceback.
        parser.error(re.sub(r"^[\w.]+Error: ", "", str(error).strip().splitlines()[-1]))

    print(results_table(evaluated))
    if options.per_class:
        for one in evaluated:
            print(per_class_table(one))
    if options.json:
        write_summary(options.json, summary(evaluated, data, options))
    if options.confusion:
        draw_confusion(evaluated, options.confusion)


if __name__ == "__main__":
    main()
