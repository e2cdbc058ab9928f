"""Fine-tuning with transformers' Trainer and with PEFT, on scikit-learn's handwritten digits."""

import copy
import itertools
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from sklearn.datasets import load_digits
from torch import nn
from transformers import Trainer, TrainingArguments

from modeling_tinynet import TinyNetConfig, TinyNetForImageClassification

Digits = list[dict[str, torch.Tensor]]


@pytest.fixture(scope="module")
def digits() -> Digits:
    """256 digits of 8 x 8 pixels, each pixel drawn as a square of 4 x 4, between -1 and 1."""
    images, labels = load_digits(return_X_y=True)
    images = torch.tensor(images[:256] / 8 - 1, dtype=torch.float32).view(-1, 1, 8, 8)
    images = images.repeat_interleave(4, 2).repeat_interleave(4, 3).expand(-1, 3, -1, -1)
    return [{"pixel_values": image, "labels": torch.tensor(label)} for image, label in zip(images, labels[:256], strict=True)]


@pytest.fixture
def model() -> TinyNetForImageClassification:
    torch.manual_seed(0)
    config = TinyNetConfig.from_variant("tinynet_e", num_labels=10, image_size=32, dropout_rate=0.0)
    return TinyNetForImageClassification(config)


def arguments(folder: Path, **others) -> TrainingArguments:
    return TrainingArguments(
        folder, report_to="none", use_cpu=True, disable_tqdm=True, save_only_model=True, logging_steps=1, **others
    )


def batch_of(digits: Digits, count: int) -> dict[str, torch.Tensor]:
    return {name: torch.stack([digit[name] for digit in digits[:count]]) for name in ("pixel_values", "labels")}


def logits_of(model: nn.Module, digits: Digits) -> torch.Tensor:
    """Of a copy in memory of its own: a tensor mapped from a file may start anywhere, and is then rounded otherwise."""
    with torch.inference_mode():
        return copy.deepcopy(model).eval()(batch_of(digits, 16)["pixel_values"]).logits


def test_trainer_fine_tunes_saves_and_reloads(model, digits, tmp_path):
    trainer = Trainer(
        model,
        arguments(tmp_path, max_steps=24, per_device_train_batch_size=32, learning_rate=3e-3, save_steps=12),
        train_dataset=digits,
        eval_dataset=digits,
    )
    trainer.train()
    trainer.save_model()

    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 24
    assert sum(losses[-4:]) < 0.5 * sum(losses[:4])
    loaded = TinyNetForImageClassification.from_pretrained(tmp_path)
    assert torch.equal(logits_of(loaded, digits), logits_of(trainer.model, digits))
    weights = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("model*")}
    assert weights == {"model.safetensors", "checkpoint-12/model.safetensors", "checkpoint-24/model.safetensors"}
    pickled = [path for path in tmp_path.rglob("*") if path.suffix in {".bin", ".pt", ".pth", ".pkl"}]
    assert pickled == [tmp_path / "training_args.bin"]
