"""A finished run to publish: the files that a real one left, with weights drawn at random instead of its own."""

import shutil
from pathlib import Path

import torch

from modeling_tinynet import TinyNetConfig, TinyNetForImageClassification
from training.reporting.curves import save_curves

FIXTURE = Path(__file__).parents[1] / "fixtures" / "hub_card" / "run"


def write_run(folder: Path, *, variant: str | None = None) -> Path:
    """Copies the quick start's run to `folder`, with weights; `variant` puts another network, with 1,000 classes, in
    their place: TinyNet-A's file has 25 MB."""
    shutil.copytree(FIXTURE, folder)
    save_curves(folder / "metrics.jsonl", folder / "curves.png")
    torch.manual_seed(0)
    config = TinyNetConfig.from_variant(variant) if variant else TinyNetConfig.from_pretrained(folder / "best")
    model = TinyNetForImageClassification(config).eval()
    torch.nn.init.normal_(model.classifier.weight)  # else all classes score nearly the same
    model.save_pretrained(folder / "best")
    return folder
