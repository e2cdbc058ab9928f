"""What the tests of convert.py share: a command that must fail, and files to convert."""

import os
import sys
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

import convert
from training.command import run_command


def refused_conversion(checkpoint: Path, *arguments: str, output: Path, capsys: pytest.CaptureFixture) -> str:
    """Runs a command that must fail and write nothing, and returns its one sentence."""
    before = os.path.exists(output)  # not of pathlib, which raises where the name is too long
    with pytest.raises(SystemExit) as exit:
        sys.exit(run_command(convert.main, [str(checkpoint), str(output), *arguments]))
    out, err = capsys.readouterr()
    assert (exit.value.code, out, os.path.exists(output)) == (2, "", before)
    assert err.startswith("error: ") and err.count("\n") == 1
    return err


def timm_network(variant: str, num_classes: int = 1000) -> nn.Module:
    """With BatchNorm's statistics and parameters away from their initial values, so that no mix-up can hide."""
    torch.manual_seed(0)
    network = timm.create_model(variant, num_classes=num_classes)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.bias.data, module.running_mean, module.running_var):
                tensor.uniform_(0.5, 1.5)
    return network.eval()


def save(path: Path, content: object, **options: bool) -> Path:
    torch.save(content, path, **options)
    return path


def weights_of(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()
