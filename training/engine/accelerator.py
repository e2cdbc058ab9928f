"""Accelerate's part of a run: device, number format and processes. All else is the recipe's."""

import dataclasses
import os
import warnings
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import DistributedDataParallelKwargs, GradientAccumulationPlugin, InitProcessGroupKwargs

from training.config.train_config import TrainConfig
from training.errors import RunError
from training.system.memory import keep_freed_memory

# Other ways to train that `accelerate launch` announces to its processes, by variable.
OTHER_WAYS = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism configuration",
}


def build_accelerator(config: TrainConfig, run_folder: Path) -> Accelerator:
    """The accelerator of this process, which joins its process group.

    From the environment Accelerate takes device, processes and, where the recipe leaves it open, the number format.
    The recipe cuts its batches itself, so gradient accumulation is not Accelerate's, whatever its variables say.

    Raises:
        RunError: the launcher asks for a way to train that this is not, its processes cannot find each other, the
            tracker is not installed, or the device cannot do what the recipe asks for.
    """
    if config.report_to and config.report_to not in map(str, get_available_trackers()):
        raise RunError(f"tracker {config.report_to!r} of --report_to is not installed, or unknown to Accelerate")
    check_environment(os.environ, config.precision)
    # torch 2.14 renames an argument that Accelerate passes on by its old name.
    warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated", category=FutureWarning)
    try:
        accelerator = Accelerator(
            cpu=not torch.accelerator.is_available(),  # else ranks without a GPU would not find each other
            mixed_precision=config.precision,
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
            dynamo_backend="no",
            log_with=config.report_to,
            project_dir=run_folder,
            kwargs_handlers=[
                DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True),
                InitProcessGroupKwargs(timeout=timedelta(seconds=config.timeout_s)),
            ],
        )
    except (ValueError, OSError) as error:  # what the variables of a launcher lack, or the device
        raise RunError(str(error)) from error
    expected = int(os.environ.get("WORLD_SIZE", 1))
    if accelerator.num_processes != expected:
        raise RunError(
            f"WORLD_SIZE says {expected} processes, but this one trains by itself: start it with torchrun or "
            "accelerate launch, which also set LOCAL_RANK"
        )
    dataclasses.replace(config, precision=accelerator.mixed_precision).check_device(accelerator.device.type)
    return accelerator


def set_up_backend(device: torch.device) -> None:
    """Have PyTorch compute fast on `device`, in this process."""
    torch.backends.cudnn.benchmark = True
    if device.type == "cpu":
        keep_freed_memory()


def check_environment(environment: Mapping[str, str], precision: str | None) -> None:
    """Refuse what the launcher's variables ask for and this trainer does not do.

    Args:
        environment: such as `os.environ`.
        precision: of the recipe, which goes before the launcher's; None leaves it open.

    Raises:
        RunError: FSDP and its like, `torch.compile` by the launcher, or another number format.
    """
    for variable, way in OTHER_WAYS.items():
        if environment.get(variable, "false").lower() in ("true", "1", "yes"):
            raise RunError(
                f"train.py trains with DistributedDataParallel, and the launcher asks for {way} ({variable}): "
                "launch it with one of configuration/accelerate/ as --config_file, or with torchrun"
            )
    backend = environment.get("ACCELERATE_DYNAMO_BACKEND", "no").lower()
    if backend != "no":
        raise RunError(
            f"the launcher asks for torch.compile (ACCELERATE_DYNAMO_BACKEND {backend}), which would be in no recipe: "
            "leave that out and give train.py --compile"
        )
    launchers = environment.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    if precision is None and launchers not in ("no", "fp16", "bf16"):
        raise RunError(
            f"the launcher asks for mixed precision {launchers} (ACCELERATE_MIXED_PRECISION), and train.py has "
            "no, fp16 and bf16: give it one of them as --precision"
        )
