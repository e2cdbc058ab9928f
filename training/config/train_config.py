"""One training run: its settings, and how they are chosen: defaults < recipe file < command line.

The defaults are TinyNet's published recipe (MindSpore model zoo, arXiv 2010.14819). A recipe is a flat YAML file of
settings to change; a flag of the same name changes it once more. `transformers.HfArgumentParser` is not used: it
cannot tell a flag that was given from a default, so that a recipe could not sit between the two.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Self

import yaml
from pydantic import ValidationError, model_validator
from pydantic.dataclasses import dataclass

from training.config.command_line import CommandLine, read_command_line
from training.config.fields import (
    CONFIG,
    FIELDS,
    GROUPS,
    SAVE_EVERY,
    ConfigError,
    Fields,
    names_of,
    one_sentence,
    short_text,
    skip_limit,
)
from training.config.recipe import read_recipe
from training.config.rescaling import rescaled
from training.system.cores import available_cores, default_num_workers

__all__ = [
    "FIELDS",
    "GROUPS",
    "SAVE_EVERY",
    "CommandLine",
    "ConfigError",
    "TrainConfig",
    "available_cores",
    "default_num_workers",
    "parse_config",
    "read_recipe",
    "rescaled",
    "short_text",
    "skip_limit",
]

# A run may continue with other values of these: they suit the machine at hand, or say when to give up.
EXECUTION = (
    "per_device_batch_size",
    "channels_last",
    "compile",
    "streaming",
    "eval_every_epochs",
    "on_nonfinite",
    "on_bad_image",
)
# These decide about a run's result, as do all settings of model, schedule, optimizer and augmentation.
OF_THE_RESULT = (
    "model",
    "seed",
    "precision",
    "sync_batch_norm",
    "global_batch_size",
    "drop_last",
    "validation_fraction",
)


@dataclass(frozen=True, config=CONFIG)
class TrainConfig(Fields):
    """One training run. Settings left alone are the published recipe.

    Raises:
        pydantic.ValidationError: on construction, for a value of the wrong type, out of range, or at odds with
            another; `one_sentence` says which.
    """

    @model_validator(mode="after")
    def _check_settings_together(self) -> Self:
        if self.global_batch_size % self.per_device_batch_size:
            raise ValueError(
                "global_batch_size must be a multiple of per_device_batch_size, "
                f"got {self.global_batch_size} and {self.per_device_batch_size}"
            )
        if self.streaming and not self.drop_last:
            raise ValueError("streaming needs drop_last: a stream has no last, short batch to keep")
        if self.min_lr > self.lr:
            raise ValueError(f"min_lr must not be above lr ({self.lr}), got {self.min_lr}")
        if self.schedule == "cosine" and self.warmup_epochs >= self.epochs:
            raise ValueError(
                f"warmup_epochs must be below epochs ({self.epochs}) for the cosine, got {self.warmup_epochs:g}"
            )
        return self

    def check_device(self, device_type: str) -> None:
        """Refuses what `device_type` ("cpu", "cuda", ...) cannot do.

        Raises:
            ConfigError: fp16 or synchronized BatchNorm on a CPU.
        """
        if device_type == "cpu" and (self.precision == "fp16" or self.sync_batch_norm):
            setting = "precision fp16" if self.precision == "fp16" else "sync_batch_norm"
            raise ConfigError(f"{setting} needs a GPU; on a CPU take precision bf16 or no, and BatchNorm by process")

    def network(self) -> dict[str, Any]:
        """Overrides for `training.modeling.build.model_config`; None is the model's own value."""
        return {name: getattr(self, name) for name in names_of("model") if name != "model"}

    def source(self) -> dict[str, Any]:
        """Arguments for `training.data.sources.load_splits`."""
        return {
            "name": self.dataset_name,
            "train_split": self.train_split,
            "validation_split": self.validation_split,
            "image_column": self.image_column,
            "label_column": self.label_column,
            "class_names": self.class_names,
            "validation_fraction": self.validation_fraction,
            "streaming": self.streaming,
        }

    def update(self) -> dict[str, Any]:
        """Arguments for `training.optim.optimizer.build_optimizer` beside the network."""
        names = ("lr", "momentum", "weight_decay", "rho", "backbone_lr_scale")
        return {"name": self.optimizer, "eps": self.optimizer_eps} | {name: getattr(self, name) for name in names}

    def sample_transform(self) -> dict[str, Any]:
        """Arguments for `training.transforms.augmentation.TrainTransform` beside the image size."""
        return {
            "scale": self.crop_scale,
            "ratio": self.crop_ratio,
            "horizontal_flip": self.horizontal_flip,
            "rand_augment": (2, self.rand_augment) if self.rand_augment else None,
        }

    def batch_transform(self) -> dict[str, Any]:
        """Arguments for `training.transforms.device_transforms.DeviceTransform` beside mean and deviation."""
        names = ("color_jitter", "random_erasing", "mixup_alpha", "cutmix_alpha", "seed")
        return {name: getattr(self, name) for name in names}

    def settings(self) -> dict[str, Any]:
        """What decides about a run's result, as JSON values, see `training.run.resume`.

        Not among it: where the images lie, which the run compares by what they are; and what `execution` has.
        """
        names = [*OF_THE_RESULT, *names_of("model", "schedule", "optimizer", "augmentation")]
        values = {name: getattr(self, name) for name in names if name not in EXECUTION}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    def execution(self) -> dict[str, Any]:
        """What may differ from one start of a run to the next, and changes numbers a little or not at all."""
        return {name: getattr(self, name) for name in EXECUTION}

    def to_yaml(self, version: str, changes: Sequence[str] = ()) -> str:
        """Every field as a recipe that `--recipe` reads back to an equal configuration.

        Args:
            version: of the package.
            changes: what later starts of the run changed, each a sentence.
        """
        lines = [
            f"# Resolved recipe of one run, written by modeling-tinynet {version}.",
            "# To run it again: accelerate launch train.py --recipe THIS_FILE --run_name ANOTHER_NAME",
            *(["# These are the settings of the last start. What changed since the first:"] if changes else []),
            *(f"#   {' '.join(change.split())}" for change in changes),
        ]
        for group in GROUPS:
            values = {f.name: getattr(self, f.name) for f in FIELDS.values() if f.metadata["group"] == group}
            plain = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
            lines += ["", f"# {group}", yaml.safe_dump(plain, sort_keys=False).rstrip()]
        return "\n".join(lines) + "\n"


def parse_config(argv: Sequence[str]) -> tuple[TrainConfig, CommandLine]:
    """Resolve a command line (without the program's name) into one configuration: defaults < recipe < flags.

    Exits with code 0 after `--help`, and with code 2 and one sentence for a flag that is unknown or lacks its value.

    Raises:
        ConfigError: the recipe cannot be read, or a setting is wrong.
    """
    flags, command_line = read_command_line(argv)
    try:
        recipe = read_recipe(command_line.recipe) if command_line.recipe is not None else {}
        config = TrainConfig(**(recipe | flags))
        reference = recipe.get("global_batch_size", FIELDS["global_batch_size"].default)
        if config.global_batch_size != reference and not config.rescale and "lr" not in flags:
            raise ConfigError(
                f"global_batch_size {config.global_batch_size} is not the recipe's {reference}, which lr was chosen "
                "for: add --rescale to rescale learning rate and EMA decay with it, or state --lr as well"
            )
        config, rescaling = rescaled(config, reference)
    except ValidationError as error:
        raise ConfigError(one_sentence(error)) from error
    return config, dataclasses.replace(command_line, rescaling=rescaling)
