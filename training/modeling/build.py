"""The network of a run: a fresh variant, or a saved one whose head resumes where its classes are the dataset's."""

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers.utils import logging

from modeling_tinynet import TINYNET_VARIANTS, TinyNetConfig, TinyNetForImageClassification
from training.data.unicode_text import composed
from training.errors import ModelError, RunError
from training.transforms.preprocessing import config_fields, read_processor

# What transformers, huggingface_hub and safetensors raise where files are missing or damaged, or the Hub refuses.
LIBRARY_ERRORS = (OSError, ValueError, RuntimeError, SafetensorError)


@dataclass(frozen=True)
class SavedModel:
    network: TinyNetForImageClassification  # in float32, on the CPU
    labels: list[str]  # in the order of the logits
    source: str  # for another `from_pretrained`
    headless: str | None  # why its head is not a saved one; None if it is


def model_config(model: str, class_names: list[str], **overrides: Any) -> TinyNetConfig:
    """The configuration of `model` for these classes. A saved model's input is what its image processor states.

    Args:
        model: tinynet_a to tinynet_e for a fresh network; else a saved folder, a timm-format folder or a Hub id.
        class_names: in the order of the labels.
        overrides: fields of `TinyNetConfig`; those that are None keep the model's own value.

    Raises:
        ModelError: there is no such model, it is no TinyNet, or no training can follow its image processor.
        RunError: a field has a value no network can be built from.
    """
    fields = {name: value for name, value in overrides.items() if value is not None}
    fields["id2label"] = dict(enumerate(class_names))
    fields["label2id"] = {name: index for index, name in enumerate(class_names)}
    if model in TINYNET_VARIANTS:
        with _refused_fields():
            return TinyNetConfig.from_variant(model, **fields)
    source = _tinynet_source(model)
    with loading_errors(model):
        processor, saved = read_processor(source), TinyNetConfig.from_pretrained(source)
    with loading_errors(model, (ModelError,)):
        stated = config_fields(processor, saved)
    with _refused_fields():
        return TinyNetConfig.from_pretrained(source, **(stated | fields))


@contextlib.contextmanager
def _refused_fields() -> Iterator[None]:
    """What a configuration of transformers says of its fields becomes a `RunError`."""
    try:
        yield
    except (ValueError, StrictDataclassError) as error:
        raise RunError(str(error.__cause__ or error)) from error


def build_model(model: str, config: TinyNetConfig, *, seed: int) -> tuple[TinyNetForImageClassification, str]:
    """The network in float32: drawn from `seed`, or loaded, with the saved head where it knows the same classes.

    Args:
        model: as for `model_config`.
        config: what `model_config` returned for it.
        seed: of all weights, or of a new head.

    Returns:
        (network, one line on what was kept).

    Raises:
        ModelError: the model cannot be loaded; its file lacks weights or has other ones than its config.json says.
    """
    torch.manual_seed(seed)
    network = TinyNetForImageClassification(config)
    if model in TINYNET_VARIANTS:
        return network, f"weights: new, drawn from seed {seed}"
    saved = load_saved_model(model)
    network.tinynet.load_state_dict(saved.network.tinynet.state_dict())
    return network, _keep_head(network, saved) + _input_note(config, saved.network.config)


def _keep_head(network: TinyNetForImageClassification, saved: SavedModel) -> str:
    """Copies the saved head where it knows the same classes, and says in words what became of it."""
    class_names = [network.config.id2label[index] for index in range(network.config.num_labels)]
    if saved.headless:
        return f"head: new, {len(class_names)} classes ({saved.headless})"
    rows = head_rows(class_names, saved.labels)
    in_order = list(range(len(saved.labels)))
    if sorted(row for row in rows if row is not None) != in_order or None in rows:
        return f"head: new, {len(class_names)} classes for {len(saved.labels)}"
    head = {name: tensor[rows] for name, tensor in saved.network.classifier.state_dict().items()}
    network.classifier.load_state_dict(head)
    if saved.labels == class_names:
        return "head: kept (same classes)"
    return f"head: kept ({'classes by position' if rows == in_order else 'rows reordered by class name'})"


def _input_note(config: TinyNetConfig, saved: TinyNetConfig) -> str:
    """Says so where the image processor states another mean or std than the config.json beside it."""
    if (config.image_mean, config.image_std) == (saved.image_mean, saved.image_std):
        return ""
    mean, std = (" ".join(f"{number:.4g}" for number in numbers) for numbers in (config.image_mean, config.image_std))
    return f"; mean {mean} and std {std} as its image processor states"


# Saved models


def load_saved_model(name: str) -> SavedModel:
    """Loads a folder, a timm-format folder or a Hub id, with the classes it was saved with.

    Raises:
        ModelError: there is no such model, it is no TinyNet, or its weights are damaged, incomplete or other ones than
            its config.json says. Only a head may be missing.
    """
    source = _tinynet_source(name)
    with loading_errors(name), _without_load_report():
        network, report = TinyNetForImageClassification.from_pretrained(
            source, dtype=torch.float32, ignore_mismatched_sizes=True, output_loading_info=True
        )
    problems = dict.fromkeys(report["missing_keys"], "is missing in its file")
    problems |= dict.fromkeys(report["unexpected_keys"], "is not in the network of its config.json")
    problems |= {
        tensor: f"has the shape {tuple(in_file)} in its file and {tuple(expected)} by its config.json"
        for tensor, in_file, expected in report["mismatched_keys"]
    }
    sentences = [f"{tensor} {problem}" for tensor, problem in sorted(problems.items())]
    body = [sentence for sentence in sentences if not sentence.startswith("classifier.")]
    if body:
        more = f", and {len(body) - 1} more tensors do not fit" if body[1:] else ""
        raise ModelError(f"model {name} cannot be loaded: {body[0]}{more}")
    if not network.config.num_labels:
        sentences = ["its config.json has no classes"]
    labels = [network.config.id2label[index] for index in range(network.config.num_labels)]
    return SavedModel(network, labels, source, headless=sentences[0] if sentences else None)


@contextlib.contextmanager
def loading_errors(name: str, kinds: tuple[type[Exception], ...] = LIBRARY_ERRORS) -> Iterator[None]:
    """What the libraries raise inside while they read the files of this model becomes a `ModelError`. To be put around
    their calls alone: a bug of ours would look like a damaged file."""
    try:
        yield
    except kinds as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(f"model {name} cannot be loaded: {reason}") from error


def _tinynet_source(name: str) -> str:
    """What `from_pretrained` takes for this model, once its config.json is known to be a TinyNet's for RGB images."""
    path = Path(name).expanduser()
    if path.is_dir() and not (path / "config.json").exists():
        models = [str(folder) for folder in (path / "best", path / "last") if (folder / "config.json").exists()]
        hint = f", but it is the folder of a run: take {' or '.join(models)}" if models else ""
        raise ModelError(f"folder {name} has no config.json{hint}")
    if not path.exists() and (path.is_absolute() or name.startswith((".", "~")) or len(path.parts) > 2):
        raise ModelError(f"folder {name} does not exist")
    source = str(path) if path.exists() else name
    with loading_errors(name):
        config = TinyNetConfig.get_config_dict(source)[0]
    model_type, num_channels = config.get("model_type"), config.get("num_channels", 3)
    wrong = None
    if model_type != TinyNetConfig.model_type:
        wrong = f"its model_type is {model_type!r}, not {TinyNetConfig.model_type!r}"
    elif num_channels != 3:
        wrong = f"it takes images of num_channels {num_channels}, and images are read as RGB"
    if wrong:
        raise ModelError(f"model {name} cannot be loaded: {wrong}")
    return source


@contextlib.contextmanager
def _without_load_report() -> Iterator[None]:
    """transformers logs a table of the tensors that do not fit; they are ours to judge."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


# Classes


def head_rows(class_names: list[str], labels: list[str]) -> list[int | None]:
    """For each class of a dataset the row of a head with these labels, None for a class that the head lacks.

    Classes are matched by name. Only where names say nothing their position counts: labels that are just numbered, and
    ImageNet-1k, whose classes are called by WordNet id, by a list of synonyms, or by the first of these.
    """
    numbered = [f"LABEL_{index}" for index in range(len(class_names))]
    plain_numbers = [str(index) for index in range(len(class_names))]
    by_position = (
        labels in (class_names, numbered)
        or (labels == plain_numbers and class_names == numbered)
        or (has_imagenet_classes(labels) and has_imagenet_classes(class_names))
    )
    if by_position:
        return list(range(len(labels)))
    row = {composed(name): index for index, name in enumerate(labels)}
    return [row.get(composed(name)) for name in class_names]


def has_imagenet_classes(names: list[str]) -> bool:
    """Whether these are the classes of ImageNet-1k in their usual order, which is that of their WordNet ids."""
    usual = TinyNetConfig().id2label
    if len(names) != len(usual):
        return False
    if all(re.fullmatch(r"n\d{8}", name) for name in names):
        return names == sorted(names)
    same = sum(name.split(",")[0] == usual[index] for index, name in enumerate(names))
    return same >= 0.99 * len(usual)  # lists differ in a few: "crane" is "crane bird" elsewhere
