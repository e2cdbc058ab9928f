"""The chart of the README shows published numbers; what can be recomputed of them is."""

import csv
import json

import pytest
import timm
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.peers import PEERS, PLOT, fingerprint, read_peers
from benchmarks.readme import RESULTS
from modeling_tinynet import TinyNetConfig

ROWS = read_peers()
OF_TIMM = [peer for peer in ROWS if peer.weights]
COUNTED = [peer for peer in OF_TIMM if peer.title in {"EfficientNet-B0", "MobileNetV3 small", "LCNet x0.5"}]


def test_tinynet_is_what_we_publish():
    published = json.loads((RESULTS / "published.json").read_text())
    ours = {peer.weights.removesuffix(".in1k"): peer for peer in ROWS if peer.family == "TinyNet"}
    assert sorted(ours) == sorted(published.keys() - {"sources"})
    for name, peer in ours.items():
        config = TinyNetConfig.from_variant(name)
        assert peer.top_1 == published[name]["timm_top_1"]
        assert (peer.image_size, peer.parameters, peer.macs) == (
            config.image_size,
            config.parameter_count,
            config.macs,
        )


@pytest.mark.parametrize("peer", COUNTED, ids=[peer.title for peer in COUNTED])
def test_parameters_and_macs_are_those_of_timms_network(peer):
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        network = timm.create_model(peer.weights.partition(".")[0]).eval()
        network(torch.zeros(1, 3, peer.image_size, peer.image_size))
    assert counter.get_total_flops() == 2 * peer.macs
    assert sum(parameter.numel() for parameter in network.parameters()) == peer.parameters


def test_timm_has_these_weights_and_the_image_sizes_are_theirs():
    for peer in OF_TIMM:
        settings = timm.get_pretrained_cfg(peer.weights)
        assert (settings.num_classes, settings.input_size) == (1000, (3, peer.image_size, peer.image_size))


def test_every_number_says_where_it_was_published():
    with PEERS.open(newline="") as file:
        for row in csv.DictReader(file):
            assert row["top_1_source"] and row["macs_source"]
            assert bool(row["speed_source"]) == bool(row["cpu_images_per_s"]) == bool(row["gpu_images_per_s"])


def test_the_chart_was_drawn_from_this_data():
    with Image.open(PLOT) as image:
        assert image.size == (1200, 700)
        assert image.text["Source"] == fingerprint(), "run python -m benchmarks.peers"
