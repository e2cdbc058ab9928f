import re

import numpy as np
import pytest
from PIL import Image

from modeling_tinynet import TINYNET_VARIANTS, TinyNetConfig
from training.config.train_config import TrainConfig, read_recipe
from training.explain import RECIPES, explain, save_lr_curve
from training.optim.lr_schedule import lr_schedule, warmup_remark

IMAGENET = 1_281_167


def explained(
    config: TrainConfig, num_train: int = IMAGENET, num_classes: int = 1000, num_processes: int = 8, **fields
):
    model_config = TinyNetConfig.from_variant(config.model, num_labels=num_classes, **fields)
    return explain(
        config,
        num_train=num_train,
        num_classes=num_classes,
        num_processes=num_processes,
        model_config=model_config,
    )


def published(variant: str) -> TrainConfig:
    return TrainConfig(**read_recipe(RECIPES / f"{variant}.yaml"))


def quick_start() -> str:
    config = TrainConfig(**read_recipe(RECIPES / "quickstart.yaml"))
    return explained(config, num_train=1438, num_classes=10, num_processes=1, image_size=64)


def lines_of(text: str) -> dict[str, str]:
    """label -> value"""
    rows = [line.split(maxsplit=1) for line in text.splitlines() if line.startswith("  ")]
    return {row[0]: row[1] for row in rows if len(row) == 2}


def test_published_run_is_stated_in_its_known_numbers():
    text = explained(published("tinynet_c"))
    for fact in (
        "tinynet_c at 184 px, 1,000 classes",
        "2,457,234",
        "99.5 M per image forward",
        "1,281,167 of ILSVRC/imagenet-1k",
        "1,024 = 8 processes x 128 images\n",
        "1,251, 143 images left out",
        "562,950 in 450 epochs",
        "576,460,800",
        "6,931 updates = 5.54 epochs",
    ):
        assert fact in text
    images_seen = 450 * 1251 * 1024
    assert f"{3 * 99_536_432 * images_seen:.1e} forward and backward" in text


def test_learning_rates_are_the_published_ones_and_few():
    lines = lines_of(explained(published("tinynet_c")))
    assert lines["0"] == "1e-06"
    assert lines["3"] == "0.04656"
    assert lines["5"] == "0.0451632"
    assert lines["12"] == "0.0412192"
    assert lines["449"] == "0.000161271"
    assert lines["peak"] == "0.04656 in epoch 3"
    assert len([label for label in lines if label.isdigit()]) <= 14


def test_the_backbones_learning_rate_is_shown_where_it_has_its_own():
    text = explained(TrainConfig(model="tinynet_c", backbone_lr_scale=0.1))
    assert lines_of(text)["backbone"] == "x 0.1: peak 0.004656; the rates above are the classifier's"
    assert "backbone_lr_scale  1 -> 0.1" in re.sub(" {2,}", "  ", text)
    assert max(map(len, text.splitlines())) <= 100
    assert "backbone" not in explained(TrainConfig(model="tinynet_c"))


def test_a_run_that_ends_in_its_warm_up_is_remarked_upon():
    # Three epochs of warm-up, of which the first trains at warmup_lr and nothing else.
    config = TrainConfig(epochs=1, warmup_epochs=3, lr=0.048, warmup_lr=6e-8)
    remark = warmup_remark(config, steps_per_epoch=26)
    assert remark == "warmup_epochs 3 outlasts the run: at most 6e-08, never lr 0.048"
    assert lines_of(explained(config))["remark"] == remark
    assert max(map(len, explained(config).splitlines())) <= 100
    for fine in (TrainConfig(epochs=4, warmup_epochs=3), TrainConfig(epochs=1, warmup_epochs=0)):
        assert warmup_remark(fine, steps_per_epoch=26) is None
        assert "remark" not in lines_of(explained(fine))
    assert "at most 0.032," in warmup_remark(TrainConfig(epochs=3, warmup_epochs=3), steps_per_epoch=26)


def test_moving_average_means_something_when_five_percent_of_the_start_are_left():
    lines = explained(published("tinynet_c"))
    assert 0.9999 ** (23 * 1251) > 0.05 > 0.9999 ** (24 * 1251)
    assert "after epoch 24, with less than 5% of the initial weights left" in lines
    assert 0.9999**29_955 > 0.05 > 0.9999**29_956
    assert "0.9999 ** 29,956 updates leaves 5% of the initial weights" in lines


def test_a_moving_average_that_is_too_slow_for_the_run_is_said_to_be():
    text = explained(TrainConfig(model="tinynet_e", epochs=5))
    assert round(0.9999 ** (5 * 1251), 2) == 0.53
    assert "never: 53% of the initial weights are left at the end; lower ema_decay" in text


def test_no_moving_average_is_said_to_be_off():
    assert "ema_decay is 0" in explained(TrainConfig(ema_decay=0))


def test_one_process_accumulates_to_the_same_batch():
    assert "1,024 = 1 process x 128 images x 8 accumulated" in explained(published("tinynet_c"), num_processes=1)


def test_a_batch_that_cannot_be_made_is_refused():
    with pytest.raises(ValueError, match="global_batch_size 1024 is not a multiple of 3 processes"):
        explained(published("tinynet_c"), num_processes=3)


@pytest.mark.parametrize("variant", TINYNET_VARIANTS)
def test_published_recipes_do_not_differ_from_the_published_recipe(variant):
    drop_path_rate = published(variant).drop_path_rate or 0.0
    text = explained(published(variant), drop_path_rate=drop_path_rate)
    assert text.endswith(f"Differences from the published recipe of {variant}\n  none")


def test_drop_path_of_b_is_missed_when_it_is_not_there():
    assert "drop_path_rate" in explained(TrainConfig(model="tinynet_b"))
    assert "0.1 -> 0" in explained(TrainConfig(model="tinynet_b"))


def test_differences_are_named_with_both_values():
    differences = lines_of(quick_start().split("Differences")[1])
    assert differences["dataset"] == "ILSVRC/imagenet-1k -> digits"
    assert differences["image_size"] == "106 -> 64"
    assert differences["schedule"] == "staircase -> cosine"
    assert differences["horizontal_flip"] == "0.5 -> 0"
    assert differences["drop_last"] == "true -> false"
    assert not {"model", "output_dir", "log_every_steps", "warmup_lr"} & set(differences)


def test_precision_of_the_launcher_is_no_difference_but_half_precision_is():
    assert "precision" not in explained(TrainConfig(precision="no")).split("Differences")[1]
    assert "no -> bf16" in explained(TrainConfig(precision="bf16")).split("Differences")[1]


@pytest.mark.parametrize("text", [explained(published("tinynet_a")), quick_start()], ids=["published", "quick start"])
def test_text_fits_a_terminal(text):
    assert len(text.splitlines()) < 60
    assert max(map(len, text.splitlines())) <= 100
    values = {line.index(line.split("  ")[-1].strip()) for line in text.splitlines() if line.startswith("  0 ")}
    assert values == {line.index("tinynet_") for line in text.splitlines() if line.startswith("  model")}  # aligned


def test_curve_shows_the_schedule(tmp_path):
    config = TrainConfig(model="tinynet_c")
    path = tmp_path / "lr.png"
    arguments = {"total_steps": 450 * 1251, "steps_per_epoch": 1251, "title": r"runs/$\foo$"}
    save_lr_curve(path, lr_schedule(config, 1251), **arguments)
    first = path.read_bytes()
    picture = np.asarray(Image.open(path).convert("RGB")).astype(int)
    assert picture.shape == (700, 1200, 3)
    green = (picture[..., 1] - picture[..., 0] > 60) & (picture[..., 1] - picture[..., 2] > 60)
    columns = green.nonzero()[1]
    assert columns.max() - columns.min() > 900  # the line crosses the picture
    height = [green[:, column].nonzero()[0].mean() for column in (150, 300, 600, 1100)]
    assert height == sorted(height)  # and falls: rows count from the top
    save_lr_curve(path, lr_schedule(config, 1251), **arguments)
    assert path.read_bytes() == first


@pytest.mark.parametrize("epochs", [1, 2, 20])
def test_short_runs_have_a_curve_and_an_explanation(tmp_path, epochs):
    config = TrainConfig(
        model="tinynet_e", epochs=epochs, schedule="cosine", warmup_epochs=0.5, global_batch_size=8,
        per_device_batch_size=8, ema_decay=0.5,
    )  # fmt: skip
    lines = lines_of(explained(config, num_train=32, num_classes=3, num_processes=1))
    assert lines["peak"] == "0.048 in epoch 0"
    save_lr_curve(
        tmp_path / "lr.png", lr_schedule(config, 4), total_steps=4 * epochs, steps_per_epoch=4, title="short"
    )
    assert Image.open(tmp_path / "lr.png").size == (1200, 700)
