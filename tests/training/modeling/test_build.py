import json

import pytest
import safetensors.torch
import torch
import transformers
from timm.data import ImageNetInfo
from timm.models import create_model, save_for_hf

from modeling_tinynet import TinyNetConfig, TinyNetForImageClassification, TinyNetImageProcessor, TinyNetModel
from training.errors import ModelError
from training.modeling.build import build_model, has_imagenet_classes, model_config

FRUITS = ["apple", "banana", "cherry"]
UNNAMED = ["LABEL_0", "LABEL_1", "LABEL_2"]


def save_model(folder, labels, seed=7):
    torch.manual_seed(seed)
    config = TinyNetConfig.from_variant("tinynet_e", image_size=32, id2label=dict(enumerate(labels)))
    TinyNetForImageClassification(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def fruits(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("models") / "fruits", FRUITS)


def build(model, class_names, seed=0, **overrides):
    return build_model(str(model), model_config(str(model), class_names, **overrides), seed=seed)


def stored(folder):
    return safetensors.torch.load_file(folder / "model.safetensors")


def assert_body_is_stored(network, tensors):
    body = network.tinynet.state_dict()
    assert set(body) == {name for name in tensors if not name.startswith("classifier.")}
    for name, tensor in body.items():
        assert torch.equal(tensor, tensors[name]), name


def assert_head_is_drawn(network, seed=0):
    """As a fresh network of that seed has it."""
    torch.manual_seed(seed)
    fresh = TinyNetForImageClassification(network.config)
    assert torch.equal(network.classifier.weight, fresh.classifier.weight)
    assert torch.equal(network.classifier.bias, fresh.classifier.bias)


# Heads


def test_a_variant_is_drawn_from_the_seed():
    network, note = build("tinynet_e", FRUITS, seed=3)
    torch.manual_seed(3)
    fresh = TinyNetForImageClassification(network.config)
    for name, tensor in fresh.state_dict().items():
        assert torch.equal(network.state_dict()[name], tensor), name
    assert note == "weights: new, drawn from seed 3"


def test_the_same_classes_keep_the_head_and_overrides_hold(fruits):
    network, note = build(fruits, FRUITS, image_size=64, drop_path_rate=0.1, dropout_rate=None)
    assert note == "head: kept (same classes)"
    tensors = stored(fruits)
    assert_body_is_stored(network, tensors)
    assert torch.equal(network.classifier.weight, tensors["classifier.weight"])
    assert (network.config.image_size, network.config.drop_path_rate, network.config.dropout_rate) == (64, 0.1, 0.2)


def test_rows_follow_the_names_of_the_classes(fruits):
    network, note = build(fruits, ["cherry", "apple", "banana"])
    assert note == "head: kept (rows reordered by class name)"
    tensors = stored(fruits)
    assert_body_is_stored(network, tensors)
    for row, source in enumerate((2, 0, 1)):
        assert torch.equal(network.classifier.weight[row], tensors["classifier.weight"][source])
        assert torch.equal(network.classifier.bias[row], tensors["classifier.bias"][source])
    assert network.config.id2label == {0: "cherry", 1: "apple", 2: "banana"}


@pytest.mark.parametrize(
    "class_names",
    [["apple", "banana", "plum"], ["apple", "banana"], [*FRUITS, "plum"], UNNAMED],
    ids=["another", "fewer", "more", "unnamed"],
)
def test_other_classes_get_a_new_head_from_the_seed(fruits, class_names):
    network, note = build(fruits, class_names, seed=5)
    assert note == f"head: new, {len(class_names)} classes for 3"
    assert_body_is_stored(network, stored(fruits))
    assert_head_is_drawn(network, seed=5)


@pytest.mark.parametrize(
    ("labels", "class_names"),
    [(UNNAMED, FRUITS), (UNNAMED, ["0", "1", "2"]), (["0", "1", "2"], UNNAMED)],
)
def test_classes_without_names_go_by_position(tmp_path, labels, class_names):
    network, note = build(save_model(tmp_path / "saved", labels), class_names)
    assert note == "head: kept (classes by position)"
    assert torch.equal(network.classifier.weight, stored(tmp_path / "saved")["classifier.weight"])


def test_numbers_that_are_not_in_order_are_names(tmp_path):
    network, note = build(save_model(tmp_path / "saved", ["2", "0", "1"]), ["0", "1", "2"])
    assert note == "head: kept (rows reordered by class name)"
    weight = stored(tmp_path / "saved")["classifier.weight"]
    assert torch.equal(network.classifier.weight, weight[[1, 2, 0]])


def test_a_timm_folder_keeps_its_ten_unnamed_classes_or_gets_a_new_head(tmp_path):
    torch.manual_seed(0)
    timm_model = create_model("tinynet_e", num_classes=10).eval()
    save_for_hf(timm_model, tmp_path, model_config={"num_classes": 10}, safe_serialization=True)
    network, note = build(tmp_path, [str(digit) for digit in range(10)])
    assert note == "head: kept (classes by position)"
    pixel_values = torch.randn(2, 3, 106, 106, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(network.eval()(pixel_values).logits, timm_model(pixel_values))
    network, note = build(tmp_path, FRUITS)
    assert note == "head: new, 3 classes for 10"
    assert_body_is_stored(network, timm_model.state_dict())
    assert_head_is_drawn(network)


@pytest.mark.parametrize("names", ["WordNet ids", "ours"])
def test_imagenets_head_is_kept_for_its_classes_by_any_name(tmp_path, names):
    torch.manual_seed(0)
    timm_model = create_model("tinynet_e")
    save_for_hf(timm_model, tmp_path, safe_serialization=True)
    network, note = build(
        tmp_path, dict(zip(("WordNet ids", "synonyms", "ours"), imagenet_names(), strict=True))[names]
    )
    assert note == f"head: kept ({'same classes' if names == 'ours' else 'classes by position'})"
    assert torch.equal(network.classifier.weight, timm_model.classifier.weight)


@pytest.mark.parametrize("kind", ["backbone", "timm without classes", "one tensor lost", "another size"])
def test_a_saved_model_without_a_usable_head_gets_a_new_one(tmp_path, fruits, kind):
    if kind == "backbone":
        TinyNetModel.from_pretrained(fruits).save_pretrained(tmp_path)
        reason = "classifier.bias is missing in its file"
    elif kind == "timm without classes":
        timm_model = create_model("tinynet_e", num_classes=0)
        save_for_hf(timm_model, tmp_path, model_config={"num_classes": 0}, safe_serialization=True)
        reason = "its config.json has no classes"
    else:
        TinyNetForImageClassification.from_pretrained(fruits).save_pretrained(tmp_path)
        tensors = stored(tmp_path)
        if kind == "one tensor lost":
            del tensors["classifier.bias"]
            reason = "classifier.bias is missing in its file"
        else:
            tensors["classifier.bias"] = tensors["classifier.bias"][:2].clone()
            reason = "classifier.bias has the shape (2,) in its file and (3,) by its config.json"
        safetensors.torch.save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    network, note = build(tmp_path, FRUITS)
    assert note == f"head: new, 3 classes ({reason})"
    assert_body_is_stored(network, stored(tmp_path))
    assert_head_is_drawn(network)


# Input


def state_input(folder, **settings):
    """Changes what a folder's image processor states."""
    TinyNetImageProcessor.from_pretrained(folder, **settings).save_pretrained(folder)


def test_mean_std_size_and_crop_are_those_of_the_image_processor(tmp_path):
    model = save_model(tmp_path / "saved", FRUITS)
    half, crop = [0.5, 0.5, 0.5], {"height": 48, "width": 48}
    state_input(model, image_mean=half, image_std=half, size={"shortest_edge": 50}, crop_size=crop)
    network, note = build(model, FRUITS)
    assert (network.config.image_mean, network.config.image_std) == (half, half)
    assert (network.config.image_size, network.config.resize_size) == (48, 50)
    assert note == ("head: kept (same classes); mean 0.5 0.5 0.5 and std 0.5 0.5 0.5 as its image processor states")
    # What a run saves beside its weights.
    processor = TinyNetImageProcessor.from_config(network.config)
    assert processor.to_dict() == TinyNetImageProcessor.from_pretrained(model).to_dict()


def test_an_explicit_image_size_wins_and_keeps_the_crop(tmp_path):
    model = save_model(tmp_path / "saved", FRUITS)
    state_input(model, image_mean=0.5, crop_size={"height": 48, "width": 48}, size={"shortest_edge": 60})
    config = model_config(str(model), FRUITS, image_size=64)
    assert (config.image_size, config.resize_size, config.image_mean) == (64, 80, [0.5, 0.5, 0.5])


def test_a_folders_own_processor_changes_nothing(fruits, tmp_path):
    model = save_model(tmp_path / "saved", FRUITS)
    state_input(model)
    assert model_config(str(model), FRUITS).to_dict() == model_config(str(fruits), FRUITS).to_dict()


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"do_center_crop": False}, "its image processor has do_center_crop false, and training knows"),
        ({"image_std": 0.0}, "image_std must be a positive number, or one for each of 3 channels, got 0.0"),
    ],
    ids=str,
)
def test_an_image_processor_that_training_cannot_follow_is_refused(settings, problem, tmp_path):
    model = save_model(tmp_path / "saved", FRUITS)
    (model / "preprocessor_config.json").write_text(json.dumps(settings))
    with pytest.raises(ModelError) as error:
        model_config(str(model), FRUITS)
    assert str(error.value).startswith(f"model {model} cannot be loaded: {problem}")


@pytest.mark.parametrize("has_processor", [True, False])
def test_a_model_of_gray_images_is_refused(has_processor, tmp_path):
    config = TinyNetConfig.from_variant(
        "tinynet_e", image_size=32, num_labels=3, num_channels=1, image_mean=[0.5], image_std=[0.5]
    )
    TinyNetForImageClassification(config).save_pretrained(tmp_path)
    if has_processor:
        TinyNetImageProcessor().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="it takes images of num_channels 1, and"):
        build(tmp_path, UNNAMED)


# Mistakes


def test_another_architecture_is_refused(tmp_path):
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], num_labels=3)
    transformers.ResNetForImageClassification(config).save_pretrained(tmp_path)
    sentence = f"model {tmp_path} cannot be loaded: its model_type is 'resnet', not 'tinynet'"
    with pytest.raises(ModelError) as error:
        model_config(str(tmp_path), FRUITS)
    assert str(error.value) == sentence
    with pytest.raises(ModelError) as error:
        build_model(str(tmp_path), TinyNetConfig.from_variant("tinynet_e", num_labels=3), seed=0)
    assert str(error.value) == sentence


@pytest.mark.parametrize("kind", ["missing", "another size", "too many"])
def test_weights_that_are_not_those_of_the_configuration_are_refused(tmp_path, fruits, kind, capfd):
    TinyNetForImageClassification.from_pretrained(fruits).save_pretrained(tmp_path)
    if kind == "too many":
        config = json.loads((tmp_path / "config.json").read_text())
        config["depth_multiplier"] = 0.4
        (tmp_path / "config.json").write_text(json.dumps(config))
        problem = "is not in the network of its config.json, and "
    else:
        tensors = stored(tmp_path)
        kernel = tensors.pop("conv_head.weight")
        problem = "is missing in its file"
        if kind == "another size":
            tensors["conv_head.weight"] = kernel[:3].clone()
            problem = f"has the shape (3, {kernel.shape[1]}, 1, 1) in its file and {tuple(kernel.shape)} by its config"
        safetensors.torch.save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    capfd.readouterr()
    with pytest.raises(ModelError) as error:
        build(tmp_path, FRUITS)
    assert str(error.value).startswith(f"model {tmp_path} cannot be loaded: tinynet.")
    assert problem in str(error.value)
    assert "\n" not in str(error.value)
    assert "LOAD REPORT" not in capfd.readouterr().err


def test_a_folder_that_is_missing_or_holds_no_model_is_refused(tmp_path, fruits):
    with pytest.raises(ModelError, match="does not exist"):
        model_config(str(tmp_path / "missing"), FRUITS)
    with pytest.raises(ModelError, match=r"has no config\.json"):
        model_config(str(tmp_path), FRUITS)


def test_a_value_no_network_can_have_is_refused_under_its_own_name(fruits):
    with pytest.raises(ValueError, match=r"^image_size must be at least 32"):
        model_config(str(fruits), FRUITS, image_size=8)


# ImageNet's names


def imagenet_names():
    """What ImageNet's classes are called: WordNet ids, lists of synonyms (as on the Hub), and our configuration's."""
    info = ImageNetInfo()
    wordnet_ids = [info.index_to_label_name(index) for index in range(1000)]
    synonyms = [info.index_to_description(index) for index in range(1000)]
    return [wordnet_ids, synonyms, list(TinyNetConfig().id2label.values())]


@pytest.mark.parametrize("names", imagenet_names(), ids=["WordNet ids", "synonyms", "ours"])
def test_imagenets_classes_are_known_by_all_their_names(names):
    assert has_imagenet_classes(names)
    assert not has_imagenet_classes(names[::-1])
    assert not has_imagenet_classes(names[:999])
    assert not has_imagenet_classes(names[1:] + names[:1])


def test_a_thousand_other_classes_are_not_imagenets():
    assert not has_imagenet_classes([f"class {index}" for index in range(1000)])
