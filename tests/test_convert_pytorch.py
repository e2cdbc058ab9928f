"""convert.py on PyTorch's and safetensors' files, made with timm's networks: sound, damaged, hostile, and wrapped."""

import copy
import functools
import pickle
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
from torch.optim.swa_utils import AveragedModel

import convert
from conversion.checkpoint import Checkpoint, ConversionError
from conversion.network import recognize
from modeling_tinynet import (
    TINYNET_VARIANTS,
    TinyNetConfig,
    TinyNetForImageClassification,
    TinyNetImageProcessor,
)
from tests.conversions import refused_conversion, save, timm_network, weights_of


@pytest.fixture
def refused(tmp_path, capsys) -> Callable[..., str]:
    return functools.partial(refused_conversion, output=tmp_path / "output", capsys=capsys)


@pytest.fixture(scope="module")
def state_dict() -> dict[str, torch.Tensor]:
    return timm_network("tinynet_e", 3).state_dict()


def wrapped(state_dict: dict[str, torch.Tensor]) -> dict[str, object]:
    """As a trainer saves it: DataParallel's prefix, no counters as before PyTorch 0.4.1, the epoch beside it."""
    tensors = {f"module.{name}": tensor for name, tensor in state_dict.items() if "num_batches" not in name}
    return {"epoch": 450, "state_dict": tensors}


@pytest.mark.parametrize("variant", TINYNET_VARIANTS)
def test_pytorch_checkpoint_gives_timms_logits_to_the_bit(variant, tmp_path, capsys):
    theirs = timm_network(variant)
    convert.main([str(save(tmp_path / "huawei.pth", wrapped(theirs.state_dict()))), str(tmp_path / "output")])
    printed = capsys.readouterr().out
    assert f"recognized {variant} with 1,000 classes, 'tench' to 'toilet tissue'" in printed
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
            lambda tensors: tensors.update({"conv_stem.weight": tensors["conv_stem.weight"].to(torch.int8)}),
            "'conv_stem.weight' is torch.int8, and must be float32, float16, bfloat16 or float64",
        ),
        (
            lambda tensors: tensors["bn1.running_var"].sub_(2),
            "and cannot be negative: it is damaged",
        ),
        (
            lambda tensors: tensors["bn1.num_batches_tracked"].sub_(2),
            "'bn1.num_batches_tracked' holds -2, and cannot be negative: it is damaged",
        ),
        (
            lambda tensors: tensors.update({"bn1.bias": tensors["bn1.bias"].double() * 1e300}),
            "'bn1.bias' holds infinite numbers or NaN",
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
    assert "truncated.pth is damaged: its parts and their checksums do not fit" in refused(path)


# Damage

SMALL = {"state_dict": {"conv_stem.weight": torch.arange(6.0), "bn1.bias": torch.arange(5.0)}, "epoch": 3}


def flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def assert_same_or_refused(sound: Checkpoint, path: Path) -> bool:
    """Whether the file was refused. Otherwise it has to give the same tensors, bit by bit."""
    try:
        found = convert.read_checkpoint(path)
    except ConversionError as error:
        assert "\n" not in str(error)
        return True
    assert found.checksum
    assert found.tensors.keys() == sound.tensors.keys()
    for name, tensor in sound.tensors.items():
        assert found.tensors[name].dtype == tensor.dtype
        assert found.tensors[name].numpy().tobytes() == tensor.numpy().tobytes(), name
    return False


def test_changed_bit_anywhere_is_refused_or_without_effect(tmp_path):
    """Numbers, names, pickle, and the archive's own headers, of which many do not matter."""
    path = save(tmp_path / "small.pth", SMALL)
    data, sound = path.read_bytes(), convert.read_checkpoint(path)
    bits = range(0, 8 * len(data), 61)  # a prime: each bit of a byte in turn
    refusals = 0
    for bit in bits:
        path.write_bytes(flipped(data, bit))
        refusals += assert_same_or_refused(sound, path)
    print(f"{refusals} of {len(bits)} refused")
    assert len(bits) / 4 < refusals < len(bits)


def test_attribute_of_a_folder_on_a_part_is_without_effect(tmp_path):
    """To torch.load it is a folder then, and the tensor is memory that nobody has written to."""
    path = save(tmp_path / "small.pth", SMALL)
    data, sound = path.read_bytes(), convert.read_checkpoint(path)
    position = data.index(b"PK\1\2")
    for _ in range(len(zipfile.ZipFile(path).infolist())):
        path.write_bytes(flipped(data, 8 * (position + 38) + 4))  # the external attributes, MS-DOS's for a folder
        assert not assert_same_or_refused(sound, path)
        position = data.find(b"PK\1\2", position + 1)
    assert position == -1


def test_changed_bits_among_the_numbers_are_refused(refused, tmp_path, state_dict):
    path = save(tmp_path / "huawei.pth", state_dict)
    data = path.read_bytes()
    unique = [tensor for tensor in state_dict.values() if tensor.numel() > 1 and tensor.all()]  # no zeros, as padding
    for tensor, bit in zip(unique[::7], range(25), strict=False):
        path.write_bytes(flipped(data, 8 * data.index(tensor.numpy().tobytes()) + bit))
        assert "huawei.pth is damaged: its parts and their checksums do not fit" in refused(path)


@pytest.mark.parametrize("kind", ["legacy.pth", "without.pth", "weights.safetensors"])
def test_format_without_checksum_is_said_to_have_none(tmp_path, capsys, state_dict, kind):
    path = tmp_path / kind
    if kind == "legacy.pth":
        save(path, state_dict, _use_new_zipfile_serialization=False)
    elif kind == "without.pth":
        torch.serialization.set_crc32_options(False)
        try:
            save(path, state_dict)
        finally:
            torch.serialization.set_crc32_options(True)
    else:
        safetensors.torch.save_file(state_dict, path)
    convert.main([str(path), str(tmp_path / "output")])
    printed = capsys.readouterr().out
    assert "checksum: this file has none, so that a changed bit among its numbers cannot be noticed" in printed
    saved = safetensors.torch.load_file(tmp_path / "output" / "model.safetensors")
    assert all(torch.equal(saved[name], tensor) for name, tensor in state_dict.items())


# Attacks


def test_small_archive_of_something_large_is_refused_unread(refused, tmp_path):
    bomb = tmp_path / "bomb.pth"
    save(bomb, SMALL)
    with zipfile.ZipFile(bomb, "a", zipfile.ZIP_DEFLATED) as archive, archive.open("small/data/9", "w") as part:
        for _ in range(64):
            part.write(bytes(1 << 20))
    assert bomb.stat().st_size < 100_000
    assert "bomb.pth is compressed, which torch.save does not do" in refused(bomb)

    overlapping = save(tmp_path / "overlapping.pth", {"state_dict": {"conv_stem.weight": torch.zeros(1 << 18)}})
    with zipfile.ZipFile(overlapping, "a") as archive:
        archive.filelist += 99 * [part for part in archive.filelist if part.file_size == 1 << 20]
        archive.writestr("more", b"")
    assert "overlapping.pth is damaged: its parts overlap" in refused(overlapping)


def test_other_archives_are_named(refused, tmp_path):
    with zipfile.ZipFile(tmp_path / "packed.pth", "w") as archive:
        archive.writestr("weights.pth", b"")
    assert "is a zip archive that torch.save did not write: unpack it" in refused(tmp_path / "packed.pth")
    with warnings.catch_warnings(action="ignore"):
        torch.jit.script(torch.nn.Linear(1, 1)).save(tmp_path / "script.pt")
    assert "is a TorchScript archive: save the network's state_dict() instead" in refused(tmp_path / "script.pt")
    whole = save(tmp_path / "whole.pth", torch.nn.Linear(1, 1))
    assert "such as 'torch.nn.modules.linear.Linear', which are not read because they can run code" in refused(whole)


def test_storage_of_many_tensors_is_held_once(tmp_path):
    """1,000 names of one megabyte would otherwise be a gigabyte, before any name is found to be unknown."""
    tensor = torch.zeros(1 << 18)
    path = save(tmp_path / "shared.pth", {"conv_stem.weight": tensor, **{f"x{index}": tensor for index in range(999)}})
    tensors = convert.read_checkpoint(path).tensors.values()
    assert len(tensors) == 1000
    assert len({tensor.untyped_storage().data_ptr() for tensor in tensors}) == 1


def test_tensors_of_one_storage_give_the_same_file(tmp_path, state_dict):
    floats = {name: tensor for name, tensor in state_dict.items() if tensor.is_floating_point()}
    flat = torch.cat([tensor.flatten() for tensor in floats.values()])
    views = flat.split([tensor.numel() for tensor in floats.values()])
    shared = state_dict | {name: view.view_as(state_dict[name]) for name, view in zip(floats, views, strict=True)}
    convert.main([str(save(tmp_path / "shared.pth", shared)), str(tmp_path / "shared")])
    convert.main([str(save(tmp_path / "own.pth", state_dict)), str(tmp_path / "own")])
    assert weights_of(tmp_path / "shared") == weights_of(tmp_path / "own")


# What wraps the weights


def in_memory(content: object, path: Path, ema: bool = False) -> Checkpoint:
    return convert.read_checkpoint(save(path, content), ema)


@pytest.mark.parametrize(
    "prefix",
    [
        "",
        "module.",
        "model.",
        "_orig_mod.",
        "module._orig_mod.",
        "_orig_mod.module.",
        "model._orig_mod.module.",
        "net.",
    ],
)
@pytest.mark.parametrize("own", [False, True])
def test_wrappers_prefixes_are_left_out(tmp_path, state_dict, prefix, own):
    """torch.compile, DataParallel, Lightning and others; and `tinynet.`, which this package's state dict has."""
    if own:
        network = TinyNetForImageClassification(TinyNetConfig.from_variant("tinynet_e", num_labels=3))
        names = [*network.state_dict()]
        assert names[0] == "tinynet.conv_stem.weight" and names[-1] == "classifier.bias"
    else:
        names = [*state_dict]
    wrapped = {prefix + name: tensor for name, tensor in zip(names, state_dict.values(), strict=True)}
    found = in_memory(wrapped, tmp_path / "wrapped.pth")
    assert [*found.tensors] == [*state_dict]
    assert recognize(found) == ("tinynet_e", 3)


def test_names_that_a_compiled_part_has(tmp_path, state_dict):
    """`network.blocks = torch.compile(network.blocks)`."""
    compiled = {name.replace("blocks.", "blocks._orig_mod."): tensor for name, tensor in state_dict.items()}
    assert [*in_memory(compiled, tmp_path / "part.pth").tensors] == [*state_dict]
    both = compiled | {"blocks.0.0.bn1.bias": state_dict["bn1.bias"]}
    with pytest.raises(ConversionError, match=r"'blocks\.0\.0\.bn1\.bias' is there twice"):
        in_memory(both, tmp_path / "both.pth")


@pytest.mark.parametrize("key", ["state_dict", "model", "model_state_dict", "net", "state_dict_ema"])
def test_weights_are_found_under_any_key(tmp_path, state_dict, key):
    """Beside what training scripts store: numbers, an optimizer's state, a tensor of the best accuracy."""
    optimizer = {"state": {0: {"momentum_buffer": torch.zeros(3)}}, "param_groups": [{"lr": 0.1}]}
    training = {"epoch": 3, "optimizer": optimizer, "best_acc1": torch.tensor(71.2), "rng": {"cpu": torch.zeros(3)}}
    found = in_memory({**training, key: state_dict}, tmp_path / "training.pth")
    assert [*found.tensors] == [*state_dict]
    assert found.ignored == [*training]


def test_average_is_taken_with_ema_and_named_without(tmp_path, state_dict):
    """torchvision's scripts store AveragedModel's state dict, with its counter, as `model_ema`."""
    network = timm_network("tinynet_e", 3)
    network.load_state_dict(state_dict)
    average = AveragedModel(network).state_dict()
    average["module.bn1.bias"] = average["module.bn1.bias"] + 1
    both = {"model": state_dict, "model_ema": average}
    plain, averaged = (in_memory(both, tmp_path / "both.pth", ema) for ema in (False, True))
    assert torch.equal(plain.tensors["bn1.bias"] + 1, averaged.tensors["bn1.bias"])
    assert plain.notes == ["took the weights under 'model'; the file holds 'model_ema' too, which --ema takes"]
    assert averaged.notes == ["took the weights under 'model_ema'; the file holds 'model' too"]
    assert averaged.ignored == ["model", "n_averaged"]


def test_weights_that_are_not_there_or_not_one_set_are_refused(tmp_path, state_dict):
    def refused(content: object, ema: bool, sentence: str) -> None:
        with pytest.raises(ConversionError) as error:
            in_memory(content, tmp_path / "file.pth", ema)
        assert sentence in str(error.value)

    refused({"model": state_dict}, True, "holds no weights named as an EMA, only under 'model': omit --ema")
    refused(state_dict, True, "holds one set of weights and not that they are an average: omit --ema")
    refused(
        {"student": state_dict, "teacher": state_dict},
        False,
        "holds weights under 'student' and 'teacher': save one of them alone",
    )
    refused({"a": {"b": {"c": 1}}}, False, "holds no state dict; its first entries are 'a'")
    refused({3: torch.zeros(1)}, False, "the name of a tensor must be text, and is int")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_float32(tmp_path, capsys, state_dict, dtype):
    """Counters too were cast, and half precision has no integers above 2,048: they are left out."""
    cast = {name: tensor.to(dtype) for name, tensor in state_dict.items()}
    convert.main([str(save(tmp_path / "cast.pth", cast)), str(tmp_path / "output")])
    printed = capsys.readouterr().out
    assert f"converted {str(dtype).removeprefix('torch.')} to float32" in printed
    assert "left out 31 num_batches_tracked, which the file holds rounded" in printed
    saved = safetensors.torch.load_file(tmp_path / "output" / "model.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {torch.float32, torch.int64}
    assert all(torch.equal(saved[name], t.float()) for name, t in cast.items() if "num_batches" not in name)


def test_file_of_a_folder_that_needs_no_conversion_is_said_to(refused, tmp_path):
    """Its config.json has class names and preprocessing, which a conversion would lose."""
    TinyNetForImageClassification(TinyNetConfig.from_variant("tinynet_e", num_labels=3)).save_pretrained(
        tmp_path / "f"
    )
    assert "f needs no conversion: from_pretrained reads it as it is" in refused(tmp_path / "f")
    assert "from_pretrained reads the folder" in refused(tmp_path / "f" / "model.safetensors")
    (tmp_path / "f" / "config.json").write_text('{"architecture": "tinynet_e"}')  # timm's
    assert "from_pretrained reads the folder" in refused(tmp_path / "f" / "model.safetensors")
    (tmp_path / "f" / "config.json").write_text('{"model_type": "resnet"}')
    convert.main([str(tmp_path / "f" / "model.safetensors"), str(tmp_path / "converted")])


@pytest.mark.parametrize("fields", [{"width_multiplier": 0.6}, {"depth_multiplier": 2.0}, {"num_labels": 0}])
def test_network_of_another_size_is_refused_in_one_sentence(refused, tmp_path, fields):
    if fields == {"num_labels": 0}:
        network = timm.create_model("tinynet_e", num_classes=0)
    else:
        network = TinyNetForImageClassification(TinyNetConfig(num_labels=3, **fields))
    assert "no TinyNet has these tensors: for tinynet_" in refused(save(tmp_path / "other.pth", network.state_dict()))


@pytest.mark.parametrize("num_classes", [1, 2])
def test_few_classes(tmp_path, capsys, num_classes):
    network = timm_network("tinynet_e", num_classes)
    convert.main([str(save(tmp_path / "few.pth", network.state_dict())), str(tmp_path / "output")])
    assert f"recognized tinynet_e with {num_classes} class" in capsys.readouterr().out
    ours = copy.deepcopy(TinyNetForImageClassification.from_pretrained(tmp_path / "output"))
    image = torch.randn(1, 3, 106, 106, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(ours(image).logits, network(image))
