"""What became of a checkpoint, for people to read."""

from typing import Any

import torch

from conversion.checkpoint import COUNTER, Checkpoint
from modeling_tinynet import TinyNetConfig, TinyNetForImageClassification

# What a file can state about a network whose tensors are a published one's.
PREPROCESSING = ("image_size", "crop_pct", "image_mean", "image_std")
LAYERS = ("batch_norm_eps", "batch_norm_momentum", "dropout_rate", "drop_path_rate")


def report(checkpoint: Checkpoint, network: TinyNetForImageClassification, variant: str) -> None:
    """What became of the file, and where the network and its preprocessing differ from it and from the published."""
    config = network.config
    used, added = len(checkpoint.tensors), len(network.state_dict()) - len(checkpoint.tensors)
    print(f"read {checkpoint.framework} checkpoint: {used + len(checkpoint.ignored)} entries")
    if checkpoint.checksum:
        print(f"checked {checkpoint.checksum}")
    else:
        print("checksum: this file has none, so that a changed bit among its numbers cannot be noticed")
    for note in checkpoint.notes:
        print(note)
    if checkpoint.ignored:
        print(f"ignored {len(checkpoint.ignored)} of them, the training's state, such as {checkpoint.ignored[0]!r}")
    print(f"used {used} of them, the network's tensors: {config.parameter_count:,} parameters, BatchNorm's statistics")
    for dtype in sorted({str(tensor.dtype) for tensor in checkpoint.tensors.values() if tensor.is_floating_point()}):
        if dtype != str(torch.float32):
            rounded = ", rounded" if dtype == str(torch.float64) else ""
            print(f"converted {dtype.removeprefix('torch.')} to float32{rounded}")
    if added:
        print(f"added {added} {COUNTER} that the file lacks, as 0")
    labels = f"{config.id2label[0]!r} to {config.id2label[config.num_labels - 1]!r}"
    classes = "class" if config.num_labels == 1 else "classes"
    print(f"recognized {variant} with {config.num_labels:,} {classes}, {labels}")
    print(f"model difference: none, all {used + added} tensors read back bit by bit the same")
    report_settings(config, TinyNetConfig.from_variant(variant), stated=checkpoint.settings)


def report_settings(config: TinyNetConfig, published: TinyNetConfig, stated: dict[str, Any]) -> None:
    def differences_in(names: tuple[str, ...]) -> str:
        return "; ".join(
            f"{name} {getattr(config, name)}, and the published is {getattr(published, name)}"
            for name in names
            if getattr(config, name) != getattr(published, name)
        )

    if stated:
        print(f"the file states {', '.join(stated)}")
    if layers := differences_in(LAYERS):
        print(f"difference in the layers: {layers}")
    if preprocessing := differences_in(PREPROCESSING):
        print(f"preprocessing difference: {preprocessing}")
    else:
        print("preprocessing difference: none, it is the published one and reads back so")
    print(
        f"preprocessing: shorter side to {config.resize_size} px (bicubic, antialiased), "
        f"central {config.image_size} px, mean {config.image_mean}, std {config.image_std}"
    )
    if "batch_norm_eps" not in stated:
        print(f"BatchNorm's eps, which the file does not hold: {config.batch_norm_eps:g}, as published")
