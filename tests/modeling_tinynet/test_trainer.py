"""Fine-tuning with transformers' Trainer and with PEFT, on scikit-learn's handwritten digits."""

import copy
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
    """256 digits of 8 x 8 pixels, each pixel drawn as a square of 8 x 8, between -1 and 1."""
    images, labels = load_digits(return_X_y=True)
    images = torch.tensor(images[:256] / 8 - 1, dtype=torch.float32).view(-1, 1, 8, 8).expand(-1, 3, -1, -1)
    images = images.repeat_interleave(8, dim=2).repeat_interleave(8, dim=3)
    labels = torch.tensor(labels[:256])
    return [{"pixel_values": image, "labels": label} for image, label in zip(images, labels, strict=True)]


def new_model(**fields) -> TinyNetForImageClassification:
    torch.manual_seed(0)
    config = TinyNetConfig.from_variant("tinynet_e", num_labels=10, image_size=64, dropout_rate=0.0, **fields)
    return TinyNetForImageClassification(config)


def arguments(folder: Path, **others) -> TrainingArguments:
    return TrainingArguments(folder, report_to="none", use_cpu=True, save_only_model=True, logging_steps=1, **others)


def batch_of(digits: Digits) -> dict[str, torch.Tensor]:
    return {name: torch.stack([digit[name] for digit in digits]) for name in ("pixel_values", "labels")}


def logits_of(model: nn.Module, digits: Digits) -> torch.Tensor:
    """By a copy in its own memory: a tensor mapped from a file may start anywhere, and is then rounded otherwise."""
    with torch.inference_mode():
        return copy.deepcopy(model).eval()(batch_of(digits)["pixel_values"]).logits


def test_trainer_fine_tunes_saves_and_reloads(digits, tmp_path):
    trainer = Trainer(
        new_model(),
        arguments(tmp_path, max_steps=16, save_steps=8, per_device_train_batch_size=32, learning_rate=1e-3),
        train_dataset=digits,
    )
    trainer.train()
    trainer.save_model()

    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 16
    assert sum(losses[-4:]) < 0.5 * sum(losses[:4])
    loaded = TinyNetForImageClassification.from_pretrained(tmp_path)
    assert torch.equal(logits_of(loaded, digits[:16]), logits_of(trainer.model, digits[:16]))
    files = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    # Beside the model, Trainer leaves what it was called with, and how the loss went.
    model_files = {name for name in files if Path(name).name not in {"training_args.bin", "trainer_state.json"}}
    assert model_files == {
        f"{folder}{name}"
        for folder in ("", "checkpoint-8/", "checkpoint-16/")
        for name in ("config.json", "model.safetensors")
    }


@pytest.mark.parametrize("several_labels", [False, True])
def test_trainer_accumulates_the_mean_over_micro_batches(several_labels, digits, tmp_path):
    """Trainer leaves the mean to a model that says it takes care of it; its loss of several labels would not."""
    digits, criterion = digits[:64], nn.functional.cross_entropy
    if several_labels:
        digits = [{**digit, "labels": nn.functional.one_hot(digit["labels"], 10).float()} for digit in digits]
        criterion = nn.functional.binary_cross_entropy_with_logits
    by_hand = new_model().train()
    losses = []
    for start in range(0, 64, 16):
        batch = batch_of(digits[start : start + 16])
        losses.append(criterion(by_hand(batch["pixel_values"]).logits, batch["labels"]) / 4)
        losses[-1].backward()
    norm = nn.utils.get_total_norm([parameter.grad for parameter in by_hand.parameters()])

    settings = arguments(
        tmp_path,
        max_steps=1,
        per_device_train_batch_size=16,
        gradient_accumulation_steps=4,
        train_sampling_strategy="sequential",
        save_strategy="no",
    )
    trainer = Trainer(new_model(), settings, train_dataset=digits)
    trainer.train()

    step = trainer.state.log_history[0]
    assert step["loss"] == pytest.approx(sum(losses).item(), rel=1e-5)
    assert step["grad_norm"] == pytest.approx(norm.item(), rel=1e-4)


def base_model(digits: Digits) -> TinyNetForImageClassification:
    """With the digits' own statistics in its BatchNorms, as if it had been trained on them."""
    model = new_model(batch_norm_momentum=1.0).train()
    with torch.no_grad():
        model(batch_of(digits[:64])["pixel_values"])
    return model.eval()


@pytest.fixture
def adapted(digits) -> PeftModel:
    """LoRA on every pointwise convolution of the blocks, and a classifier trained whole."""
    lora = LoraConfig(r=4, target_modules=["conv_pw", "conv_pwl"], modules_to_save=["classifier"])
    return get_peft_model(base_model(digits), lora)


def train_steps(adapted: PeftModel, digits: Digits, steps: int = 2) -> list[float]:
    """By Adam, and the losses. In eval mode: BatchNorm's statistics are no part of an adapter, and must not move."""
    adapted.eval()
    optimizer = torch.optim.Adam([p for p in adapted.parameters() if p.requires_grad], lr=3e-3)
    losses = []
    for _ in range(steps):
        loss = adapted(**batch_of(digits)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_lora_trains_its_factors_and_the_classifier_and_nothing_else(adapted, digits):
    before = {name: tensor.clone() for name, tensor in adapted.state_dict().items()}
    losses = train_steps(adapted, digits[:32], steps=8)
    assert losses[-1] < 0.5 * losses[0]
    changed = {name for name, tensor in adapted.state_dict().items() if not torch.equal(tensor, before[name])}
    pointwise = [name for name, _ in adapted.named_modules() if name.endswith((".conv_pw", ".conv_pwl"))]
    assert len(pointwise) == 19  # two in each of ten blocks, but one in the first
    factors = {f"{name}.lora_{factor}.default.weight" for name in pointwise for factor in "AB"}
    classifier = {f"base_model.model.classifier.modules_to_save.default.{name}" for name in ("weight", "bias")}
    assert changed == factors | classifier


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_lora_gets_the_same_gradients_from_checkpointed_blocks(use_reentrant, adapted, digits):
    def gradients() -> list[torch.Tensor]:
        adapted.zero_grad()
        adapted(**batch_of(digits[:8])).loss.backward()
        return [parameter.grad.clone() for parameter in adapted.parameters() if parameter.requires_grad]

    for module in adapted.train().modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    stored = gradients()
    adapted.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    adapted.enable_input_require_grads()
    for recomputed, reference in zip(gradients(), stored, strict=True):
        torch.testing.assert_close(recomputed, reference)


def test_lora_merges_into_a_plain_model_that_timm_loads(adapted, digits, tmp_path):
    untrained = logits_of(adapted, digits[:16])
    train_steps(adapted, digits[:32])
    trained = logits_of(adapted, digits[:16])
    merged = adapted.merge_and_unload()
    merged.save_pretrained(tmp_path)

    assert type(merged) is TinyNetForImageClassification
    assert (trained - untrained).abs().max() > 0.1
    torch.testing.assert_close(logits_of(merged, digits[:16]), trained, rtol=1e-4, atol=1e-4)
    theirs = timm.create_model("tinynet_e", num_classes=10)
    theirs.load_state_dict(safetensors.torch.load_file(tmp_path / "model.safetensors"), strict=True)
    with torch.inference_mode():
        assert torch.equal(theirs.eval()(batch_of(digits[:16])["pixel_values"]), logits_of(merged, digits[:16]))


def test_an_adapter_is_saved_alone_and_loads_onto_its_base_model(adapted, digits, tmp_path):
    train_steps(adapted, digits[:32])
    adapted.save_pretrained(tmp_path)

    loaded = PeftModel.from_pretrained(base_model(digits), tmp_path)

    assert {path.name for path in tmp_path.iterdir()} == {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    assert torch.equal(logits_of(loaded, digits[:16]), logits_of(adapted, digits[:16]))
