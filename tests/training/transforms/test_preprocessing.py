import json

import numpy as np
import PIL.Image
import pytest
import torch
from sklearn.datasets import load_sample_image
from transformers import ViTImageProcessor

from modeling_tinynet import TinyNetConfig, TinyNetImageProcessor
from training.transforms.device_transforms import DeviceTransform
from training.transforms.preprocessing import Preprocessing, config_fields, read_processor

E_CONFIG = {"size": {"shortest_edge": 36}, "crop_size": {"height": 32, "width": 32}}


@pytest.fixture(scope="module")
def photos():
    china = PIL.Image.fromarray(load_sample_image("china.jpg"))
    return [china.resize((90, 60)), china.resize((48, 70)), china.resize((20, 20))]


def save(folder, **settings):
    folder.mkdir(exist_ok=True)
    settings = {"image_processor_type": "TinyNetImageProcessor", **E_CONFIG, **settings}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return str(folder)


SETTINGS = [
    {},
    {"do_normalize": False},
    {"do_rescale": False},
    {"do_rescale": False, "do_normalize": False},
    {"rescale_factor": 1 / 127.5, "image_mean": [1.0, 1.0, 1.0], "image_std": [1.0, 1.0, 1.0]},
    {"image_mean": 0.5, "image_std": [0.25]},
    {"size": {"height": 40, "width": 34}},
    {"size": 40},
    {"size": [40, 34], "do_center_crop": False},
    {"do_resize": False},
    {"do_resize": False, "do_center_crop": False},
    {"do_center_crop": False},
    {"crop_size": {"height": 32, "width": 24}},
    {"crop_size": 50},
    *({"resample": number} for number in (0, 1, 2, 4, 5)),
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_every_setting_gives_what_the_processor_gives(settings, tmp_path, photos):
    """Exactly but for the published resize, in which torch and Pillow differ by a step of 255 in a few pixels."""
    processor = read_processor(save(tmp_path / "model", **settings))
    preprocessing = Preprocessing.of(processor)
    normalize = DeviceTransform(preprocessing.mean, preprocessing.std).normalize_only
    for photo in photos:
        theirs = processor(photo, return_tensors="pt")["pixel_values"]
        ours = normalize(preprocessing(torch.from_numpy(np.array(photo)).permute(2, 0, 1))[None])
        assert ours.shape == theirs.shape
        assert preprocessing.output_size in (None, tuple(ours.shape[-2:]))
        steps = (ours - theirs).abs() * 255 * torch.tensor(preprocessing.std)[:, None, None]
        if processor.do_resize and processor.size.shortest_edge and processor.resample == 3:
            assert steps.max() < 1.01
            assert (steps > 0.01).float().mean() < 0.05
        else:
            assert steps.max() < 1e-4


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"image_processor_type": "ViTImageProcessor"}, "its image processor is a ViTImageProcessor, and only"),
        ({"do_pad": True, "pad_size": 64}, "do_pad true, and images are not padded"),
        ({"do_grayscale": True}, "do_grayscale true, and images are read as RGB"),
        (
            {"do_convert_rgb": False, "image_mean": [0.5] * 4},
            r"image_mean \[0.5, 0.5, 0.5, 0.5\], and images are read",
        ),
        ({"image_std": [0, 0, 0]}, r"image_std must be a positive number.*\(0, 0, 0\)"),
        ({"image_mean": [0.5, 0.5]}, r"image_mean must be a number.*\(0.5, 0.5\)"),
        ({"image_mean": "imagenet"}, "image_mean must be a number.*'imagenet'"),
        ({"image_mean": [0.5, 0.5, float("nan")]}, "image_mean must be a number.*nan"),
        ({"rescale_factor": 0}, "rescale_factor must be a positive number, got 0"),
        ({"rescale_factor": [1, 1, 1]}, "rescale_factor must be a positive number, got "),
        ({"do_normalize": "false"}, "do_normalize must be true or false, got 'false'"),
        ({"resample": 6}, "resample must be a filter of Pillow by its number, 0 to 5, got 6"),
        ({"resample": "bicubic"}, "resample must be a filter .* got 'bicubic'"),
        ({"size": {"longest_edge": 40}}, "size must have the key 'shortest_edge', or 'height' and 'width', got"),
        ({"size": {"shortest_edge": 36.5}}, "size must hold whole numbers of pixels from 1 to 16,384, got .*36.5"),
        ({"size": 0}, "size must hold whole numbers"),
        ({"size": [36]}, r"size must be \(height, width\) where it is a list, got \[36\]"),
        ({"size": [36, 36, 3]}, r"size must be \(height, width\) where it is a list"),
        ({"size": {"shortest_edge": None}}, "size must have the key"),
        ({"size": True}, "size must hold whole numbers"),
        ({"size": "large"}, "[sS]ize"),
        ({"resample": [3]}, "resample must be a filter"),
        ({"crop_size": {"shortest_edge": 32}}, "crop_size must have the keys 'height' and 'width', got"),
        ({"crop_size": -1}, "crop_size must hold whole numbers"),
        ({"crop_size": 1_000_000_000}, "crop_size must hold whole numbers"),
    ],
    ids=str,
)
def test_what_cannot_be_followed_is_refused_by_name(settings, problem, tmp_path):
    with pytest.raises(ValueError, match=problem):
        read_processor(save(tmp_path / "model", **settings))


@pytest.mark.parametrize("content", ["[]", '"bicubic"', "3", "{", "\xff"])
def test_a_file_that_is_no_object_is_refused(content, tmp_path):
    TinyNetConfig().save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(content, encoding="latin-1")
    with pytest.raises((OSError, ValueError), match=r"preprocessor_config\.json"):
        read_processor(str(tmp_path))


def test_a_setting_that_is_switched_off_may_be_anything(tmp_path):
    off = {"do_normalize": False, "image_std": 0, "do_resize": False, "size": {"longest_edge": 3}}
    assert Preprocessing.of(read_processor(save(tmp_path / "model", **off))).std == (1.0, 1.0, 1.0)


def test_another_models_processor_is_refused_as_transformers_saved_it(tmp_path):
    ViTImageProcessor().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="its image processor is a ViTImageProcessor"):
        read_processor(str(tmp_path))


# For training


@pytest.mark.parametrize("variant", ["tinynet_a", "tinynet_b", "tinynet_c", "tinynet_d", "tinynet_e"])
def test_a_configurations_own_processor_changes_nothing(variant):
    config = TinyNetConfig.from_variant(variant)
    assert config_fields(TinyNetImageProcessor.from_config(config), config) == {}


@pytest.mark.parametrize("sizes", [(32, 36), (93, 93), (32, 93), (224, 256), (230, 230)], ids=str)
def test_fields_give_the_processor_back(sizes):
    """32 and 93 are a pair whose quotient, divided again, rounds down to 92."""
    crop, shorter = sizes
    processor = TinyNetImageProcessor(
        size=shorter, crop_size=crop, image_mean=[0.5, 0.4, 0.3], image_std=[0.25, 0.2, 0.3]
    )
    config = TinyNetConfig(**config_fields(processor, TinyNetConfig()))
    assert TinyNetImageProcessor.from_config(config).to_dict() == processor.to_dict()


@pytest.mark.parametrize("settings", SETTINGS[1:6], ids=str)
def test_other_numbers_are_folded_into_mean_and_std(settings, photos, tmp_path):
    processor = read_processor(save(tmp_path / "model", **settings))
    folded = TinyNetImageProcessor.from_config(TinyNetConfig(**config_fields(processor, TinyNetConfig())))
    for photo in photos:
        ours, theirs = (each(photo, return_tensors="pt")["pixel_values"] for each in (folded, processor))
        torch.testing.assert_close(ours, theirs.float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"do_resize": False}, "do_resize false"),
        ({"do_center_crop": False, "crop_size": {"shortest_edge": 3}}, "do_center_crop false"),
        ({"resample": 2}, "resample 2"),
        ({"size": {"height": 36, "width": 36}}, r"size {'height': 36, 'width': 36}"),
        ({"crop_size": {"height": 32, "width": 24}}, "crop_size {'height': 32, 'width': 24} for size"),
        ({"crop_size": 40}, "crop_size {'height': 40, 'width': 40} for size {'shortest_edge': 36}"),
    ],
    ids=str,
)
def test_another_geometry_is_refused_for_training(settings, problem, tmp_path):
    processor = read_processor(save(tmp_path / "model", **settings))
    with pytest.raises(ValueError, match=f"its image processor has {problem}"):
        config_fields(processor, TinyNetConfig())
