"""What the tests of eval.py share: the script as a module, models of random weights, a folder of images."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import torch

from modeling_tinynet import TinyNetConfig, TinyNetForImageClassification

ROOT = Path(__file__).parents[1]
DIGITS = [str(digit) for digit in range(10)]


def load_script():
    """eval.py as a module; by its path, for `eval` is a builtin."""
    spec = importlib.util.spec_from_file_location("eval_script", ROOT / "eval.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def save_model(folder, *, labels=DIGITS, image_size=32, seed=0, **fields):
    """A TinyNet-E of random weights that gives different answers to different images."""
    torch.manual_seed(seed)
    id2label = dict(enumerate(labels))
    config = TinyNetConfig.from_variant("tinynet_e", image_size=image_size, id2label=id2label, **fields)
    model = TinyNetForImageClassification(config)
    with torch.no_grad():
        model.train()  # BatchNorm's statistics of random images: activations neither vanish nor explode
        for _ in range(30):
            model(torch.randn(16, 3, image_size, image_size))
    model.save_pretrained(folder)
    return folder


def run(script, *arguments):
    script.main([str(argument) for argument in (*arguments, "--num_workers", 0, "--device", "cpu")])


def run_json(script, tmp_path, *arguments):
    run(script, *arguments, "--json", tmp_path / "results.json")
    return json.loads((tmp_path / "results.json").read_text())


def digits_folder(root, names=DIGITS, per_class=4):
    """scikit-learn's digits as an image folder, PNGs of 8 x 8 pixels."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    for digit, name in enumerate(names):
        (root / name).mkdir(parents=True)
        for number, index in enumerate(np.flatnonzero(digits.target == digit)[:per_class]):
            PIL.Image.fromarray((digits.images[index] * 15).astype(np.uint8)).save(root / name / f"{number}.png")
    return root
