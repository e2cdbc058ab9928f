"""transformers' pipelines on saved folders, against timm's network and transform."""

from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import skimage.data
import timm
import torch
from PIL import Image
from torch import nn
from transformers import pipeline

from modeling_tinynet import TinyNetConfig, TinyNetForImageClassification, TinyNetImageProcessor

NAMES = ["cat", "coffee", "rocket", "retina", "moon"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    """A saved classifier with its image processor, whose classes score differently."""
    folder = tmp_path_factory.mktemp("saved")
    labels = {"id2label": dict(enumerate(NAMES)), "label2id": {name: index for index, name in enumerate(NAMES)}}
    torch.manual_seed(0)
    model = TinyNetForImageClassification(TinyNetConfig.from_variant("tinynet_e", **labels))
    nn.init.normal_(model.classifier.weight)
    model.save_pretrained(folder)
    TinyNetImageProcessor.from_config(model.config).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def theirs(folder) -> nn.Module:
    """The saved weights in timm's network."""
    model = timm.create_model("tinynet_e", num_classes=len(NAMES))
    model.load_state_dict(safetensors.torch.load_file(Path(folder, "model.safetensors")), strict=True)
    return model.eval()


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    """Of unequal sizes, orientations and modes."""
    cat, coffee, rocket, moon = (
        Image.fromarray(getattr(skimage.data, name)()) for name in ("chelsea", "coffee", "rocket", "moon")
    )
    coffee.putalpha(200)
    return [cat, coffee.resize((90, 70)), rocket.transpose(Image.Transpose.ROTATE_90), moon]


def timm_input(model: nn.Module, image: Image.Image) -> torch.Tensor:
    transform = timm.data.create_transform(**timm.data.resolve_data_config({}, model=model))
    return transform(image.convert("RGB"))[None]


def timm_scores(model: nn.Module, image: Image.Image) -> dict[str, float]:
    with torch.inference_mode():
        scores = model(timm_input(model, image)).softmax(-1)[0]
    return dict(zip(NAMES, scores.tolist(), strict=True))


def as_dict(scores: list[dict]) -> dict[str, float]:
    """A pipeline's answer as {label: score}, which must come best first."""
    assert scores == sorted(scores, key=lambda score: -score["score"])
    return {score["label"]: score["score"] for score in scores}


def test_classes_are_scored_as_by_timm(folder, theirs, images):
    classify = pipeline("image-classification", model=folder)
    assert type(classify.model) is TinyNetForImageClassification
    assert type(classify.image_processor) is TinyNetImageProcessor
    for image in images:
        assert as_dict(classify(image)) == pytest.approx(timm_scores(theirs, image), abs=1e-5)


def test_paths_and_images_score_the_same(folder, images, tmp_path):
    classify = pipeline("image-classification", model=folder)
    paths = [str(tmp_path / f"{index}.png") for index in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        image.save(path)
    assert classify(paths) == classify(images)
    assert classify(paths[0]) == classify(images[0])


def test_a_batch_of_unequal_sizes_scores_as_each_alone(folder, images):
    classify = pipeline("image-classification", model=folder)
    batch = classify(images, batch_size=3)
    for image, scores in zip(images, batch, strict=True):
        assert as_dict(scores) == pytest.approx(as_dict(classify(image)), abs=1e-6)


def test_top_k_gives_the_best_names(folder, theirs, images):
    classify = pipeline("image-classification", model=folder)
    scores = timm_scores(theirs, images[0])
    best = sorted(scores, key=scores.get, reverse=True)[:2]
    assert [score["label"] for score in classify(images[0], top_k=2)] == best


def test_features_match_timm(folder, theirs, images):
    extract = pipeline("image-feature-extraction", model=folder)
    for image in images:
        with torch.inference_mode():
            features = theirs.forward_features(timm_input(theirs, image))
            pooled = theirs.forward_head(features, pre_logits=True)
        np.testing.assert_allclose(extract(image), features, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(extract(image, pool=True), pooled, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("written_by", ["save_pretrained", "timm"])
def test_a_folder_without_a_processors_file_is_no_dead_end(written_by, folder, theirs, images, tmp_path):
    if written_by == "timm":
        timm.models.save_for_hf(theirs, tmp_path, model_args={"num_classes": len(NAMES)}, safe_serialization=True)
    else:
        TinyNetForImageClassification.from_pretrained(folder).save_pretrained(tmp_path)
    assert not (tmp_path / "preprocessor_config.json").exists()

    model = TinyNetForImageClassification.from_pretrained(tmp_path)
    processor = TinyNetImageProcessor.from_pretrained(tmp_path)
    classify = pipeline("image-classification", model=model, image_processor=processor)

    for image in images:
        by_name = as_dict(classify(image))
        scores = [by_name[model.config.id2label[index]] for index in range(len(NAMES))]
        assert scores == pytest.approx(list(timm_scores(theirs, image).values()), abs=1e-5)
