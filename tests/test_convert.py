"""convert.py on a checkpoint that MindSpore's own TinyNet wrote, and on PyTorch files made with timm's networks.

The MindSpore files here are taken apart and put together on the level of protobuf's bytes, not with convert.py's own
description of the format.
"""

import copy
import hashlib
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from PIL import Image
from torch import nn
from transformers import pipeline

import convert
from modeling_tinynet import TINYNET_VARIANTS, TinyNetForImageClassification, TinyNetImageProcessor

ROOT = Path(__file__).parents[1]
FIXTURES = ROOT / "tests" / "fixtures" / "mindspore"
MINDSPORE = FIXTURES / "tinynet_e_10classes.ckpt"
FILES = {"config.json", "model.safetensors", "preprocessor_config.json"}

Entry = tuple[str, list[int], str, bytes]  # tag, dims, type, content


@pytest.fixture(scope="module")
def converted(tmp_path_factory) -> tuple[Path, str]:
    """The folder that the documented command makes of MindSpore's checkpoint, and what it printed."""
    folder = tmp_path_factory.mktemp("converted") / "new" / "folder"
    command = [sys.executable, "convert.py", MINDSPORE, folder]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (process.returncode, process.stderr) == (0, "")
    return folder, process.stdout


@pytest.fixture
def refused(tmp_path, capsys) -> Callable[..., str]:
    """Runs a command that must fail, and returns its one sentence."""

    def run(checkpoint: Path, *arguments: str, output: Path = tmp_path / "output") -> str:
        before = output.exists()
        with pytest.raises(SystemExit) as exit:
            convert.main([str(checkpoint), str(output), *arguments])
        out, err = capsys.readouterr()
        assert (exit.value.code, out, output.exists()) == (2, "", before)
        assert err.startswith("error: ") and err.count("\n") == 1
        return err

    return run


# MindSpore's file format, by protobuf's wire format


def read_varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        value |= (byte & 0x7F) << shift
        position, shift = position + 1, shift + 7
        if byte < 0x80:
            return value, position


def varint(value: int) -> bytes:
    value &= 2**64 - 1  # negative numbers take ten bytes
    groups = [value & 0x7F]
    while value := value >> 7:
        groups.append(value & 0x7F)
    return bytes([group | 0x80 for group in groups[:-1]] + groups[-1:])


def fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    position = 0
    while position < len(data):
        key, position = read_varint(data, position)
        value, position = read_varint(data, position)
        if key & 7 == 2:  # a length, and that many bytes
            yield key >> 3, data[position : position + value]
            position += value
        else:
            yield key >> 3, value


def field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def read_entries(data: bytes) -> list[Entry]:
    entries = []
    for _, value in fields(data):
        (_, tag), (_, tensor) = fields(value)
        *dims, (_, dtype), (_, content) = fields(tensor)
        entries.append((tag.decode(), [size for _, size in dims], dtype.decode(), content))
    return entries


def write_entries(path: Path, entries: list[Entry]) -> Path:
    data = b""
    for tag, dims, dtype, content in entries:
        tensor = b"".join(field(1, size) for size in dims) + field(2, dtype.encode()) + field(3, content)
        data += field(1, field(1, tag.encode(errors="surrogateescape")) + field(2, tensor))
    path.write_bytes(data)
    return path


def floats(*shape: int) -> tuple[list[int], str, bytes]:
    return list(shape), "Float32", bytes(4 * int(np.prod(shape)))


# MindSpore


def test_fixture_is_put_together_as_mindspore_wrote_it(tmp_path):
    entries = read_entries(MINDSPORE.read_bytes())
    assert write_entries(tmp_path / "again.ckpt", entries).read_bytes() == MINDSPORE.read_bytes()


def test_logits_match_mindspore(converted):
    """Two frameworks add up in different orders, so not to the bit."""
    model = TinyNetForImageClassification.from_pretrained(converted[0])
    reference = np.load(FIXTURES / "tinynet_e_10classes.npz")
    with torch.no_grad():
        logits = model(torch.from_numpy(reference["pixel_values"])).logits.numpy()
    difference = np.abs(logits - reference["logits"]).max()
    print(f"largest difference from MindSpore's logits: {difference:.2e}, of {np.abs(reference['logits']).max():.2f}")
    assert logits.shape == reference["logits"].shape == (2, 10)
    assert difference < 1e-5


def test_every_tensor_of_mindspore_is_in_the_file(converted):
    theirs = sorted(content for *_, content in read_entries(MINDSPORE.read_bytes()))
    saved = safetensors.torch.load_file(converted[0] / "model.safetensors")
    ours = sorted(tensor.numpy().tobytes() for name, tensor in saved.items() if "num_batches" not in name)
    assert len(theirs) == 197
    assert ours == theirs


def test_converted_file_loads_strictly_in_timm(converted):
    network = timm.create_model("tinynet_e", num_classes=10)
    network.load_state_dict(safetensors.torch.load_file(converted[0] / "model.safetensors"), strict=True)


def test_converted_folder_works_in_a_pipeline(converted):
    classify = pipeline("image-classification", model=str(converted[0]), top_k=10)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (130, 170, 3), dtype=np.uint8))
    predictions = classify(image)
    assert sorted(prediction["label"] for prediction in predictions) == [f"LABEL_{index}" for index in range(10)]
    assert sum(prediction["score"] for prediction in predictions) == pytest.approx(1, abs=1e-5)


def test_conversion_says_what_it_did(converted):
    folder, printed = converted
    assert {path.name for path in folder.iterdir()} == FILES
    sha256 = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    parameters = sum(p.numel() for p in timm.create_model("tinynet_e", num_classes=10).parameters())
    for words in (
        "read MindSpore checkpoint: 197 entries",
        f"used 197 of them, the network's tensors: {parameters:,} parameters",
        "added 31 num_batches_tracked that the file lacks, as 0",
        "recognised tinynet_e with 10 classes, 'LABEL_0' to 'LABEL_9'",
        "model difference: none, all 228 tensors",
        "preprocessing difference: none, it is the published one",
        "preprocessing: shorter side to 121 px (bicubic, antialiased), central 106 px",
        f"sha256 of model.safetensors: {sha256}",
    ):
        assert words in printed


def test_optimizer_state_of_a_mindspore_training_is_ignored_and_said(converted, tmp_path, capsys):
    """last.ckpt of the original trainer: the network, RMSProp's two tensors a parameter, and its scalars."""
    entries = read_entries(MINDSPORE.read_bytes())
    trained = [entry for entry in entries if ".moving_" not in entry[0]]
    optimizer = [(f"{prefix}.{tag}", *rest) for prefix in ("mean_square", "moment") for tag, *rest in trained]
    optimizer += [("global_step", [1], "Int32", bytes(4)), ("learning_rate", *floats(450))]
    path = write_entries(tmp_path / "last.ckpt", entries + optimizer)
    convert.main([str(path), str(tmp_path / "output")])
    assert f"ignored {len(optimizer)} of them, the training's state" in capsys.readouterr().out
    assert weights_of(tmp_path / "output") == weights_of(converted[0])


def weights_of(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def test_truncated_mindspore_checkpoint_is_refused(refused, tmp_path):
    path = tmp_path / "truncated.ckpt"
    path.write_bytes(MINDSPORE.read_bytes()[:-1000])
    assert "truncated.ckpt is truncated or damaged" in refused(path)


def without(tag: str) -> Callable[[list[Entry]], list[Entry]]:
    return lambda entries: [entry for entry in entries if entry[0] != tag]


def with_entry(tag: str, *rest) -> Callable[[list[Entry]], list[Entry]]:
    return lambda entries: [*entries, (tag, *rest)]


def changed(tag: str, dims: list[int] | None = None, dtype: str | None = None, content: bytes | None = None):
    def change(entries: list[Entry]) -> list[Entry]:
        return [
            (old[0], dims or old[1], dtype or old[2], content or old[3]) if old[0] == tag else old for old in entries
        ]

    return change


BLOCK = "blocks.layer.3.1"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (without("bn2.moving_variance"), "'bn2.moving_variance' is missing"),
        (without(f"{BLOCK}.bn3.gamma"), f"'{BLOCK}.bn3.gamma' is missing"),
        (without("classifier.weight"), "'classifier.weight' is missing"),
        (with_entry("ema.conv_stem.weight", *floats(32, 3, 3, 3)), "'ema.conv_stem.weight' is unknown"),
        (with_entry("moment.conv_stem", *floats(32)), "'moment.conv_stem' is unknown"),
        (with_entry("bn1.weight", *floats(32)), "'bn1.weight' is unknown"),
        (with_entry("bn1.gamma", *floats(32)), "holds 'bn1.gamma' twice"),
        (
            changed(f"{BLOCK}.conv_pw.weight", dims=[40, 240, 1, 1]),
            f"tinynet_e, the nearest, '{BLOCK}.conv_pw.weight' has shape [40, 240, 1, 1] instead of [240, 40, 1, 1]",
        ),
        (
            changed("conv_stem.weight", dims=[2**40, 2**40, 3, 3]),
            "'conv_stem.weight' declares the shape [1099511627776, 1099511627776, 3, 3], which its 3,456 bytes do not",
        ),
        (changed("conv_stem.weight", dims=[-32, -3, 3, 3]), "'conv_stem.weight' declares the shape [-32, -3, 3, 3]"),
        (changed("classifier.bias", dims=[1] * 100_000), "'classifier.bias' declares the shape [1, 1, 1, 1, 1]"),
        (changed("classifier.weight", dims=[12800, 1]), "'classifier.weight' has shape [12800, 1] instead of"),
        (changed("bn1.beta", dtype="Float16"), "'bn1.beta' is 'Float16', and must be 'Float32'"),
        (
            changed("bn1.beta", content=np.full(32, np.nan, np.float32).tobytes()),
            "'bn1.beta' holds infinite numbers or NaN",
        ),
        (with_entry("bn1.\udcff", *floats(32)), r"'bn1.\\xff' is unknown"),
    ],
)
def test_changed_mindspore_checkpoint_is_refused_by_name(refused, tmp_path, change, sentence):
    path = write_entries(tmp_path / "changed.ckpt", change(read_entries(MINDSPORE.read_bytes())))
    assert sentence in refused(path)


@pytest.mark.parametrize("value", [field(1, b"bn1.beta"), field(1, b"bn1.beta") + field(3, b"\n\0")])
def test_mindspore_entry_without_a_tensor_is_refused(refused, tmp_path, value):
    """Number 3 is a map of tensors, which later versions of the format know."""
    (tmp_path / "entry.ckpt").write_bytes(MINDSPORE.read_bytes() + field(1, value))
    assert "entry.ckpt is truncated or damaged, or no MindSpore checkpoint" in refused(tmp_path / "entry.ckpt")


def test_mindspore_checkpoint_beyond_protobufs_limit_is_refused_unread(refused, tmp_path):
    path = tmp_path / "large.ckpt"
    path.write_bytes(b"\n")
    os.truncate(path, 2**31)  # sparse
    assert "larger than the 2 GiB" in refused(path)


# PyTorch


def timm_network(variant: str, num_classes: int = 1000) -> nn.Module:
    """With BatchNorm's statistics and parameters away from their initial values, so that no mix-up can hide."""
    torch.manual_seed(0)
    network = timm.create_model(variant, num_classes=num_classes)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.bias.data, module.running_mean, module.running_var):
                tensor.uniform_(0.5, 1.5)
    return network.eval()


def wrapped(state_dict: dict[str, torch.Tensor]) -> dict[str, object]:
    """As a trainer saves it: DataParallel's prefix, no counters as before PyTorch 0.4.1, the epoch beside it."""
    tensors = {f"module.{name}": tensor for name, tensor in state_dict.items() if "num_batches" not in name}
    return {"epoch": 450, "state_dict": tensors}


def save(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


@pytest.mark.parametrize("variant", TINYNET_VARIANTS)
def test_pytorch_checkpoint_gives_timms_logits_to_the_bit(variant, tmp_path, capsys):
    theirs = timm_network(variant)
    convert.main([str(save(tmp_path / "huawei.pth", wrapped(theirs.state_dict()))), str(tmp_path / "output")])
    printed = capsys.readouterr().out
    assert f"recognised {variant} with 1,000 classes, 'tench' to 'toilet tissue'" in printed
    assert "ignored 1 of them, the training's state, such as 'epoch'" in printed

    ours = TinyNetForImageClassification.from_pretrained(tmp_path / "output")
    processor = TinyNetImageProcessor.from_pretrained(tmp_path / "output")
    size = theirs.pretrained_cfg["input_size"][1]
    assert ours.config.image_size == processor.crop_size["height"] == size
    assert processor.size["shortest_edge"] == int(size / theirs.pretrained_cfg["crop_pct"])
    # A copy: tensors mapped from a file start anywhere, and for those oneDNN's single thread rounds differently.
    ours = copy.deepcopy(ours)
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert (ours(images).logits - theirs(images)).abs().max() == 0.0


def test_older_pytorch_format_gives_the_same_file(tmp_path):
    """The pickle stream of PyTorch before 1.6, a bare state dict with counters, and strided weights."""
    state_dict = timm_network("tinynet_e", 3).state_dict()
    convert.main([str(save(tmp_path / "new.pth", state_dict)), str(tmp_path / "new")])
    channels_last = {
        name: tensor.to(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor
        for name, tensor in state_dict.items()
    }
    torch.save(channels_last, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    convert.main([str(tmp_path / "old.pth"), str(tmp_path / "old")])
    assert weights_of(tmp_path / "old") == weights_of(tmp_path / "new")


def test_counters_of_batches_are_kept(tmp_path):
    state_dict = timm_network("tinynet_e", 3).state_dict()
    state_dict["bn1.num_batches_tracked"] = torch.tensor(7)
    convert.main([str(save(tmp_path / "counted.pth", state_dict)), str(tmp_path / "output")])
    saved = safetensors.torch.load_file(tmp_path / "output" / "model.safetensors")
    assert saved["bn1.num_batches_tracked"] == 7


@pytest.mark.filterwarnings("ignore:Validating sparse tensor")
@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda tensors: tensors.pop("bn1.running_mean"), "'bn1.running_mean' is missing"),
        (lambda tensors: tensors.update(fc=torch.zeros(2)), "for tinynet_e, the nearest, 'fc' is unknown"),
        (lambda tensors: tensors.update(epoch=3), "'epoch' is not a tensor but int"),
        (
            lambda tensors: tensors.update({"conv_stem.weight": tensors["conv_stem.weight"].half()}),
            "'conv_stem.weight' is torch.float16, and must be torch.float32",
        ),
        (
            lambda tensors: tensors.update({"classifier.weight": torch.zeros(1).expand(10**12, 1280)}),
            "'classifier.weight' holds fewer numbers than its shape [1000000000000, 1280] says",
        ),
        (
            lambda tensors: tensors.update({"bn1.bias": torch.zeros(32).to_sparse()}),
            "'bn1.bias' holds fewer numbers than its shape [32] says",
        ),
        (
            lambda tensors: tensors.update({"bn1.bias": torch.empty(32, device="meta")}),
            "'bn1.bias' holds fewer numbers than its shape [32] says",
        ),
    ],
)
def test_changed_pytorch_checkpoint_is_refused_by_name(refused, tmp_path, change, sentence):
    tensors = timm_network("tinynet_e", 3).state_dict()
    change(tensors)
    assert sentence in refused(save(tmp_path / "changed.pth", tensors))


def test_checkpoint_with_a_second_set_of_weights_is_refused(refused, tmp_path):
    tensors = timm_network("tinynet_e", 3).state_dict()
    path = save(tmp_path / "two.pth", {"state_dict": tensors, "state_dict_ema": tensors.copy()})
    assert "holds tensors in 'state_dict_ema' beside 'state_dict'" in refused(path)


def test_other_network_is_refused(refused, tmp_path):
    sentence = refused(save(tmp_path / "other.pth", timm.create_model("resnet10t").state_dict()))
    assert "no TinyNet has these tensors" in sentence and "more differ" in sentence


@pytest.mark.parametrize("as_zip", [True, False])
def test_code_in_a_pickle_is_refused_and_not_run(refused, tmp_path, as_zip):
    class Bomb:
        def __reduce__(self):
            return Path.touch, (tmp_path / "exploded",)

    bomb = {"state_dict": Bomb()}
    torch.save(bomb, tmp_path / "bomb.pth", _use_new_zipfile_serialization=as_zip)
    assert "which are not read because they can run code" in refused(tmp_path / "bomb.pth")
    assert not (tmp_path / "exploded").exists()
    pickle.loads(pickle.dumps(bomb))  # it does explode when read carelessly
    assert (tmp_path / "exploded").exists()


def test_truncated_pytorch_checkpoint_is_refused(refused, tmp_path):
    path = save(tmp_path / "truncated.pth", timm_network("tinynet_e", 3).state_dict())
    path.write_bytes(path.read_bytes()[:-1000])
    assert "truncated.pth is damaged" in refused(path)


# Options and mistakes


def test_class_names_and_image_size_are_saved(tmp_path, capsys):
    names = [f"digit {index}" for index in range(10)]
    (tmp_path / "names.txt").write_text("\n".join(names) + "\n")
    arguments = ["--class_names", str(tmp_path / "names.txt"), "--image_size", "64"]
    output = tmp_path / "output"
    output.mkdir()  # an empty folder will do
    convert.main([str(MINDSPORE), str(output), *arguments])
    printed = capsys.readouterr().out
    assert "10 classes, 'digit 0' to 'digit 9'" in printed
    assert "preprocessing difference: image_size 64, and the published is 106" in printed
    config = json.loads((output / "config.json").read_text())
    assert list(config["id2label"].values()) == list(config["label2id"]) == names
    processor = json.loads((output / "preprocessor_config.json").read_text())
    assert (processor["size"], processor["crop_size"]) == ({"shortest_edge": 73}, {"height": 64, "width": 64})


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        ("one\ntwo\n", "names 2 classes, and the checkpoint has 10"),
        ("one\n\ntwo\n", "names.txt must be the name of a class, and is empty"),
        ("one\ntwo\none\n", "line 3 of"),
        (b"\xff\xfe", "byte 0xff in line 1 is not UTF-8"),
    ],
)
def test_class_names_that_do_not_fit_are_refused(refused, tmp_path, lines, sentence):
    (tmp_path / "names.txt").write_bytes(lines if isinstance(lines, bytes) else lines.encode())
    assert sentence in refused(MINDSPORE, "--class_names", str(tmp_path / "names.txt"))


@pytest.mark.parametrize("size", ["0", "16", "-64"])
def test_image_size_that_the_network_cannot_take_is_refused(refused, size):
    assert f"image_size must be at least 32 pixels, the network's stride, got {size}" in refused(
        MINDSPORE, "--image_size", size
    )


def test_missing_and_foreign_files_are_refused(refused, tmp_path):
    (tmp_path / "text.ckpt").write_text("not a checkpoint")
    (tmp_path / "empty.pth").touch()
    (tmp_path / "line.ckpt").write_text("\nnot a checkpoint either")
    assert "missing.pth does not exist" in refused(tmp_path / "missing.pth")
    assert "is not a file" in refused(tmp_path)
    assert "text.ckpt is neither a PyTorch nor a MindSpore checkpoint" in refused(tmp_path / "text.ckpt")
    assert "empty.pth is neither a PyTorch nor a MindSpore checkpoint" in refused(tmp_path / "empty.pth")
    assert "line.ckpt is truncated or damaged, or no MindSpore checkpoint" in refused(tmp_path / "line.ckpt")
    assert "holds no state dict" in refused(save(tmp_path / "list.pth", [torch.zeros(2)]))


def test_output_that_exists_is_left_alone(refused, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mine").touch()
    assert "folder exists already: name an empty folder or a new one" in refused(MINDSPORE, output=tmp_path / "folder")
    assert "mine exists already" in refused(MINDSPORE, output=tmp_path / "folder" / "mine")
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["mine"]
