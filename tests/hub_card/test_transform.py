"""The card's words for what preprocessor_config.json does, beside what the processor does."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from hub_card.run_files import PublishError
from hub_card.schema import PROCESSOR, check
from hub_card.transform import input_sentence, load_processor
from tests.hub.runs import FIXTURE

CONFIG = json.loads((FIXTURE / "best" / "preprocessor_config.json").read_text())
HALF = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}


def said(**changes) -> str:
    return input_sentence(load_processor(CONFIG | changes))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {},
            "to 73 pixels (bicubic, antialiased, on 8-bit pixels), the central 64 × 64 cut out, divided by 255",
        ),
        (HALF, "mean (0.5, 0.5, 0.5) subtracted and divided by (0.5, 0.5, 0.5)."),
        ({"image_mean": 0.5, "image_std": 0.25}, "mean 0.5 subtracted and divided by 0.25."),
        ({"do_grayscale": True, "image_mean": [0.5], "image_std": [0.5]}, "An upright gray image, its shorter side"),
        ({"do_normalize": False}, "the central 64 × 64 cut out, divided by 255."),
        ({"do_rescale": False}, "the central 64 × 64 cut out, mean (0.485"),
        ({"do_rescale": False, "do_normalize": False}, "cut out, its values left at 0 to 255."),
        ({"rescale_factor": 1 / 127.5}, "cut out, multiplied by 0.00784314, mean"),
        ({"do_resize": False}, "An upright RGB image, the central 64"),
        ({"do_center_crop": False}, "on 8-bit pixels), divided by 255"),
        ({"crop_size": {"height": 64, "width": 32}}, "the central 64 × 32 cut out"),
        (
            {"size": {"height": 80, "width": 70}},
            "resized to 80 × 70 pixels, height × width, whatever its shape (bicubic",
        ),
        ({"resample": 2}, "(bilinear, antialiased, on 8-bit pixels)"),
        ({"resample": 0}, "(nearest, on 8-bit pixels)"),
        ({"do_convert_rgb": False}, "An upright image, which has to be RGB, its shorter side"),
    ],
)
def test_each_setting_is_said(changes, words):
    check(CONFIG | changes, PROCESSOR, "preprocessor_config.json")
    assert words in said(**changes)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"image_processor_type": "ViTImageProcessor"},
            "image_processor_type must be the published TinyNetImageProcessor",
        ),
        ({"do_pad": True}, "do_pad must be false"),
        ({"size": {"longest_edge": 64}}, "size must have the key 'shortest_edge', or 'height' and 'width'"),
        ({"crop_size": {"shortest_edge": 64}}, "crop_size must have the keys 'height' and 'width'"),
        ({"resample": 9}, "resample must be a filter of Pillow by its number, 0 to 5, got 9"),
        ({"image_mean": [0.5, 0.5]}, "image_mean must be a number, or one for each of 3 channels"),
        ({"image_std": [0, 0, 0]}, "image_std must be a positive number, or one for each of 3 channels"),
    ],
)
def test_what_no_word_stands_for_is_refused(changes, sentence):
    with pytest.raises(PublishError) as error:
        said(**changes)
    assert sentence in str(error.value) and "best/preprocessor_config.json" in str(error.value)


def test_the_sentence_is_what_the_processor_computes():
    """Its numbers, read back and computed by hand, give the processor's pixels."""
    changes = HALF | {"do_resize": False, "crop_size": {"height": 4, "width": 2}, "rescale_factor": 1 / 127.5}
    image = Image.linear_gradient("L").resize((6, 8)).convert("RGB")
    values = torch.tensor(np.asarray(image), dtype=torch.float32).permute(2, 0, 1)
    assert "the central 4 × 2 cut out, multiplied by 0.00784314, mean (0.5, 0.5, 0.5) subtracted" in said(**changes)
    by_hand = (values[:, 2:6, 2:4] * 0.00784314 - 0.5) / 0.5
    pixels = load_processor(CONFIG | changes)(image, return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(pixels, by_hand, rtol=1e-5, atol=1e-5)
