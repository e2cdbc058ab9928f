"""eval.py against transformers' pipeline: the same answers whatever a model's image processor states."""

import json
import shutil

import PIL.Image
import pytest
from sklearn.datasets import load_sample_images
from transformers import pipeline

from tests.evaluation_runs import load_script, run_json, save_model

PUBLISHED = {"size": {"shortest_edge": 36}, "crop_size": {"height": 32, "width": 32}}


@pytest.fixture(scope="module")
def script():
    return load_script()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("models") / "model")


@pytest.fixture(scope="module")
def images():
    """Patches of two photos, of many sizes and shapes."""
    patches = []
    for photo in map(PIL.Image.fromarray, load_sample_images().images):
        for number in range(20):
            side, left = 40 + 9 * number, 23 * number
            patch = photo.crop((left, 2 * number, left + side, 2 * number + 60 + side // 2))
            patches.append(patch.resize((30 + 2 * number, 45 + number), PIL.Image.Resampling.BOX))
    return patches


def with_processor(model, folder, **settings):
    shutil.copytree(model, folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PUBLISHED | settings))
    return folder


def sorted_by_answer(model, images, root):
    """The images in a folder for each answer that the pipeline of `model` gives."""
    classify = pipeline("image-classification", model=str(model))
    for number, image in enumerate(images):
        folder = root / classify(image, top_k=1)[0]["label"]
        folder.mkdir(parents=True, exist_ok=True)
        image.save(folder / f"{number}.png")
    return root


@pytest.mark.parametrize(
    "settings",
    [
        {"image_mean": 0.5, "image_std": [0.5, 0.5, 0.5]},
        {"do_normalize": False},
        {"do_rescale": False, "image_mean": 127.5, "image_std": [127.5]},
        {"rescale_factor": 1 / 127.5},
        {"resample": 0},
        {"resample": 2},
        {"size": {"height": 48, "width": 36}},
        {"size": [40, 32], "do_center_crop": False},
        {"do_resize": False},
        {"do_resize": False, "do_center_crop": False},
        {"do_center_crop": False},
        {"crop_size": {"height": 32, "width": 20}},
    ],
    ids=str,
)
def test_the_pipelines_answers_are_all_correct(settings, script, model, images, tmp_path):
    """And those of the published transform are not, so that the setting matters for these images."""
    other, published = with_processor(model, tmp_path / "other", **settings), with_processor(model, tmp_path / "same")
    data = sorted_by_answer(other, images, tmp_path / "images")
    results = run_json(script, tmp_path, other, published, "--dataset", data, "--batch_size", 16)["models"]
    assert [entry["n"] for entry in results] == [40, 40]
    assert results[0]["top_1_correct"] == 40
    assert results[1]["top_1_correct"] < 40
