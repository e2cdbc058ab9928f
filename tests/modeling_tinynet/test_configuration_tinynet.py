"""TinyNetConfig against the paper's and timm's numbers, and against nonsense."""

import dataclasses
import json

import pytest
import timm
import torch
from huggingface_hub.errors import StrictDataclassFieldValidationError
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForImageClassification

from modeling_tinynet import TINYNET_VARIANTS, TinyNetBackbone, TinyNetConfig, TinyNetForImageClassification

PARAMETERS = {
    "tinynet_a": 6_187_972,
    "tinynet_b": 3_730_562,
    "tinynet_c": 2_457_234,
    "tinynet_d": 2_338_446,
    "tinynet_e": 2_042_972,
}


@pytest.mark.parametrize("variant", TINYNET_VARIANTS)
def test_parameter_count_is_the_published_one(variant):
    config = TinyNetConfig.from_variant(variant)
    with torch.device("meta"):
        model = TinyNetForImageClassification(config)
    assert config.parameter_count == PARAMETERS[variant]
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[variant]


@pytest.mark.parametrize("overrides", [{"num_labels": 7}, {"num_channels": 1}])
@pytest.mark.parametrize("multipliers", [(1.4, 1.8), (0.3, 0.2)])
def test_parameter_count_holds_for_any_twist(multipliers, overrides):
    config = TinyNetConfig(width_multiplier=multipliers[0], depth_multiplier=multipliers[1], **overrides)
    with torch.device("meta"):
        model = TinyNetForImageClassification(config)
    assert config.parameter_count == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("variant", TINYNET_VARIANTS)
def test_macs_match_torch_flop_counter_on_timm(variant):
    config = TinyNetConfig.from_variant(variant)
    with torch.device("meta"):
        model = timm.create_model(variant).eval()
        images = torch.empty(1, 3, config.image_size, config.image_size)
    with FlopCounterMode(display=False) as counter:
        model(images)
    assert config.macs == pytest.approx(counter.get_total_flops() / 2, rel=1e-3)


@pytest.mark.parametrize("variant", TINYNET_VARIANTS)
def test_variant_agrees_with_timm(variant):
    config = TinyNetConfig.from_variant(variant)
    model = timm.create_model(variant)
    assert config.variant == variant
    assert [3, config.image_size, config.image_size] == list(model.pretrained_cfg["input_size"])
    assert config.crop_pct == model.pretrained_cfg["crop_pct"]
    assert tuple(config.image_mean) == model.pretrained_cfg["mean"]
    assert tuple(config.image_std) == model.pretrained_cfg["std"]
    assert config.depths == [len(stage) for stage in model.blocks]
    assert config.hidden_size == model.num_features


def test_default_is_tinynet_a_with_imagenets_classes():
    config = TinyNetConfig()
    assert config.variant == "tinynet_a"
    assert config.to_dict() == TinyNetConfig.from_variant("tinynet_a").to_dict()
    assert config.num_labels == 1000
    assert (config.id2label[0], config.id2label[207], config.id2label[999]) == (
        "tench",
        "golden retriever",
        "toilet tissue",
    )
    assert all(config.label2id[config.id2label[index]] == index for index in range(1000))


def test_class_names_are_timms():
    """timm's descriptions list synonyms; torchvision's names, which are ours, tell two pairs of homonyms apart."""
    info = timm.data.ImageNetInfo()
    own_words = {134: "crane bird", 639: "maillot tank suit"}
    for index, name in TinyNetConfig().id2label.items():
        description = info.index_to_description(index)
        assert own_words.get(index) == name or name in description, (index, name, description)


def test_own_class_names_bring_their_ids():
    config = TinyNetConfig(id2label={0: "daisy", 1: "tulip"})
    assert config.label2id == {"daisy": 0, "tulip": 1}


def test_variant_names_only_fields():
    fields = {field.name for field in dataclasses.fields(TinyNetConfig)}
    assert all(set(variant) <= fields for variant in TINYNET_VARIANTS.values())


@pytest.mark.parametrize("num_labels", [1, 2, 10, 1000])
def test_round_trip_keeps_everything(num_labels, tmp_path):
    config = TinyNetConfig.from_variant("tinynet_d", num_labels=num_labels, dropout_rate=0, drop_path_rate=0.1)
    config.save_pretrained(tmp_path)
    loaded = TinyNetConfig.from_pretrained(tmp_path)
    loaded_dict, saved_dict = loaded.to_dict(), config.to_dict()
    assert loaded_dict == saved_dict
    assert loaded.num_labels == num_labels


def test_own_class_names_are_kept(tmp_path):
    TinyNetConfig(id2label={0: "daisy", 1: "tulip"}, label2id={"daisy": 0, "tulip": 1}).save_pretrained(tmp_path)
    assert TinyNetConfig.from_pretrained(tmp_path).id2label == {0: "daisy", 1: "tulip"}
    assert TinyNetConfig.from_pretrained(tmp_path, num_labels=3).num_labels == 3


NONSENSE = [
    ({"width_multiplier": -1}, "width_multiplier must be positive, got -1"),
    ({"depth_multiplier": float("nan")}, "depth_multiplier must be positive, got nan"),
    ({"num_channels": 0}, "num_channels must be positive, got 0"),
    ({"image_size": 31}, "image_size must be at least 32 pixels, the network's stride, got 31"),
    ({"strides": [1, 2]}, "equally long.*'strides': 2"),
    ({"kernel_sizes": [3, 3, 4, 3, 5, 5, 3]}, "kernel_sizes must be odd"),
    ({"num_block_repeats": [1, 2, 2, 0, 3, 4, 1]}, "num_block_repeats must hold positive numbers"),
    ({"dropout_rate": 5.0}, "dropout_rate must be at least 0 and below 1, got 5.0"),
    ({"dropout_rate": float("nan")}, "dropout_rate must be at least 0 and below 1, got nan"),
    ({"drop_path_rate": -0.1}, "drop_path_rate must be at least 0 and below 1, got -0.1"),
    ({"batch_norm_momentum": 2.0}, "batch_norm_momentum must be above 0 and at most 1, got 2.0"),
    ({"crop_pct": 0}, "crop_pct must be above 0 and at most 1, got 0"),
    ({"image_std": [0.5, 0, 0.5]}, "image_std must hold positive, finite numbers"),
    ({"image_std": [0.5, 0.5, float("nan")]}, "image_std must hold positive, finite numbers"),
    ({"image_mean": [0.5, 0.5, float("inf")]}, "image_mean must hold finite numbers"),
    ({"image_mean": [0.5]}, "image_mean must hold one number for each of the 3 channels"),
    ({"num_channels": 1, "image_mean": [0.5] * 3}, "image_mean must hold one number for each of the 1 channels"),
    ({"hidden_act": "sillu"}, "hidden_act must be a key of .*, got 'sillu'; did you mean 'silu'?"),
    ({"num_labels": -1}, "num_labels must be a whole number, .*, got -1"),
    ({"num_labels": 3, "id2label": {0: "a", 1: "b"}}, "num_labels is 3, but 2 classes are named"),
    ({"id2label": {1: "a", 2: "b"}}, r"id2label must name the classes 0 to 1, got the numbers \[1, 2\]"),
    ({"id2label": {0: "a", 1: "b"}, "label2id": {"a": 1, "b": 0}}, "label2id gives 'a' the number 1, but in id2label"),
    ({"id2label": {0: "a", 1: "b"}, "label2id": {"a": 0}}, "label2id lacks 'b', the label of class 1"),
    ({"label2id": {"a": 0, "b": 0}}, "label2id gives 'a' the number 0, but in id2label"),
    ({"label2id": {"a": "first"}}, "label2id must give each label the number of its class"),
    ({"image_sise": 96}, "TinyNetConfig has no field image_sise; did you mean image_size?"),
    ({"in_chans": 1}, "in_chans is timm's name for num_channels"),
    ({"hidden_sizes": [8] * 7}, "hidden_sizes is computed from the other fields and cannot be set"),
]


@pytest.mark.parametrize(("fields", "message"), NONSENSE)
def test_nonsense_names_field_and_value(fields, message):
    with pytest.raises(ValueError, match=message):
        TinyNetConfig(**fields)


@pytest.mark.parametrize("name", ["tie_encoder_decoder", "return_dicts", "output_hidden_state"])
def test_what_another_version_of_transformers_wrote_is_kept(name, tmp_path):
    """`tie_encoder_decoder` is a setting of transformers 4; the others are made up."""
    TinyNetConfig().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), name: False}))
    assert getattr(TinyNetConfig.from_pretrained(tmp_path), name) is False


@pytest.mark.parametrize("load", [TinyNetConfig.from_pretrained, AutoConfig.from_pretrained])
@pytest.mark.parametrize(("fields", "message"), NONSENSE)
def test_an_override_is_checked_like_a_field(fields, message, load, tmp_path):
    TinyNetConfig(num_labels=5).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message):
        load(tmp_path, **fields)


def test_an_override_of_a_model_is_checked_before_its_weights_are_read(tmp_path):
    TinyNetConfig().save_pretrained(tmp_path)  # and there are none
    with pytest.raises(ValueError, match=r"dropout_rate must be at least 0 and below 1, got 5\.0"):
        AutoModelForImageClassification.from_pretrained(tmp_path, dropout_rate=5.0)


def test_what_is_set_later_is_checked_at_once_or_by_the_model():
    config = TinyNetConfig()
    with pytest.raises(ValueError, match=r"dropout_rate must be at least 0 and below 1, got 5\.0"):
        config.dropout_rate = 5.0
    config.image_size = 8
    for model_class in (TinyNetForImageClassification, TinyNetBackbone):
        with pytest.raises(ValueError, match="image_size must be at least 32 pixels, the network's stride, got 8"):
            model_class(config)


@pytest.mark.parametrize(("name", "value"), [("num_channels", 1.0), ("num_channels", "1"), ("image_size", "big")])
def test_an_override_of_the_wrong_type_is_named(name, value, tmp_path):
    TinyNetConfig().save_pretrained(tmp_path)
    with pytest.raises(StrictDataclassFieldValidationError, match=f"field '{name}'"):
        TinyNetConfig.from_pretrained(tmp_path, **{name: value})


def test_a_list_of_labels_is_refused():
    """By us, or by versions of huggingface_hub that check unions of dictionaries."""
    with pytest.raises((ValueError, StrictDataclassFieldValidationError), match="id2label"):
        TinyNetConfig(id2label=["a", "b"])


def test_a_backbone_without_outputs_is_refused():
    with pytest.raises(ValueError, match=r"out_features or out_indices must name a stage of .*, got none"):
        TinyNetBackbone(TinyNetConfig(out_indices=[]))


def test_labels_follow_what_was_overridden(tmp_path):
    TinyNetConfig(id2label={0: "daisy", 1: "tulip"}).save_pretrained(tmp_path)

    def labels(**overrides):
        config = TinyNetConfig.from_pretrained(tmp_path, **overrides)
        assert config.label2id == {label: index for index, label in config.id2label.items()}
        return list(config.id2label.values())

    assert labels(num_labels=2) == ["daisy", "tulip"]
    assert labels(num_labels=3) == ["LABEL_0", "LABEL_1", "LABEL_2"]
    assert labels(num_labels=1000)[207] == "LABEL_207"
    assert labels(id2label={0: "rose"}) == labels(label2id={"rose": 0}) == labels(num_labels=1, id2label={0: "rose"})
    config = TinyNetConfig.from_pretrained(tmp_path)
    config.id2label = {0: "rose", 1: "oak", 2: "fir"}
    assert config.label2id == {"rose": 0, "oak": 1, "fir": 2}


def test_a_file_that_contradicts_itself_loads_with_a_warning(tmp_path, caplog):
    """As many were saved whose classes were renamed in `id2label` alone."""
    TinyNetConfig(id2label={0: "daisy", 1: "tulip"}).save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())
    stored["label2id"] = {"LABEL_0": 0, "LABEL_1": 1}
    (tmp_path / "config.json").write_text(json.dumps(stored))
    assert TinyNetConfig.from_pretrained(tmp_path).label2id == {"daisy": 0, "tulip": 1}
    assert "config.json contradicts itself, and id2label is taken: label2id lacks 'daisy'" in caplog.text


def test_the_variant_of_a_weight_file_is_no_field(tmp_path):
    """Auto classes pass it on to the configuration, where it is the name of a property."""
    TinyNetForImageClassification(TinyNetConfig.from_variant("tinynet_e")).save_pretrained(tmp_path, variant="fp16")
    model = AutoModelForImageClassification.from_pretrained(tmp_path, variant="fp16")
    assert model.config.variant == "tinynet_e"


def test_unknown_variant_names_the_choices():
    with pytest.raises(ValueError, match=r"variant must be one of tinynet_a, .*, got 'tinynet_f'"):
        TinyNetConfig.from_variant("tinynet_f")
