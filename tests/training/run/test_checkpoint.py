import errno
import itertools
import json
import os
import random
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from training.optim.optimizer import RMSpropTF
from training.run.checkpoint import (
    CheckpointError,
    latest_checkpoint,
    load_checkpoint,
    load_optimizer_tensors,
    optimizer_tensors,
    save_checkpoint,
)

FILES = ["ema.safetensors", "manifest.json", "model.safetensors", "optimizer.safetensors", "state.json"]


def contents(step):
    """What a test saves at `step`: values tell the steps apart; dtypes and shapes of a real run."""
    model = {
        "weight": torch.full((4, 3), step + 0.5),
        "half": torch.full((5,), step, dtype=torch.bfloat16),
        "num_batches_tracked": torch.tensor(step),
    }
    tensors = {"model": model, "ema": {"weight": torch.full((4, 3), -step / 3)}, "optimizer": {}}
    return tensors, {"step": step, "epoch": step / 7, "best": None, "classes": ["cat", "dog"]}


def save(folder, step, **options):
    tensors, state = contents(step)
    return save_checkpoint(folder, step, tensors, state, **options)


def assert_holds(path, step):
    """The checkpoint at `path` is, to the bit, what `save` wrote for `step`."""
    tensors, state = load_checkpoint(path)
    expected_tensors, expected_state = contents(step)
    assert state == expected_state
    assert tensors.keys() == expected_tensors.keys()
    for name, entry in expected_tensors.items():
        assert tensors[name].keys() == entry.keys()
        for key, tensor in entry.items():
            assert tensors[name][key].dtype == tensor.dtype
            assert torch.equal(tensors[name][key], tensor)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def flip_byte(path, position, rng):
    data = bytearray(path.read_bytes())
    data[position] ^= rng.randrange(1, 256)
    path.write_bytes(data)


# What a checkpoint holds


def test_a_checkpoint_is_safetensors_and_json_and_comes_back_to_the_bit(tmp_path):
    path = save(tmp_path / "runs" / "first", 1251)
    assert path.name == "step-001251"
    assert names(path) == FILES
    assert names(path.parent) == ["step-001251"]
    assert_holds(path, 1251)


def test_a_tensor_file_is_not_a_pickle(tmp_path):
    """A safetensors file is the length of a JSON header, the header, and the data, by its specification."""
    data = (save(tmp_path, 1) / "model.safetensors").read_bytes()
    header_size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + header_size])
    assert set(header) == {"weight", "half", "num_batches_tracked"}
    assert len(data) == 8 + header_size + 12 * 4 + 5 * 2 + 8


def test_a_run_that_has_not_saved_has_no_checkpoint(tmp_path):
    assert latest_checkpoint(tmp_path) is None
    assert latest_checkpoint(tmp_path / "missing") is None


def test_newest_is_by_step_and_not_by_name_or_time(tmp_path):
    for step in (1_000_000, 999_999, 20):
        save(tmp_path, step)
    assert latest_checkpoint(tmp_path).name == "step-1000000"


# Retention


def test_older_checkpoints_go_and_two_stay(tmp_path):
    for step in (1, 2, 3, 4):
        save(tmp_path, step)
    assert names(tmp_path) == ["step-000003", "step-000004"]
    save(tmp_path, 5, keep=3)
    assert names(tmp_path) == ["step-000003", "step-000004", "step-000005"]


def test_fewer_than_two_kept_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="keep must be at least 2, got 1"):
        save(tmp_path, 1, keep=1)


@pytest.mark.parametrize("name", ["", "model.0", "../model", "a b"])
def test_a_name_that_cannot_be_a_file_is_an_error(tmp_path, name):
    with pytest.raises(ValueError, match="must be named by letters, digits and _"):
        save_checkpoint(tmp_path, 1, {name: {}}, {})
    assert names(tmp_path) == []


def test_a_save_never_removes_itself_or_later_checkpoints(tmp_path):
    """A run continued from an older checkpoint saves below the newest step."""
    for step in (10, 100, 200):
        save(tmp_path, step, keep=3)
    save(tmp_path, 11)
    assert names(tmp_path) == ["step-000010", "step-000011", "step-000100", "step-000200"]


def test_saving_a_step_again_replaces_it(tmp_path):
    save(tmp_path, 1)
    tensors, state = contents(2)
    save_checkpoint(tmp_path, 1, tensors, state)
    assert names(tmp_path) == ["step-000001"]
    assert_holds(tmp_path / "step-000001", 2)


# Damage


@pytest.mark.fault("05 one byte flipped in a file of a checkpoint")
@pytest.mark.parametrize("name", FILES)
def test_a_flipped_byte_anywhere_is_rejected_and_the_previous_checkpoint_taken(tmp_path, name, thorough, tried):
    rng = random.Random(name)
    flips = 100 if thorough else 20
    tried(2 + flips)
    save(tmp_path, 1)
    size = (save(tmp_path, 2) / name).stat().st_size
    for position in [0, size - 1, *rng.choices(range(size), k=flips)]:
        path = save(tmp_path, 2)
        flip_byte(path / name, position, rng)
        assert latest_checkpoint(tmp_path).name == "step-000001"
        with pytest.raises(CheckpointError, match="is not a whole checkpoint"):
            load_checkpoint(next(tmp_path.glob(".rejected-step-000002-*")))
    assert_holds(tmp_path / "step-000001", 1)
    assert len(list(tmp_path.glob(".rejected-step-000002-*"))) == 2 + flips


@pytest.mark.fault("06 files of a checkpoint cut or missing")
@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["missing", "truncated", "a folder"])
def test_a_bad_file_is_named_in_the_rejected_folder(tmp_path, name, damage):
    save(tmp_path, 1)
    path = save(tmp_path, 2) / name
    size = path.stat().st_size
    path.unlink()
    if damage == "truncated":
        path.write_bytes(b"\0" * (size - 1))
    elif damage == "a folder":
        path.mkdir()
    assert latest_checkpoint(tmp_path).name == "step-000001"
    reason = {"missing": "missing", "truncated": "size-of", "a folder": "unreadable"}[damage]
    if name == "manifest.json" and damage == "truncated":
        reason = "content-of"
    assert names(tmp_path) == [f".rejected-step-000002-{reason}-{name}", "step-000001"]


@pytest.mark.fault("07 every checkpoint damaged")
def test_all_checkpoints_bad_is_an_error_now_and_later(tmp_path):
    """Later as well: the bad ones have been renamed by then, and a run must still not start at step 0 in silence."""
    for step in (1, 2):
        (save(tmp_path, step) / "state.json").write_text("{}")
    for _ in range(2):
        with pytest.raises(CheckpointError, match=r"every checkpoint in .* is damaged: remove \.rejected-step-000001"):
            latest_checkpoint(tmp_path)


@pytest.mark.parametrize("name", ["../outside.json", "/etc/hostname", "a/b.json", "model.pkl", "a\0.json", ""])
def test_a_manifest_names_only_files_of_its_folder(tmp_path, name):
    path = save(tmp_path, 1) / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest[name] = {"size": 0, "sha256": "0" * 64}
    path.write_text(json.dumps(manifest, indent=2))
    with pytest.raises(CheckpointError, match=r"content-of-manifest\.json"):
        load_checkpoint(path.parent)


@pytest.mark.parametrize("manifest", [[], {}, "state.json", {"state.json": []}, {"state.json": {"size": 2}}, None])
def test_a_manifest_of_another_form_is_an_error(tmp_path, manifest):
    path = save(tmp_path, 1) / "manifest.json"
    path.write_text(json.dumps(manifest, indent=2))
    with pytest.raises(CheckpointError, match=r"content-of-manifest\.json"):
        load_checkpoint(path.parent)


def test_a_manifest_that_means_the_same_but_is_other_bytes_is_an_error(tmp_path):
    path = save(tmp_path, 1) / "manifest.json"
    path.write_bytes(path.read_bytes().replace(b": ", b":\t", 1))
    with pytest.raises(CheckpointError, match=r"content-of-manifest\.json"):
        load_checkpoint(path.parent)


def test_a_file_that_the_manifest_does_not_list_is_not_read(tmp_path):
    path = save(tmp_path, 1)
    (path / "optimizer.pkl").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    (path / "extra.safetensors").write_bytes(b"not tensors")
    assert_holds(latest_checkpoint(tmp_path), 1)


# Kills and errors while saving


class Boundaries:
    """Stands in for os.fsync and os.replace, and acts before the n-th call; a save's steps lie between these calls."""

    def __init__(self, monkeypatch, act, at):
        self.calls, self.act, self.at = 0, act, at
        for name in ("fsync", "replace"):
            monkeypatch.setattr(os, name, self.watched(getattr(os, name)))

    def watched(self, function):
        def call(*args):
            self.calls += 1
            if self.calls == self.at:
                self.act()
            return function(*args)

        return call


def killed_at_boundary(monkeypatch, folder, step, boundary) -> bool:
    """Saves in a forked process that gets SIGKILL at a boundary; False if the save was over before it."""
    child = os.fork()
    if child == 0:
        Boundaries(monkeypatch, lambda: os.kill(os.getpid(), signal.SIGKILL), boundary)
        try:
            save(folder, step)
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


@pytest.mark.fault("04 and 26 kill at each write, rename and removal of a save")
def test_a_kill_at_any_boundary_leaves_a_whole_newest_checkpoint(tmp_path, monkeypatch, tried):
    newest = []
    for boundary in itertools.count(1):
        folder = tmp_path / str(boundary)
        for step in (1, 2):
            save(folder, step)
        if not killed_at_boundary(monkeypatch, folder, 3, boundary):
            break
        path = latest_checkpoint(folder)
        newest.append(int(path.name[-1]))
        assert_holds(path, newest[-1])
        assert not list(folder.glob(".rejected-*"))
        save(folder, 4)
        assert all(name.startswith("step-") for name in names(folder))
        assert len(names(folder)) == 2
    # Five files and their folder are forced to the disk, then comes the rename; the run's folder, then one is pruned.
    assert newest == [2] * 7 + [3] * 2
    tried(len(newest))


@pytest.mark.fault("04 and 26 kill at each write, rename and removal of a save")
def test_a_kill_while_replacing_a_step_leaves_a_whole_newest_checkpoint(tmp_path, monkeypatch, tried):
    for boundary in itertools.count(1):
        folder = tmp_path / str(boundary)
        for step in (1, 2):
            save(folder, step)
        if not killed_at_boundary(monkeypatch, folder, 2, boundary):
            break
        path = latest_checkpoint(folder)
        assert_holds(path, int(path.name[-1]))
    assert boundary > 7
    tried(boundary - 1)


@pytest.mark.fault("08 disk full")
def test_an_error_at_any_boundary_leaves_the_previous_checkpoint_and_nothing_else(tmp_path, tried):
    tried(7)

    def fail():
        raise OSError(28, "No space left on device")

    for step in (1, 2):
        save(tmp_path, step)
    for boundary in range(1, 8):
        with pytest.MonkeyPatch.context() as monkeypatch:
            Boundaries(monkeypatch, fail, boundary)
            with pytest.raises(OSError, match="No space left"):
                save(tmp_path, 3)
        assert names(tmp_path) == ["step-000001", "step-000002"]
        assert_holds(latest_checkpoint(tmp_path), 2)


@pytest.mark.fault("08 disk full")
@pytest.mark.skipif(os.geteuid() != 0 or sys.platform != "linux", reason="only root may mount a small disk")
def test_a_full_disk_leaves_the_previous_checkpoint(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"no disk can be mounted here: {mounted.stderr.strip()}")
    try:
        with pytest.raises(OSError) as error:
            for step in range(1, 100_000):
                save_checkpoint(disk / "checkpoints", step, *contents(step), keep=100_000)
        assert error.value.errno == errno.ENOSPC
        newest = latest_checkpoint(disk / "checkpoints")
        assert newest.name == f"step-{step - 1:06d}" and step > 2
        assert_holds(newest, step - 1)
        assert not [name for name in os.listdir(disk / "checkpoints") if name.startswith(".")]
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_file_that_the_system_cuts_short_is_an_error_that_leaves_nothing(tmp_path):
    """The system's own limit on file sizes stands in for a full disk: the write itself fails half-way."""
    save(tmp_path, 1)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limit[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            save(tmp_path, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert names(tmp_path) == ["step-000001"]
    assert_holds(latest_checkpoint(tmp_path), 1)


# Optimizers

OPTIMIZERS = {
    "rmsprop": lambda parameters, lr: RMSpropTF(parameters, lr=lr, momentum=0.9),
    "sgd": lambda parameters, lr: torch.optim.SGD(parameters, lr=lr, momentum=0.9),
    "adamw": lambda parameters, lr: torch.optim.AdamW(parameters, lr=lr),
}
STATES = {
    "rmsprop": {"step", "square_avg", "momentum_buffer"},
    "sgd": {"momentum_buffer"},
    "adamw": {"step", "exp_avg", "exp_avg_sq"},
}


def build(name, seed, lr=0.01):
    """A small convolutional network in channels-last memory, with weight decay groups as the trainer has."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.Flatten(), nn.Linear(128, 5)
    ).to(memory_format=torch.channels_last)
    groups = [
        {"params": [p for p in model.parameters() if p.dim() > 1], "weight_decay": 1e-2},
        {"params": [p for p in model.parameters() if p.dim() == 1], "weight_decay": 0.0},
    ]
    return model, OPTIMIZERS[name](groups, lr)


def train(model, optimizer, steps):
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        images = torch.randn(6, 3, 8, 8, generator=generator).to(memory_format=torch.channels_last)
        labels = torch.randint(5, (6,), generator=generator)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()


def flat_state(model, optimizer):
    return model.state_dict() | optimizer_tensors(optimizer, model)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training_goes_on_to_the_bit_after_a_checkpoint(tmp_path, name):
    model, optimizer = build(name, seed=0)
    train(model, optimizer, range(4))
    path = save_checkpoint(
        tmp_path, 4, {"model": model.state_dict(), "optimizer": optimizer_tensors(optimizer, model)}, {}
    )
    train(model, optimizer, range(4, 8))

    resumed_model, resumed_optimizer = build(name, seed=1)
    tensors, _ = load_checkpoint(path)
    resumed_model.load_state_dict(tensors["model"])
    load_optimizer_tensors(resumed_optimizer, resumed_model, tensors["optimizer"])
    train(resumed_model, resumed_optimizer, range(4, 8))

    expected, got = flat_state(model, optimizer), flat_state(resumed_model, resumed_optimizer)
    assert got.keys() == expected.keys()
    assert all(torch.equal(got[key], expected[key]) for key in expected)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizer_tensors_are_named_by_parameter_and_equal_torchs_own_state_dict(name):
    model, optimizer = build(name, seed=0)
    train(model, optimizer, range(2))
    tensors = optimizer_tensors(optimizer, model)
    trained = [parameter for parameter, _ in model.named_parameters()]
    assert set(tensors) == {f"{parameter}.{key}" for parameter in trained for key in STATES[name]}

    other_model, other = build(name, seed=0)
    load_optimizer_tensors(other, other_model, tensors)
    expected, got = optimizer.state_dict(), other.state_dict()
    assert got["param_groups"] == expected["param_groups"]
    assert got["state"].keys() == expected["state"].keys()
    for index, state in expected["state"].items():
        for key in STATES[name]:
            assert torch.equal(got["state"][index][key], state[key])
            if state[key].dim() == 4:
                assert got["state"][index][key].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_other_groups_load_the_state_of_a_checkpoint(name):
    """As a branch with its own backbone_lr_scale does: the state belongs to the parameter, not to its group."""
    model, optimizer = build(name, seed=0)
    train(model, optimizer, range(2))
    tensors = optimizer_tensors(optimizer, model)
    parameters = list(model.parameters())
    other = type(optimizer)([{"params": [p]} for p in reversed(parameters)], lr=0.1)
    load_optimizer_tensors(other, model, tensors)
    loaded = optimizer_tensors(other, model)
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[key], tensors[key]) for key in tensors)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_loading_leaves_hyperparameters_to_the_recipe_and_shares_no_memory(name):
    model, optimizer = build(name, seed=0)
    train(model, optimizer, range(2))
    tensors = optimizer_tensors(optimizer, model)
    before = {key: tensor.clone() for key, tensor in tensors.items()}
    other_model, other = build(name, seed=0, lr=0.5)
    load_optimizer_tensors(other, other_model, tensors)
    assert [group["lr"] for group in other.param_groups] == [0.5, 0.5]
    train(other_model, other, range(2))
    assert all(torch.equal(tensors[key], before[key]) for key in before)


def test_an_optimizer_that_has_not_stepped_has_no_tensors():
    for name in OPTIMIZERS:
        model, optimizer = build(name, seed=0)
        assert optimizer_tensors(optimizer, model) == {}
        load_optimizer_tensors(optimizer, model, {})


def test_state_of_another_model_is_an_error():
    model, optimizer = build("sgd", seed=0)
    with pytest.raises(ValueError, match=r"optimizer state for '9\.weight', which this model does not train"):
        load_optimizer_tensors(optimizer, model, {"9.weight.momentum_buffer": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"0\.bias\.momentum_buffer has shape \(3,\), its parameter \(8,\)"):
        load_optimizer_tensors(optimizer, model, {"0.bias.momentum_buffer": torch.zeros(3)})


def test_optimizer_state_that_is_no_tensor_is_an_error():
    model, optimizer = build("sgd", seed=0)
    optimizer.state[model[0].weight]["count"] = 3
    with pytest.raises(TypeError, match=r"optimizer state count of 0\.weight must be a tensor, got int"):
        optimizer_tensors(optimizer, model)


def test_no_checkpoint_file_is_a_pickle_whatever_it_is_called(tmp_path):
    model, optimizer = build("adamw", seed=0)
    train(model, optimizer, range(1))
    save_checkpoint(
        tmp_path, 1, {"model": model.state_dict(), "optimizer": optimizer_tensors(optimizer, model)}, {"step": 1}
    )
    suffixes = {path.suffix for path in Path(tmp_path).rglob("*") if path.is_file()}
    assert suffixes == {".safetensors", ".json"}
