"""Other than three input channels, against timm's network, weights and transform for as many."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import skimage.data
import timm
import torch
from PIL import Image
from torch import nn
from torchvision import transforms
from transformers import AutoConfig, AutoModel, AutoModelForImageClassification, Trainer, TrainingArguments, pipeline

from modeling_tinynet import (
    TinyNetBackbone,
    TinyNetConfig,
    TinyNetForImageClassification,
    TinyNetImageProcessor,
    TinyNetModel,
)

FORMATS = ["transformers", "timm"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """The same weights for RGB images, saved by us and by timm."""
    torch.manual_seed(0)
    network = timm.create_model("tinynet_e", num_classes=5)
    folders = {name: tmp_path_factory.mktemp(name) for name in FORMATS}
    timm.models.save_for_hf(network, folders["timm"], safe_serialization=True)
    TinyNetForImageClassification.from_pretrained(folders["timm"]).save_pretrained(folders["transformers"])
    return folders


def timms(folders: dict[str, Path], num_channels: int) -> nn.Module:
    """timm's network with the same file, adapted to the channels by timm."""
    source = {"file": str(folders["timm"] / "model.safetensors"), "num_classes": 5}
    return timm.create_model(
        "tinynet_e", num_classes=5, in_chans=num_channels, pretrained=True, pretrained_cfg_overlay=source
    ).eval()


def in_own_memory(model: nn.Module) -> nn.Module:
    """A tensor mapped from a file may start anywhere, and is then rounded otherwise."""
    return copy.deepcopy(model).eval()


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("num_channels", [1, 2, 4, 6])
def test_weights_for_rgb_are_adapted_as_by_timm(num_channels, form, folders):
    theirs = timms(folders, num_channels)
    images = torch.randn(2, num_channels, 64, 64, generator=torch.Generator().manual_seed(0))

    model, info = TinyNetForImageClassification.from_pretrained(
        folders[form], num_channels=num_channels, output_loading_info=True
    )
    base_model = TinyNetModel.from_pretrained(folders[form], num_channels=num_channels)
    backbone = TinyNetBackbone.from_pretrained(folders[form], num_channels=num_channels, out_indices=[0])

    assert not any(info.values())
    with torch.no_grad():
        assert torch.equal(in_own_memory(model)(images).logits, theirs(images))
        assert torch.equal(in_own_memory(base_model)(images).last_hidden_state, theirs.forward_features(images))
    assert torch.equal(backbone.conv_stem.weight, theirs.conv_stem.weight)


@pytest.mark.parametrize("form", FORMATS)
def test_mean_and_standard_deviation_are_the_mean_of_rgbs(form, folders):
    """(0.485 + 0.456 + 0.406) / 3 and (0.229 + 0.224 + 0.225) / 3, which timm's data configuration gives too."""
    for config in (TinyNetConfig(num_channels=1), TinyNetConfig.from_pretrained(folders[form], num_channels=1)):
        assert (config.image_mean, config.image_std) == ([0.449], [0.226])
    assert TinyNetConfig.from_pretrained(folders[form], num_channels=4).image_mean == [0.449] * 4
    own = TinyNetConfig.from_pretrained(folders[form], num_channels=1, image_mean=[0.5])
    assert (own.image_mean, own.image_std) == ([0.5], [0.226])


@pytest.mark.parametrize("leave_rgb_statistics", [False, True], ids=["today's timm", "earlier timm"])
def test_a_timm_folder_for_gray_images_loads(leave_rgb_statistics, folders, tmp_path):
    theirs = timms(folders, 1)
    timm.models.save_for_hf(theirs, tmp_path, safe_serialization=True, model_args={"in_chans": 1, "num_classes": 5})
    if leave_rgb_statistics:
        config = json.loads((tmp_path / "config.json").read_text())
        config["pretrained_cfg"] |= {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
        (tmp_path / "config.json").write_text(json.dumps(config))
    model = TinyNetForImageClassification.from_pretrained(tmp_path)
    assert (model.config.num_channels, model.config.image_mean, model.config.image_std) == (1, [0.449], [0.226])
    images = torch.randn(2, 1, 64, 64)
    with torch.no_grad():
        assert torch.equal(in_own_memory(model)(images).logits, theirs(images))


def test_every_way_to_the_configuration_adapts_the_weights(folders, caplog):
    folder, expected = folders["transformers"], timms(folders, 1).conv_stem.weight
    by_auto_class = AutoModelForImageClassification.from_pretrained(folder, num_channels=1).tinynet
    by_auto_config = AutoModel.from_pretrained(folder, config=AutoConfig.from_pretrained(folder, num_channels=1))
    own = TinyNetConfig.from_variant("tinynet_e", num_channels=1)
    by_own_config = TinyNetModel.from_pretrained(folder, config=own)
    for model in (by_auto_class, by_auto_config, by_own_config):
        assert torch.equal(model.conv_stem.weight, expected)
    said = "The stem's weights for 3 input channels are adapted to 1: summed, as in timm."
    assert [record.getMessage() for record in caplog.records].count(said) == 3


def test_half_precision_is_summed_in_single(folders):
    model = TinyNetModel.from_pretrained(folders["transformers"], num_channels=1, dtype=torch.bfloat16)
    weight = safetensors.torch.load_file(folders["timm"] / "model.safetensors")["conv_stem.weight"]
    assert torch.equal(model.conv_stem.weight, weight.bfloat16().float().sum(dim=1, keepdim=True).to(torch.bfloat16))


def test_what_was_adapted_saves_and_loads_again(folders, tmp_path):
    model = TinyNetForImageClassification.from_pretrained(folders["transformers"], num_channels=1)
    model.save_pretrained(tmp_path)
    assert "_channels_of_file" not in (tmp_path / "config.json").read_text()
    loaded, info = TinyNetForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    theirs = timm.create_model("tinynet_e", num_classes=5, in_chans=1)
    theirs.load_state_dict(safetensors.torch.load_file(tmp_path / "model.safetensors"), strict=True)


def test_a_file_that_contradicts_its_own_config_is_refused(folders, tmp_path):
    for file in folders["transformers"].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"num_channels": 1, "image_mean": [0.5], "image_std": [0.5]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        TinyNetForImageClassification.from_pretrained(tmp_path)


def test_trainer_trains_and_saves_a_gray_model(folders, tmp_path):
    """It used to end at the first save, when the configuration was checked for the first time."""
    model = TinyNetForImageClassification.from_pretrained(
        folders["transformers"], num_channels=1, ignore_mismatched_sizes=True
    )
    dataset = [{"pixel_values": torch.randn(1, 32, 32), "labels": index % 5} for index in range(4)]
    settings = TrainingArguments(tmp_path, max_steps=1, save_steps=1, report_to="none", use_cpu=True)
    Trainer(model, settings, train_dataset=dataset).train()
    assert TinyNetForImageClassification.from_pretrained(tmp_path / "checkpoint-1").config.num_channels == 1


@pytest.fixture
def gray_folder(folders, tmp_path) -> str:
    model = TinyNetForImageClassification.from_pretrained(folders["transformers"], num_channels=1)
    nn.init.normal_(model.classifier.weight, generator=torch.Generator().manual_seed(0))
    model.save_pretrained(tmp_path)
    TinyNetImageProcessor.from_config(model.config).save_pretrained(tmp_path)
    return str(tmp_path)


def timm_gray(image: Image.Image) -> torch.Tensor:
    """timm's evaluation transform of what its datasets make of an image for in_chans=1."""
    transform = timm.data.create_transform((1, 106, 106), mean=(0.449,), std=(0.226,), interpolation="bicubic")
    return transform(image.convert("L"))


def photo(mode: str) -> Image.Image:
    image = Image.fromarray(skimage.data.chelsea())
    image.putalpha(200)
    return (image if "A" in mode else image.convert("RGB")).convert(mode)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "RGB", "RGBA"])
def test_the_processor_makes_timms_gray_images(mode, gray_folder):
    ours = TinyNetImageProcessor.from_pretrained(gray_folder)(photo(mode), return_tensors="pt")["pixel_values"]
    assert ours.shape == (1, 1, 106, 106)
    torch.testing.assert_close(ours[0], timm_gray(photo(mode)), rtol=0, atol=1e-5)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_gray_arrays_have_pillows_brightness(mode, gray_folder):
    processor = TinyNetImageProcessor.from_pretrained(gray_folder, do_resize=False)
    image = photo(mode)
    expected = transforms.PILToTensor()(transforms.CenterCrop(106)(image.convert("L")))
    for array in (np.asarray(image), torch.from_numpy(np.array(image)), np.asarray(image).astype(np.float32)):
        array = array[..., None] if mode == "L" else array
        ours = processor(array, do_rescale=False, do_normalize=False, return_tensors="pt")["pixel_values"][0]
        torch.testing.assert_close(
            ours.float(), expected.float(), rtol=0, atol=0 if ours.dtype == torch.uint8 else 0.51
        )


@pytest.mark.parametrize("as_path", [False, True])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_the_pipeline_classifies_gray_images_as_timm(mode, as_path, gray_folder, tmp_path):
    theirs = timm.create_model("tinynet_e", num_classes=5, in_chans=1).eval()
    theirs.load_state_dict(safetensors.torch.load_file(Path(gray_folder, "model.safetensors")), strict=True)
    with torch.inference_mode():
        expected = theirs(timm_gray(photo(mode))[None]).softmax(-1)[0].tolist()
    photo(mode).save(tmp_path / "photo.png")
    image = str(tmp_path / "photo.png") if as_path else photo(mode)
    scores = {score["label"]: score["score"] for score in pipeline("image-classification", gray_folder)(image)}
    assert [scores[f"LABEL_{index}"] for index in range(5)] == pytest.approx(expected, abs=1e-5)


def test_a_processor_for_four_channels_is_refused():
    with pytest.raises(ValueError, match="num_channels must be 3 or 1, got 4"):
        TinyNetImageProcessor.from_config(TinyNetConfig(num_channels=4))
