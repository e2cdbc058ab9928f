"""convert.py on files that timm's own CheckpointSaver wrote, with the command line that timm's train.py stores."""

import copy
import functools
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from timm.data import resolve_data_config
from timm.utils import CheckpointSaver, ModelEmaV3
from torch import nn

import convert
from modeling_tinynet import TinyNetForImageClassification, TinyNetImageProcessor
from tests.conversions import refused_conversion, save, timm_network


@pytest.fixture
def refused(tmp_path, capsys) -> Callable[..., str]:
    return functools.partial(refused_conversion, output=tmp_path / "output", capsys=capsys)


def options(**changed: object) -> Namespace:
    """What timm's train.py stores, as far as it concerns the network: unset, but `drop`, which is 0 there."""
    unset = ("img_size", "input_size", "crop_pct", "mean", "std", "gp", "bn_momentum", "bn_eps", "drop_path")
    defaults = {"model": "tinynet_e", "interpolation": "", "drop": 0.0, "model_kwargs": {}}
    return Namespace(**{**dict.fromkeys(unset), **defaults, **changed})


def saved_by_timm(folder: Path, args: Namespace) -> tuple[Path, nn.Module, nn.Module]:
    """(the file, the network and its average) after a step of training, without which both would be alike."""
    network = timm_network("tinynet_e", 3)
    average = ModelEmaV3(network, decay=0.5)
    optimizer = torch.optim.RMSprop(network.parameters(), 0.001, momentum=0.9)
    network(torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))).sum().backward()
    optimizer.step()
    average.update(network)
    saver = CheckpointSaver(network, optimizer, args, average, checkpoint_dir=folder, recovery_dir=folder)
    saver.save_checkpoint(epoch=3, metric=71.2)
    return Path(folder, "model_best.pth.tar"), network, average.module


def logits(network: nn.Module) -> torch.Tensor:
    images = torch.randn(2, 3, 106, 106, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return network.eval()(images)


def converted_logits(folder: Path) -> torch.Tensor:
    """Of a copy: tensors mapped from a file start anywhere, and oneDNN's single thread rounds differently there."""
    return logits(copy.deepcopy(TinyNetForImageClassification.from_pretrained(folder))).logits


def test_network_and_average_give_timms_logits_to_the_bit(tmp_path, capsys):
    path, network, average = saved_by_timm(tmp_path, options())
    assert not torch.equal(logits(network), logits(average))
    convert.main([str(path), str(tmp_path / "network")])
    assert "took the weights under 'state_dict'; the file holds 'state_dict_ema' too" in capsys.readouterr().out
    assert torch.equal(converted_logits(tmp_path / "network"), logits(network))
    convert.main([str(path), str(tmp_path / "average"), "--ema"])
    assert "took the weights under 'state_dict_ema'; the file holds 'state_dict' too" in capsys.readouterr().out
    assert torch.equal(converted_logits(tmp_path / "average"), logits(average))


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"img_size": 128, "crop_pct": 0.95},
        {"input_size": [3, 64, 64], "img_size": 128, "mean": [0.5], "std": [0.25, 0.25, 0.25]},
    ],
)
def test_preprocessing_is_what_timm_makes_of_its_options(tmp_path, capsys, changed):
    args = options(**changed)
    network = timm_network("tinynet_e", 3)
    path = save(tmp_path / "timm.pth", {"state_dict": network.state_dict(), "args": args})
    convert.main([str(path), str(tmp_path / "output")])
    printed = capsys.readouterr().out
    theirs = resolve_data_config(vars(args), model=network)
    processor = TinyNetImageProcessor.from_pretrained(tmp_path / "output")
    size = theirs["input_size"][1]
    assert (processor.crop_size["height"], processor.crop_size["width"]) == (size, size)
    assert processor.size["shortest_edge"] == int(size / theirs["crop_pct"])
    assert (tuple(processor.image_mean), tuple(processor.image_std)) == (theirs["mean"], theirs["std"])
    assert ("preprocessing difference: none" in printed) == (not changed)


def test_layers_follow_timms_options_and_the_command_line_both(tmp_path, capsys):
    args = options(bn_eps=0.01, drop=0.3, drop_path=0.1, img_size=128, interpolation="bilinear")
    path = save(tmp_path / "timm.pth", {"state_dict": timm_network("tinynet_e", 3).state_dict(), "args": args})
    convert.main([str(path), str(tmp_path / "output"), "--image_size", "64"])
    config = TinyNetForImageClassification.from_pretrained(tmp_path / "output").config
    assert (config.batch_norm_eps, config.dropout_rate, config.drop_path_rate, config.image_size) == (
        0.01,
        0.3,
        0.1,
        64,
    )
    printed = capsys.readouterr().out
    assert "difference in the layers: batch_norm_eps 0.01, and the published is 1e-05" in printed
    assert "preprocessing difference: it was trained with timm's --interpolation 'bilinear'" in printed
    assert "BatchNorm's eps, which the file does not hold" not in printed


def test_options_that_make_another_network_or_no_sense_are_refused(refused, tmp_path):
    tensors = timm_network("tinynet_e", 3).state_dict()
    nested: list = []
    for _ in range(60):
        nested = [nested, nested]  # 2**60 brackets, written out
    for changed, sentence in (
        ({"gp": "max"}, "it was trained with timm's --gp 'max', which no TinyNet has"),
        ({"model_kwargs": {"act_layer": "relu"}}, "--model-kwargs {'act_layer': 'relu'}, which no TinyNet has"),
        ({"input_size": [3, 64, 96]}, "it was trained with timm's --input-size [3, 64, 96], which is no square"),
        ({"crop_pct": "large"}, "it states timm's --crop-pct 'large', which must be a number or one per channel"),
        ({"crop_pct": 0.0001}, "image_size 106 with crop_pct 0.0001 asks for images of 1,060,000 px a side"),
        ({"crop_pct": -1}, "crop_pct must be above 0 and at most 1, got -1"),
        ({"mean": nested}, "it states timm's --mean [["),
        ({"mean": [0.5, 0.5]}, "image_mean must hold one number for each of the 3 channels"),
        ({"std": [float("inf")]}, "image_std must hold positive, finite numbers"),
        ({"mean": [float("nan")]}, "image_mean must hold finite numbers"),
        ({"img_size": 64.5}, "image_size"),
    ):
        content = {"state_dict": tensors, "args": options(**changed)}
        assert sentence in refused(save(tmp_path / "timm.pth", content)), changed


def test_code_among_timms_options_is_refused_and_not_run(refused, tmp_path):
    class Bomb:
        def __reduce__(self):
            return Path.touch, (tmp_path / "exploded",)

    path = save(tmp_path / "bomb.pth", {"state_dict": {}, "args": options(model=Bomb())})
    assert "which are not read because they can run code" in refused(path)
    assert not (tmp_path / "exploded").exists()
