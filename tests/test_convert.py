"""convert.py on a checkpoint that MindSpore's own TinyNet wrote, and its options and messages for any file.

The MindSpore files here are taken apart and put together on the level of protobuf's bytes, not with convert.py's own
description of the format.
"""

import functools
import hashlib
import io
import json
import os
import resource
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import timm
import torch
from PIL import Image
from transformers import pipeline

import convert
from conversion.checkpoint import ConversionError
from modeling_tinynet import TinyNetForImageClassification
from tests import launcher
from tests.conversions import refused_conversion, save, weights_of
from training.command import run_command

ROOT = Path(__file__).parents[1]
FIXTURES = ROOT / "tests" / "fixtures" / "mindspore"
MINDSPORE = FIXTURES / "tinynet_e_10classes.ckpt"
FILES = {"config.json", "model.safetensors", "preprocessor_config.json"}

Entry = tuple[str, list[int], str, bytes]  # tag, dims, type, content


@pytest.fixture(scope="module")
def converted(tmp_path_factory) -> tuple[Path, str]:
    """The folder that the documented command makes of MindSpore's checkpoint, and what it printed."""
    folder = tmp_path_factory.mktemp("converted") / "new" / "folder"
    process = launcher.run(["convert.py", MINDSPORE, folder])
    assert (process.returncode, process.stderr) == (0, "")
    return folder, process.stdout


@pytest.fixture
def refused(tmp_path, capsys) -> Callable[..., str]:
    return functools.partial(refused_conversion, output=tmp_path / "output", capsys=capsys)


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
        "checksum: this file has none, so that a changed bit among its numbers cannot be noticed",
        "recognized tinynet_e with 10 classes, 'LABEL_0' to 'LABEL_9'",
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
        (
            changed("bn1.beta", dtype="Int8"),
            "'bn1.beta' is 'Int8', and must be one of Float32, Float16, BFloat16, Float64",
        ),
        (
            changed("bn1.beta", dtype="Float16"),
            "'bn1.beta' declares the shape [32], which its 128 bytes do not fill",
        ),
        (
            changed("bn1.moving_variance", content=np.full(32, -0.5, np.float32).tobytes()),
            "'bn1.moving_variance' holds -0.5, and cannot be negative: it is damaged",
        ),
        (
            changed("bn1.moving_variance", content=np.full(32, np.inf, np.float32).tobytes()),
            "'bn1.moving_variance' holds infinite numbers or NaN",
        ),
        (
            changed("bn1.gamma", content=np.full(32, 1.7e38, np.float32).tobytes()),
            "the network answers infinite numbers or NaN: its tensors are damaged or diverged",
        ),
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


def with_checksum(data: bytes) -> bytes:
    """As `mindspore.save_checkpoint(..., crc_check=True)` ends the file."""
    return data + b"crc_num" + zlib.crc32(data).to_bytes(10, byteorder="big")


def test_checksum_of_a_mindspore_checkpoint_is_compared(converted, tmp_path, capsys, refused):
    data = with_checksum(MINDSPORE.read_bytes())
    (tmp_path / "sound.ckpt").write_bytes(data)
    convert.main([str(tmp_path / "sound.ckpt"), str(tmp_path / "sound")])
    assert "checked the file's CRC-32" in capsys.readouterr().out
    assert weights_of(tmp_path / "sound") == weights_of(converted[0])
    for position in range(1, len(data) - 17, len(data) // 25):
        (tmp_path / "changed.ckpt").write_bytes(flipped(data, 8 * position + position % 8))
        assert "is damaged: its checksum is of other bytes" in refused(tmp_path / "changed.ckpt")


def flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def test_mindspore_writes_safetensors_too(converted, tmp_path, capsys, refused):
    """With its own names, and a checksum in the metadata that runs over each name and its numbers."""
    tensors, crc = {"global_step": np.zeros(1, np.int32)}, 0
    for tag, dims, _, content in read_entries(MINDSPORE.read_bytes()):
        tensors[tag] = np.frombuffer(content, np.float32).reshape(dims)
    for tag, tensor in sorted(tensors.items()):
        crc = zlib.crc32(bytes(tensor), zlib.crc32(tag.encode(), crc))
    path = tmp_path / "mindspore.safetensors"
    safetensors.numpy.save_file(tensors, path, {"format": "ms", "crc_num": str(crc)})
    convert.main([str(path), str(tmp_path / "converted")])
    assert weights_of(tmp_path / "converted") == weights_of(converted[0])
    assert "checked the file's CRC-32" in capsys.readouterr().out
    path.write_bytes(flipped(path.read_bytes(), 8 * 1_000_000))
    assert "is damaged: its checksum is of other bytes" in refused(path)
    safetensors.numpy.save_file(tensors, path, {"format": "ms"})
    convert.main([str(path), str(tmp_path / "without")])
    assert weights_of(tmp_path / "without") == weights_of(converted[0])


def test_half_precision_of_mindspore_becomes_float32(tmp_path, capsys):
    """The float16 numbers are NumPy's."""
    entries = [
        (tag, dims, "Float16", np.frombuffer(content, np.float32).astype(np.float16).tobytes())
        for tag, dims, _, content in read_entries(MINDSPORE.read_bytes())
    ]
    convert.main([str(write_entries(tmp_path / "half.ckpt", entries)), str(tmp_path / "output")])
    assert "converted float16 to float32" in capsys.readouterr().out
    saved = safetensors.torch.load_file(tmp_path / "output" / "model.safetensors")
    halves = {tag: np.frombuffer(content, np.float16) for tag, *_, content in entries}
    assert np.array_equal(saved["bn1.weight"].numpy(), halves["bn1.gamma"].astype(np.float32))
    assert np.array_equal(saved["classifier.weight"].numpy().ravel(), halves["classifier.weight"].astype(np.float32))


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
        ("one\ntwo\n", "--class_names gives 2 names, and the checkpoint has 10 classes"),
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


def test_image_size_that_no_image_has_is_refused(refused, tmp_path):
    """8,276 px of a shorter side of 9,458: the largest square that Pillow opens without a warning is 9,459 px."""
    assert 9459**2 <= Image.MAX_IMAGE_PIXELS < 9460**2
    for size, side in ("1000000000", "1,142,857,142"), ("8278", "9,460"):
        sentence = refused(MINDSPORE, "--image_size", size)
        assert f"image_size {int(size):,} with crop_pct 0.875 asks for images of {side} px a side, and" in sentence
        assert "Pillow takes those above 9,459 for an attack" in sentence
    convert.main([str(MINDSPORE), str(tmp_path / "largest"), "--image_size", "8276"])


def test_missing_and_foreign_files_are_refused(refused, tmp_path):
    (tmp_path / "text.ckpt").write_text("not a checkpoint")
    (tmp_path / "empty.pth").touch()
    (tmp_path / "line.ckpt").write_text("\nnot a checkpoint either")
    assert "missing.pth does not exist" in refused(tmp_path / "missing.pth")
    assert "is not a file" in refused(tmp_path)
    assert "cannot be read: File name too long" in refused(tmp_path / ("x" * 300))
    (tmp_path / "pointer.pth").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 3166866\n"
    )
    assert "is Git LFS's pointer to a file: git lfs pull downloads that" in refused(tmp_path / "pointer.pth")
    assert "text.ckpt is neither a PyTorch, nor a safetensors, nor a MindSpore checkpoint" in refused(
        tmp_path / "text.ckpt"
    )
    assert "empty.pth is neither a PyTorch, nor a safetensors, nor a MindSpore checkpoint" in refused(
        tmp_path / "empty.pth"
    )
    assert "line.ckpt is truncated or damaged, or no MindSpore checkpoint" in refused(tmp_path / "line.ckpt")
    assert "holds no state dict but list" in refused(save(tmp_path / "list.pth", [torch.zeros(2)]))
    assert "its first entries are 'epoch'" in refused(save(tmp_path / "epoch.pth", {"epoch": 3}))
    assert "omit --ema" in refused(MINDSPORE, "--ema")


def test_output_that_exists_is_left_alone(refused, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mine").touch()
    assert "folder exists already: name an empty folder or a new one" in refused(MINDSPORE, output=tmp_path / "folder")
    assert "mine exists already" in refused(MINDSPORE, output=tmp_path / "folder" / "mine")
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["mine"]


def test_output_that_cannot_be_written_is_named_and_nothing_left(refused, tmp_path):
    (tmp_path / "file").touch()
    assert "file/below cannot be written: Not a directory" in refused(MINDSPORE, output=tmp_path / "file" / "below")
    assert "cannot be written: File name too long" in refused(MINDSPORE, output=tmp_path / ("x" * 300))
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, limit[1]))  # as a full disk: the weights have 3 MB
    try:
        sentence = refused(MINDSPORE, output=tmp_path / "new" / "folder")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert "new/folder cannot be written: " in sentence and "File too large" in sentence
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_closed_standard_output_does_not_stop_a_conversion(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)  # as Python has it after `>&-`
    convert.main([str(MINDSPORE), str(tmp_path / "output")])
    assert {path.name for path in (tmp_path / "output").iterdir()} == FILES


def test_terminal_without_a_letter_does_not_stop_a_conversion(tmp_path, monkeypatch):
    (tmp_path / "names.txt").write_text("café\n" + "\n".join("123456789"), encoding="utf-8")
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", terminal)
    arguments = ["--class_names", str(tmp_path / "names.txt")]
    assert run_command(convert.main, [str(MINDSPORE), str(tmp_path / "with space, é"), *arguments]) == 0
    terminal.flush()
    printed = terminal.buffer.getvalue().decode()
    assert r"10 classes, 'caf\xe9' to '9'" in printed and r"with space, \xe9: config.json" in printed
    assert {path.name for path in (tmp_path / "with space, é").iterdir()} == FILES
    with pytest.raises(ConversionError, match="is not valid UTF-8"):  # safetensors cannot write there
        convert.convert(MINDSPORE, tmp_path / os.fsdecode(b"\xe9"))
