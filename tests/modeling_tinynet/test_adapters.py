"""Adapters of PEFT trained in training mode, in which BatchNorm's statistics move; on scikit-learn's digits."""

import copy
import sys

import pytest
import torch
from peft import (
    IA3Config,
    LNTuningConfig,
    LoraConfig,
    OFTConfig,
    PeftConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    inject_adapter_in_model,
    set_peft_model_state_dict,
)
from sklearn.datasets import load_digits
from torch import nn
from transformers import Trainer, TrainingArguments

from modeling_tinynet import TINYNET_LORA, TinyNetBackbone, TinyNetConfig, TinyNetForImageClassification, TinyNetModel
from tests import launcher

WARNING = "BatchNorm runs in training mode under an adapter that does not hold its running statistics"
WITHOUT_BATCH_NORM = {**TINYNET_LORA, "modules_to_save": ["classifier"]}

CONFIGS = {
    "LoRA": lambda arguments: LoraConfig(r=4, **arguments),
    "IA3": lambda arguments: IA3Config(feedforward_modules=[], **arguments),
    "OFT": lambda arguments: OFTConfig(oft_block_size=8, use_cayley_neumann=False, **arguments),
}


@pytest.fixture(scope="module")
def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """32 digits of 8 x 8 pixels, each pixel drawn as a square of 4 x 4, between -1 and 1."""
    images, labels = load_digits(return_X_y=True)
    images = torch.tensor(images[:32] / 8 - 1, dtype=torch.float32).view(-1, 1, 8, 8).expand(-1, 3, -1, -1)
    return images.repeat_interleave(4, dim=2).repeat_interleave(4, dim=3), torch.tensor(labels[:32])


def base_model(model_class: type = TinyNetForImageClassification) -> nn.Module:
    torch.manual_seed(0)
    config = TinyNetConfig.from_variant("tinynet_e", num_labels=10, image_size=32, dropout_rate=0.0)
    return model_class(config).eval()


def train_steps(model: nn.Module, digits: tuple[torch.Tensor, torch.Tensor], steps: int = 2) -> None:
    optimizer = torch.optim.Adam([parameter for parameter in model.parameters() if parameter.requires_grad], lr=3e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        model(digits[0], labels=digits[1]).loss.backward()
        optimizer.step()


def logits_of(model: nn.Module, digits: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    with torch.inference_mode():
        return copy.deepcopy(model).eval()(digits[0]).logits


def warnings_in(caplog: pytest.LogCaptureFixture) -> int:
    return sum(record.getMessage().startswith(WARNING) for record in caplog.records)


def difference_after_reload(model: nn.Module, digits, folder) -> float:
    model.save_pretrained(folder)
    loaded = PeftModel.from_pretrained(base_model(), folder)
    return (logits_of(loaded, digits) - logits_of(model, digits)).abs().max().item()


def wrapped(config: PeftConfig) -> nn.Module:
    return get_peft_model(base_model(), config)


@pytest.mark.parametrize("method", CONFIGS)
def test_an_adapter_trained_in_training_mode_reloads_to_the_bit(method, digits, tmp_path, caplog):
    model = wrapped(CONFIGS[method](TINYNET_LORA)).train()
    train_steps(model, digits)
    assert difference_after_reload(model, digits, tmp_path) == 0.0
    assert warnings_in(caplog) == 0


@pytest.mark.parametrize("method", CONFIGS)
def test_an_adapter_that_loses_the_statistics_warns_once(method, digits, tmp_path, caplog):
    model = wrapped(CONFIGS[method](WITHOUT_BATCH_NORM)).train()
    train_steps(model, digits)
    assert difference_after_reload(model, digits, tmp_path) > 0.01
    assert warnings_in(caplog) == 1


@pytest.mark.parametrize(("arguments", "expected"), [(TINYNET_LORA, 0), (WITHOUT_BATCH_NORM, 1)])
def test_an_adapter_without_peft_model_is_the_same(arguments, expected, digits, caplog):
    """As transformers' add_adapter and load_adapter inject it, which demand a version of PEFT yet newer."""
    model = inject_adapter_in_model(LoraConfig(r=4, **arguments), base_model()).train()
    train_steps(model, digits)
    loaded = inject_adapter_in_model(LoraConfig(r=4, **arguments), base_model())
    set_peft_model_state_dict(loaded, get_peft_model_state_dict(model))
    assert torch.equal(logits_of(loaded, digits), logits_of(model, digits)) == (expected == 0)
    assert warnings_in(caplog) == expected


@pytest.mark.parametrize(("arguments", "expected"), [(TINYNET_LORA, 0), (WITHOUT_BATCH_NORM, 1)])
def test_an_adapter_added_by_transformers_is_the_same(arguments, expected, digits, tmp_path, caplog, monkeypatch):
    """Loaded by PEFT: load_adapter of older versions of transformers leaves modules_to_save out, and reports it."""
    monkeypatch.setattr(
        "transformers.integrations.peft.check_peft_version", lambda **_: None
    )  # wants an unreleased one
    model = base_model()
    model.add_adapter(LoraConfig(r=4, **arguments))
    train_steps(model.train(), digits)
    assert (difference_after_reload(model, digits, tmp_path) == 0.0) is (expected == 0)
    assert warnings_in(caplog) == expected


@pytest.mark.parametrize("model_class", [TinyNetModel, TinyNetBackbone])
def test_the_networks_without_a_classifier_warn_too(model_class, digits, caplog):
    for arguments, expected in ((TINYNET_LORA, 0), (WITHOUT_BATCH_NORM, 1)):
        get_peft_model(base_model(model_class), LoraConfig(r=4, **arguments)).train()(digits[0])
        assert warnings_in(caplog) == expected


def test_an_adapter_of_batch_norm_itself_does_not_warn(digits, tmp_path, caplog):
    config = LNTuningConfig(target_modules=["bn1", "bn2", "bn3"], modules_to_save=["classifier"])
    model = wrapped(config).train()
    train_steps(model, digits)
    assert difference_after_reload(model, digits, tmp_path) == 0.0
    assert warnings_in(caplog) == 0


def test_frozen_statistics_do_not_warn(digits, tmp_path, caplog):
    model = wrapped(LoraConfig(r=4, **WITHOUT_BATCH_NORM))
    train_steps(model.eval(), digits)
    for module in model.train().modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    train_steps(model, digits)
    assert difference_after_reload(model, digits, tmp_path) == 0.0
    assert warnings_in(caplog) == 0


def test_without_an_adapter_nothing_warns(digits, caplog):
    """A frozen network under a classifier that is trained: its statistics move, and are saved with it."""
    model = base_model().train()
    model.tinynet.requires_grad_(False)
    train_steps(model, digits)
    assert warnings_in(caplog) == 0


@pytest.mark.parametrize(("arguments", "is_exact"), [(TINYNET_LORA, True), (WITHOUT_BATCH_NORM, False)])
def test_trainer_trains_an_adapter(arguments, is_exact, digits, tmp_path, caplog):
    model = wrapped(LoraConfig(r=4, **arguments))
    settings = TrainingArguments(tmp_path, max_steps=3, report_to="none", use_cpu=True, save_strategy="no")
    dataset = [{"pixel_values": image, "labels": label} for image, label in zip(*digits, strict=True)]
    Trainer(model, settings, train_dataset=dataset).train()
    assert (difference_after_reload(model, digits, tmp_path / "adapter") == 0.0) is is_exact
    assert warnings_in(caplog) == (0 if is_exact else 1)


def test_a_trained_adapter_merges_with_its_statistics(digits):
    model = wrapped(LoraConfig(r=4, **TINYNET_LORA)).train()
    train_steps(model, digits)
    before = logits_of(model, digits)
    merged = model.merge_and_unload()
    assert type(merged) is TinyNetForImageClassification
    torch.testing.assert_close(logits_of(merged, digits), before, rtol=1e-4, atol=1e-4)


def test_a_frozen_body_trains_where_the_import_of_peft_is_forbidden(digits, monkeypatch, caplog):
    for name in [name for name in sys.modules if name.partition(".")[0] == "peft"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "peft", None)
    model = base_model()
    model.tinynet.requires_grad_(False)
    train_steps(model, digits)
    assert not warnings_in(caplog)


def test_peft_is_not_imported():
    code = "import sys, modeling_tinynet; sys.exit('peft' in sys.modules)"
    assert launcher.run(["-c", code]).returncode == 0
