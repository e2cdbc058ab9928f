"""The benchmark of the input pipeline runs to its end, and what it compares does the same work."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import readme
from benchmarks.input import (
    MOST_BYTES,
    figures,
    our_batches,
    our_evaluation_batches,
    timms_batches,
    transformers_batches,
    write_photos,
)
from modeling_tinynet import TinyNetConfig
from tests import launcher
from training.data.sources import load_splits

ROOT = Path(__file__).parents[1]
CONFIG = TinyNetConfig.from_variant("tinynet_e")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    root = tmp_path_factory.mktemp("photos") / "photos"
    write_photos(root, 16)
    return root


def test_photographs_are_of_imagenets_size(photos):
    files = sorted((photos / "train").glob("*/*.jpg"))
    assert len(files) == 16
    sizes = {Image.open(file).size for file in files}
    assert sizes <= {(500, 375), (375, 500)}
    assert max(file.stat().st_size for file in files) <= MOST_BYTES
    assert np.mean([file.stat().st_size for file in files]) > 0.5 * MOST_BYTES


def test_everybody_makes_batches_of_one_kind(photos):
    """Normalised by ImageNet's mean and deviation: the colours of the same photographs agree on average."""
    splits = load_splits(str(photos))
    torch.manual_seed(0)
    means = {}
    for name, batches in {
        "here": our_batches(splits, CONFIG, 0, 8),
        "timm": timms_batches(photos, CONFIG, 0, 8),
        "transformers": transformers_batches(photos, CONFIG, 0, 8),
    }.items():
        made = []
        for _ in range(6):
            batch = next(batches)
            pixels = batch["pixel_values"] if isinstance(batch, dict) else batch[0]
            assert pixels.shape == (8, 3, 106, 106) and pixels.dtype == torch.float32
            made.append(pixels)
        means[name] = torch.cat(made)
    # 48 crops of 16 photographs: their means differ by about a tenth of the pixels' deviation, which is near 1.
    for name in ("timm", "transformers"):
        assert abs(means[name].mean() - means["here"].mean()) < 0.5
        assert 0.7 < means[name].std() / means["here"].std() < 1.4


def test_evaluation_batches_are_timms_but_for_single_steps(photos):
    splits = load_splits(str(photos))
    ours = next(our_evaluation_batches(splits, CONFIG, 8))
    timms, _ = next(timms_batches(photos, CONFIG, 0, 8, is_training=False))
    steps = (ours - timms).abs() * 255 * torch.tensor(CONFIG.image_std)[:, None, None]
    assert steps.max() < 2.1 and steps.mean() < 0.2


def test_ratios_are_medians_of_rounds():
    by_round = {"timm": [100.0, 200.0, 100.0], "here": [200.0, 300.0, 400.0]}
    assert figures(by_round) == {
        "images_per_s": {"timm": 100.0, "here": 300.0},
        "ratio_to": {"timm": 2.0},
        "by_round": by_round,
    }


@pytest.mark.slow
def test_a_short_run_writes_what_the_readme_shows(tmp_path, monkeypatch):
    output, plot = tmp_path / "input.json", tmp_path / "input.png"
    flags = ["--images", 14, "--rounds", 1, "--seconds", 0.1, "--batch_size", 4, "--num_workers", 1]
    command = ["-m", "benchmarks.input", *flags, "--output", output, "--plot", plot, "--image_sizes", 106]
    answer = launcher.run(command)
    assert answer.returncode == 0, answer.stderr
    report = json.loads(output.read_text())
    assert [(row["what"], row["num_workers"]) for row in report["results"]] == [
        ("training", 0),
        ("training", 1),
        ("evaluation", 0),
        ("decoding", 0),
    ]
    assert all(rate > 0 for row in report["results"] for rate in row["images_per_s"].values())
    assert Image.open(plot).size == (1200, 600)
    report["environment"]["commit"] = "0123abc"  # a developer's tree may hold changes, whose results are refused
    output.write_text(json.dumps(report))
    monkeypatch.setattr(readme, "RESULTS", tmp_path)
    text = readme.input_table()
    assert text.count("| 106 px |") == 4 and "(input.png)" in text
