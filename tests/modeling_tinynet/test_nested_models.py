"""Weights find their place when TinyNet is part of another model, or a part of TinyNet is loaded."""

import pytest
import safetensors.torch
import torch
from transformers import DetrConfig, DetrForObjectDetection, PreTrainedConfig, PreTrainedModel

from modeling_tinynet import TinyNetBackbone, TinyNetConfig, TinyNetForImageClassification, TinyNetModel

CONFIG = TinyNetConfig.from_variant("tinynet_e", num_labels=5, out_features=["stage7"])


def assert_same_weights(loaded: PreTrainedModel, saved: PreTrainedModel) -> None:
    assert loaded.state_dict().keys() == saved.state_dict().keys()
    for name, tensor in saved.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


@pytest.mark.parametrize("num_channels", [3, 1])
def test_a_detector_reloads_its_backbone(num_channels, tmp_path):
    """Of gray images too, although the detector's own configuration says three channels whatever its backbone has."""
    backbone_config = TinyNetConfig.from_variant("tinynet_e", num_channels=num_channels, out_features=["stage7"])
    sizes = {"d_model": 8, "encoder_ffn_dim": 8, "decoder_ffn_dim": 8, "encoder_layers": 1, "decoder_layers": 1}
    config = DetrConfig(backbone_config=backbone_config, use_timm_backbone=False, backbone=None, **sizes)
    detector = DetrForObjectDetection(config)
    detector.save_pretrained(tmp_path)
    loaded, info = DetrForObjectDetection.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert_same_weights(loaded, detector)


class Wrapper(PreTrainedModel):
    """Somebody's own model with a TinyNet in it."""

    config_class = PreTrainedConfig

    def __init__(self, config: PreTrainedConfig, encoder_class: type[PreTrainedModel]):
        super().__init__(config)
        self.encoder = encoder_class(CONFIG)
        self.post_init()


@pytest.mark.parametrize("encoder_class", [TinyNetModel, TinyNetBackbone, TinyNetForImageClassification])
def test_a_renamed_part_of_another_model_reloads_its_weights(encoder_class, tmp_path):
    """A checkpoint whose keys are not the model's goes through every renaming that transformers knows."""
    wrapper = Wrapper(PreTrainedConfig(), encoder_class)
    wrapper.save_pretrained(tmp_path)
    keys = safetensors.torch.load_file(tmp_path / "model.safetensors")
    keys = {name.replace("encoder.", "trunk.", 1): tensor for name, tensor in keys.items()}
    safetensors.torch.save_file(keys, tmp_path / "model.safetensors", {"format": "pt"})
    mapping = {r"^trunk\.": "encoder."}
    loaded, info = Wrapper.from_pretrained(
        tmp_path, encoder_class=encoder_class, key_mapping=mapping, output_loading_info=True
    )
    assert not any(info.values())
    assert_same_weights(loaded, wrapper)


@pytest.mark.parametrize("model_class", [TinyNetModel, TinyNetBackbone])
@pytest.mark.parametrize("save_original_format", [True, False])
def test_a_part_loads_from_a_classifier_by_timms_and_by_transformers_keys(model_class, save_original_format, tmp_path):
    """By transformers' own keys the file says `tinynet.conv_stem.weight`, by timm's `conv_stem.weight`."""
    classifier = TinyNetForImageClassification(CONFIG)
    classifier.save_pretrained(tmp_path, save_original_format=save_original_format)
    model, info = model_class.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    expected = classifier.tinynet.state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, expected[name]), name
