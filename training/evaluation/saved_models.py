"""Saved models to evaluate, with their labels in the order of a dataset's classes."""

import dataclasses
from collections import Counter
from dataclasses import dataclass
from unicodedata import normalize

import torch
from torch import nn
from transformers.modeling_outputs import ModelOutput

from training.errors import ModelError
from training.modeling.build import head_rows, load_saved_model, loading_errors
from training.transforms.preprocessing import Preprocessing, read_processor


@dataclass(frozen=True)
class Model:
    """A network to evaluate, and how images are prepared for it."""

    name: str
    network: nn.Module
    labels: list[str]
    preprocessing: Preprocessing
    by_position: str | None = None  # how the labels fit classes of other names; None if they go by name

    @property
    def parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.network.parameters())


def load_model(name: str, device: torch.device) -> Model:
    """Loads a folder or a Hub id, in float32 whatever its weights are stored in.

    Raises:
        ModelError: see `load_saved_model` and `read_processor`; or the model has no head.
    """
    saved = load_saved_model(name)
    if saved.headless:
        raise ModelError(f"model {name} has no classifier to evaluate: {saved.headless}")
    with loading_errors(name):
        processor = read_processor(saved.source)
    network = saved.network.to(device, memory_format=torch.channels_last)
    return Model(name, network, saved.labels, Preprocessing.of(processor))


class Reordered(nn.Module):
    """A network whose logits come in another order."""

    def __init__(self, network: nn.Module, order: list[int]) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("order", torch.tensor(order, device=next(network.parameters()).device))

    def forward(self, pixel_values: torch.Tensor) -> ModelOutput:
        outputs = self.network(pixel_values)
        outputs.logits = outputs.logits[:, self.order]
        return outputs


def with_classes_of(class_names: list[str], model: Model) -> Model:
    """The model with its labels in the order of the dataset's classes, and those that the dataset lacks behind them.

    Raises:
        ModelError: the dataset has classes that the model does not know, or knows twice.
    """
    found = head_rows(class_names, model.labels)
    if unknown := [name for name, row in zip(class_names, found, strict=True) if row is None]:
        raise ModelError(
            f"the dataset's classes are not those of {model.name}: {len(unknown)} of {len(class_names)}, such as "
            f"{unknown[0]!r}, are not among the model's {len(model.labels)}, such as {model.labels[0]!r}"
        )
    rows = [row for row in found if row is not None]
    counts = Counter(normalize("NFC", label) for label in model.labels)
    repeated = [name for name in class_names if counts[normalize("NFC", name)] > 1]
    if repeated and rows != list(range(len(model.labels))):
        raise ModelError(
            f"{model.name} has {counts[normalize('NFC', repeated[0])]} classes called {repeated[0]!r}: tell them "
            "apart in the id2label of its config.json"
        )
    own = [model.labels[row] for row in rows]
    by_name = all(normalize("NFC", a) == normalize("NFC", b) for a, b in zip(own, class_names, strict=True))
    others = sorted(set(range(len(model.labels))) - set(rows))
    return dataclasses.replace(
        model,
        network=Reordered(model.network, rows + others),
        labels=class_names + [model.labels[row] for row in others],
        by_position=None if by_name else _example(own, class_names),
    )


def _example(labels: list[str], class_names: list[str]) -> str:
    """A label and its class; where folders are called 0, 1, 10, 2, ..., the first one that is another number."""
    pairs = list(zip(labels, class_names, strict=True))
    label, name = next((pair for pair in pairs if pair[1].isdigit() and pair[0] != f"LABEL_{pair[1]}"), pairs[0])
    return f"{label!r} is {name!r}, and so on"
