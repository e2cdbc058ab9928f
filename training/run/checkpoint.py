"""Checkpoints that survive a kill at any moment: safetensors and JSON in a folder that appears whole or not at all.

    run_folder/step-001251/        model.safetensors  ema.safetensors  optimizer.safetensors  state.json  manifest.json
    run_folder/.tmp-*              being written, or left by a kill: removed by the next save
    run_folder/.rejected-*         failed its checksum when a run was resumed: kept for inspection, never read again

The checksums are there because neither safetensors nor `torch.load` notices a flipped byte. Nothing is pickled. One
process writes; every process may read.
"""

import hashlib
import json
import os
import re
import shutil
import uuid
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

from training.errors import UserError
from training.system.write_errors import errors_name_first_argument

_NAME = re.compile(r"step-(\d{6,})")
_FILE_NAME = re.compile(r"[A-Za-z0-9_]+\.(safetensors|json)")
_MANIFEST = "manifest.json"
_STATE = "state.json"
_TENSORS = ".safetensors"


class CheckpointError(UserError, RuntimeError):
    """A checkpoint, or every checkpoint of a run, cannot be used."""


class _Damage(Exception):
    """What is wrong with one checkpoint folder, in words that can stand in a folder's name."""


@errors_name_first_argument
def save_checkpoint(
    run_folder: Path, step: int, tensors: dict[str, dict[str, torch.Tensor]], state: dict[str, Any], *, keep: int = 2
) -> Path:
    """Writes `step-<step>` and then removes older checkpoints of this run but the `keep` newest.

    A kill or an error at any moment leaves the previous checkpoint the newest one. One of the same step is replaced.

    Args:
        run_folder: created if missing.
        step: optimizer steps taken.
        tensors: file -> name -> tensor, such as {"model": model.state_dict()}. Memory formats are lost: restore with
            `copy_`, as `load_state_dict` does.
        state: JSON values.
        keep: at least 2, so that one damaged checkpoint does not end a run.

    Returns:
        The new folder.

    Raises:
        OSError: it could not be written (a full disk, no permission); nothing is left of it.
    """
    if keep < 2:
        raise ValueError(f"keep must be at least 2, got {keep}: with one checkpoint a damaged file would end the run")
    for name in tensors:
        if not _FILE_NAME.fullmatch(name + _TENSORS):
            raise ValueError(f"tensors {name!r} must be named by letters, digits and _, for that names their file")
    run_folder.mkdir(parents=True, exist_ok=True)
    final = run_folder / f"step-{step:06d}"
    temporary = _temporary(final)
    try:
        temporary.mkdir()
        files = {
            f"{name}{_TENSORS}": safetensors.torch.save({k: v.detach().contiguous() for k, v in entry.items()})
            for name, entry in tensors.items()
        }
        files[_STATE] = _to_json(state)
        manifest = {name: {"size": len(data), "sha256": _sha256(data)} for name, data in files.items()}
        for name, data in files.items():
            _write(temporary / name, data)
        _write(temporary / _MANIFEST, _to_json(manifest))
        _fsync(temporary)
        if final.exists():
            os.replace(final, _temporary(final))
        os.replace(temporary, final)
        _fsync(run_folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    _prune(run_folder, step, keep)
    return final


def latest_checkpoint(run_folder: Path) -> Path | None:
    """The newest checkpoint whose files all have the manifest's checksums; None for a run that has not saved yet.

    Damaged ones are renamed to `.rejected-<name>-<reason>`.

    Raises:
        CheckpointError: there are checkpoints, or were before they were rejected, and none is whole. To start again
            at step 0 is for a person to decide.
    """
    for path in reversed(_checkpoints(run_folder)):
        try:
            _read(path)
        except _Damage as damage:
            rejected = path.with_name(f".rejected-{path.name}-{damage}")
            if rejected.exists():
                rejected = rejected.with_name(f"{rejected.name}-{uuid.uuid4().hex[:8]}")
            os.replace(path, rejected)
        else:
            return path
    if names := sorted(path.name for path in run_folder.glob(".rejected-*")):
        raise CheckpointError(
            f"every checkpoint in {run_folder} is damaged: remove {', '.join(names)} to start from step 0"
        )
    return None


def load_checkpoint(path: Path) -> tuple[dict[str, dict[str, torch.Tensor]], dict[str, Any]]:
    """The (tensors, state) given to `save_checkpoint`, on the CPU, each file checked against the manifest.

    Raises:
        CheckpointError: a file is missing or differs from what was written.
    """
    try:
        files = _read(path)
    except _Damage as damage:
        raise CheckpointError(f"{path} is not a whole checkpoint: {damage}") from damage
    state = json.loads(files.pop(_STATE))
    return {name.removesuffix(_TENSORS): safetensors.torch.load(data) for name, data in files.items()}, state


def optimizer_tensors(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, torch.Tensor]:
    """An optimizer's state as `<parameter name>.<state name>` -> tensor. Hyper-parameters are the recipe's.

    Raises:
        TypeError: a state that is no tensor, which would be lost.
    """
    tensors = {}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            if value is None:  # SGD's momentum_buffer before its first step
                continue
            if not isinstance(value, torch.Tensor):
                raise TypeError(f"optimizer state {key} of {name} must be a tensor, got {type(value).__name__}")
            tensors[f"{name}.{key}"] = value
    return tensors


def load_optimizer_tensors(
    optimizer: torch.optim.Optimizer, model: nn.Module, tensors: dict[str, torch.Tensor]
) -> None:
    """Puts what `optimizer_tensors` returned into a new optimizer, which keeps its own hyper-parameters.

    Raises:
        ValueError: state for a parameter that this optimizer does not have, or of another shape.
    """
    names = {parameter: name for name, parameter in model.named_parameters()}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    index = {names[parameter]: i for i, parameter in enumerate(parameters)}
    state: dict[int, dict[str, torch.Tensor]] = {}
    for full_name, tensor in tensors.items():
        name, _, key = full_name.rpartition(".")
        if name not in index:
            raise ValueError(f"the checkpoint has optimizer state for {name!r}, which this model does not train")
        parameter = parameters[index[name]]
        if tensor.dim() == 0:  # a step counter
            value = tensor.clone()
        elif tensor.shape == parameter.shape:
            # Laid out in memory as its parameter is: foreach kernels fall back to a slow path otherwise.
            value = torch.empty_like(parameter, dtype=tensor.dtype).copy_(tensor)
        else:
            raise ValueError(f"{full_name} has shape {tuple(tensor.shape)}, its parameter {tuple(parameter.shape)}")
        state.setdefault(index[name], {})[key] = value
    # torch's own loader knows which states belong on the device and in which dtype.
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _checkpoints(run_folder: Path) -> list[Path]:
    """By step, oldest first."""
    if not run_folder.is_dir():
        return []
    return sorted((path for path in run_folder.iterdir() if _NAME.fullmatch(path.name)), key=_step)


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def _temporary(path: Path) -> Path:
    return path.with_name(f".tmp-{path.name}-{uuid.uuid4().hex}")


def _prune(run_folder: Path, step: int, keep: int) -> None:
    """Removes all but the `keep` newest checkpoints up to `step`, and what earlier kills left behind."""
    for path in [path for path in _checkpoints(run_folder) if _step(path) <= step][:-keep]:
        os.replace(path, _temporary(path))  # so that a kill does not leave half a checkpoint under its name
    for leftover in run_folder.glob(".tmp-*"):
        shutil.rmtree(leftover, ignore_errors=True)  # the next save tries again


def _read(path: Path) -> dict[str, bytes]:
    """The files that the manifest lists, checked. What it does not list is never opened."""
    files = {}
    for name, entry in _read_manifest(path).items():
        data = _read_file(path / name)
        if len(data) != entry["size"]:
            raise _Damage(f"size-of-{name}")
        if _sha256(data) != entry["sha256"]:
            raise _Damage(f"sha256-of-{name}")
        files[name] = data
    return files


def _read_manifest(path: Path) -> dict[str, dict[str, Any]]:
    """The manifest has no checksum of its own: it must be, byte for byte, what `save_checkpoint` writes."""
    data = _read_file(path / _MANIFEST)
    try:
        manifest = json.loads(data)
        whole = data == _to_json(manifest) and _STATE in manifest
        whole &= all(_FILE_NAME.fullmatch(name) is not None for name in manifest)
        whole &= all(set(entry) == {"size", "sha256"} for entry in manifest.values())
    except (ValueError, TypeError, AttributeError):
        whole = False
    if not whole:
        raise _Damage(f"content-of-{_MANIFEST}")
    return manifest


def _read_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise _Damage(f"missing-{path.name}") from None
    except OSError:
        raise _Damage(f"unreadable-{path.name}") from None


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _to_json(value: Any) -> bytes:
    return json.dumps(value, indent=2).encode()


def _write(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _fsync(folder: Path) -> None:
    """Without it a rename or a new file may not survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
