"""Resuming a checkpoint: what may differ from the start that wrote it, and the sentences that say what does.

Settings of the result (`TrainConfig.settings`) stay the same in one run; only `epochs` may change. A branch, which is
`--resume CHECKPOINT` under another --run_name, may change all of them but those that its tensors and its count of
steps depend on. Settings of execution (`TrainConfig.execution`) belong to the machine at hand and may always change.
"""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from training.config.train_config import FIELDS, short_text
from training.errors import RunError
from training.modeling.ema import ExponentialMovingAverage
from training.optim.lr_schedule import build_schedule
from training.run.checkpoint import CheckpointError, load_checkpoint, load_optimizer_tensors

SCHEDULE = ("lr", "warmup_epochs", "warmup_lr", "decay_epochs", "decay_rate", "min_lr")
COUNTS_STEPS = ("global_batch_size", "drop_last")  # a checkpoint's step is another sample with another value
CONSEQUENCES = {
    "per_device_batch_size": "BatchNorm sees batches of another size",
    "num_processes": "BatchNorm's statistics are those of other shares of a batch",
    "channels_last": "sums are rounded in another order",
    "compile": "sums are rounded in another order, and dropout has other random numbers",
    "device": "sums are rounded in another order",
    "torch": "sums may be rounded in another order",
    "pillow": "pixels may differ a little",
    "simplejpeg": "pixels may differ a little",
    "streaming": "the images of an epoch come in another order, so that the one under way meets some twice",
    "eval_every_epochs": "best/ is chosen among other epochs",
    "num_train": "where epochs have another number of steps, its learning rates come at other images",
    "seed": "the epoch under way resumes in another order and meets some images twice",
    "model": "its weights are not read, the checkpoint's are",
    "optimizer": "its state begins anew",
}

Tensors = dict[str, dict[str, Tensor]]


def is_branch(checkpoint: Path, run_folder: Path) -> bool:
    """Whether a run in `run_folder` that resumes `checkpoint` leaves another run there."""
    return checkpoint.resolve().parent.parent != run_folder.resolve()


def read_checkpoint(
    path: Path,
    run_folder: Path,
    *,
    settings: Mapping[str, Any],
    execution: Mapping[str, Any],
    data: Mapping[str, Any],
    allow_data_change: bool,
    steps_per_epoch: int,
) -> tuple[Tensors, dict[str, Any], list[str]]:
    """The tensors and the state of a checkpoint that this start can resume, and a sentence for each change.

    Args:
        run_folder: of this start. A checkpoint from elsewhere begins a branch.
        settings: of the result, with `class_names`.
        execution: of this start, with `num_processes` and what `environment.machine` says.
        data: what the dataset is. It must be the checkpoint's, unless `allow_data_change`.

    Raises:
        RunError: the run is finished, or a setting differs that must not.
        CheckpointError: damaged since it was chosen.
    """
    tensors, state = load_checkpoint(path)
    if "settings" not in state:
        raise CheckpointError(f"{path} is not a checkpoint of a training run")
    progress = state["progress"]
    home = path.parent.parent if len(path.parts) > 2 else path.resolve().parent.parent
    changed = _changed(state["settings"], settings)
    if is_branch(path, run_folder):
        _refuse_in_a_branch(path, home, changed)
    else:
        _refuse_in_a_run(path, home, changed, settings["schedule"])
    # A stream has no fingerprints to compare.
    other_data = {name: (state["data"][name], data[name]) for name in data if name in state["data"]}
    other_data = {name: values for name, values in other_data.items() if values[0] != values[1]}
    if other_data and not allow_data_change:
        raise RunError(
            f"the dataset is not the one that {home} was trained on ({_listed(other_data)}); restore it, "
            "or continue all the same with --allow_data_change"
        )
    step, epochs = progress["step"], settings["epochs"]
    total_steps = epochs * steps_per_epoch
    if step > total_steps or (step == total_steps and not progress["epoch_end_due"]):
        raise RunError(
            f"the run in {home} is finished after {step} steps; its models are in best/ and last/; "
            f"more than --epochs {epochs} continues it, and another --run_name without --resume trains anew"
        )
    elsewhere = _changed(_saved_execution(tensors, state), execution, only_saved=True)
    sentences = [_sentence(name, *values) for name, values in (changed | elsewhere | other_data).items()]
    if changed.keys() & {"epochs", "schedule", *SCHEDULE}:
        sentences.append(_learning_rate_change(state["settings"], settings, step, steps_per_epoch))
    return tensors, state, sentences


def restore(
    path: Path,
    tensors: Tensors,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    ema: ExponentialMovingAverage | None,
    *,
    same_optimizer: bool,
) -> None:
    """Loads a checkpoint's tensors into network, optimizer and EMA.

    An optimizer of another kind than the checkpoint's keeps its fresh state. An EMA that the checkpoint lacks begins
    at the checkpoint's weights, and its part of the BatchNorm statistics of each rank is added to
    `tensors["local"]["batch_norm"]`; that of an EMA no longer kept is removed there.

    Raises:
        RunError: the checkpoint is of another network.
    """
    present, saved = network.state_dict(), tensors["model"]
    for name in dict.fromkeys([*present, *saved]):
        shapes = [tuple(side[name].shape) if name in side else "missing" for side in (saved, present)]
        if shapes[0] != shapes[1]:
            raise RunError(
                f"{path} is of another network: {name} is {shapes[0]} there and {shapes[1]} here; "
                "take its --model, or start anew under another --run_name without --resume"
            )
    network.load_state_dict(saved)
    if same_optimizer:
        load_optimizer_tensors(optimizer, network, tensors["optimizer"])
    if ema:
        ema.model.load_state_dict(tensors.get("ema", saved))
    if bool(ema) != ("ema" in tensors):
        statistics = tensors["local"]["batch_norm"]  # (processes, network's and then EMA's)
        both = torch.cat([statistics, statistics], dim=1) if ema else statistics.chunk(2, dim=1)[0]
        tensors["local"]["batch_norm"] = both


def _refuse_in_a_branch(path: Path, home: Path, changed: Mapping[str, tuple[Any, Any]]) -> None:
    reasons = dict.fromkeys(COUNTS_STEPS, "its steps are counted in global batches")
    reasons["class_names"] = "its classifier is that of its classes"
    for name, reason in reasons.items():
        if name in changed:
            raise RunError(
                f"{path} cannot be resumed with {_listed({name: changed[name]})}, because {reason}; "
                f"--model {shlex.quote(str(home / 'last'))} without --resume starts from the run's weights"
            )


def _refuse_in_a_run(path: Path, home: Path, changed: Mapping[str, tuple[Any, Any]], schedule: str) -> None:
    before, now = changed.get("epochs", (0, 0))
    may_change = {"epochs"} if now > before or schedule == "staircase" else set()
    wrong = {name: values for name, values in changed.items() if name not in may_change}
    if wrong:
        raise RunError(
            f"{home} holds another run ({_listed(wrong)}); choose another --run_name to train anew, and with it "
            f"--resume {shlex.quote(str(path))} to branch off from here"
        )


def _changed(
    saved: Mapping[str, Any], present: Mapping[str, Any], *, only_saved: bool = False
) -> dict[str, tuple[Any, Any]]:
    """(saved, present) of each name whose values differ. What an old checkpoint does not hold had its default."""
    changed = {}
    for name, value in present.items():
        if only_saved and name not in saved:
            continue
        default = FIELDS[name].default if name in FIELDS else None
        before = saved.get(name, list(default) if isinstance(default, tuple) else default)
        if before != value:
            changed[name] = (before, value)
    return changed


def _saved_execution(tensors: Tensors, state: Mapping[str, Any]) -> dict[str, Any]:
    """As far as the checkpoint holds it: one from before it was recorded has only the number of processes, and
    `on_nonfinite` among its settings."""
    known = {"num_processes": len(tensors["local"]["batch_norm"])} if "local" in tensors else {}
    known |= {name: state["settings"][name] for name in ("on_nonfinite",) if name in state["settings"]}
    return known | state.get("execution", {})


def _listed(changed: Mapping[str, tuple[Any, Any]]) -> str:
    return ", ".join(_change(name, *values) for name, values in changed.items())


def _sentence(name: str, before: Any, now: Any) -> str:
    consequence = CONSEQUENCES.get(name)
    if name == "ema_decay" and 0 in (before, now):
        consequence = "the EMA ends" if before else "the EMA begins at the weights of now"
    return _change(name, before, now) + (f": {consequence}" if consequence else "")


def _change(name: str, before: Any, now: Any) -> str:
    if name == "class_names":
        return _class_change(before, now)
    texts = [short_text(tuple(value) if isinstance(value, list) else value) for value in (before, now)]
    if texts[0] == texts[1]:  # they differ in a later digit than people read
        texts = [repr(before), repr(now)]
    return f"{name} {texts[0]} -> {texts[1]}"


def _class_change(before: list[str], now: list[str]) -> str:
    """Short: there may be a thousand."""
    if len(before) != len(now):
        return f"{len(before)} -> {len(now)} classes"
    index = next(index for index, names in enumerate(zip(before, now, strict=True)) if names[0] != names[1])
    return f"class {index} {before[index]!r} -> {now[index]!r}"


def _learning_rate_change(
    saved: Mapping[str, Any], present: Mapping[str, Any], step: int, steps_per_epoch: int
) -> str:
    """Where the learning rate leaves the curve of the checkpoint's run, from its next step on."""
    before, now = (
        build_schedule(
            settings["schedule"],
            total_steps=settings["epochs"] * steps_per_epoch,
            steps_per_epoch=steps_per_epoch,
            **{name: settings[name] for name in SCHEDULE},
        )
        for settings in (saved, present)
    )
    ends = [settings["epochs"] * steps_per_epoch for settings in (saved, present)]
    epochs = range((step // steps_per_epoch + 1) * steps_per_epoch, max(ends), steps_per_epoch)
    for later in (step, *epochs):
        if before(later) != now(later):
            return (
                f"the learning rate of step {later + 1} is {short_text(now(later))}, where it would have been "
                f"{short_text(before(later))}: the run is not the one that these settings give from the start"
            )
    return "the learning rates stay those of the checkpoint's run"
