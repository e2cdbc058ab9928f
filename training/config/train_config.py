"""Every number of a training run, and how it is chosen: defaults < recipe file < command line.

The defaults are TinyNet's published recipe (MindSpore model zoo, arXiv 2010.14819). A recipe is a flat YAML file of
fields to change; a flag of the same name changes it once more. `transformers.HfArgumentParser` is not used: it cannot
tell a flag that was given from a default, so that a recipe could not sit between the two, and it does not check types.
"""

import argparse
import dataclasses
import difflib
import math
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import yaml
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from training.command import CommandParser
from training.config.ema_decay import rescaled_decay
from training.errors import RunError


@dataclass(frozen=True)
class Range:
    """The values a field may take: `words` complete the sentence "<field> must be ..."."""

    words: str
    contains: Callable[[Any], object]  # true for those


def _is_repository(text: str) -> bool:
    """By the client's own rule: what it refuses would be known only after the training."""
    try:
        validate_repo_id(text)
    except HFValidationError:
        return False
    return "/" in text


POSITIVE = Range("positive", lambda value: value > 0)
NOT_NEGATIVE = Range("0 or more", lambda value: value >= 0)
AT_LEAST_1 = Range("at least 1", lambda value: value >= 1)
AT_LEAST_2 = Range("at least 2", lambda value: value >= 2)
FRACTION = Range("at least 0 and below 1", lambda value: 0 <= value < 1)
PROBABILITY = Range("between 0 and 1", lambda value: 0 <= value <= 1)
INSIDE_0_1 = Range("above 0 and below 1", lambda value: 0 < value < 1)
DECAY_RATE = Range("above 0 and at most 1", lambda value: 0 < value <= 1)
MAGNITUDE = Range("between 0 and 30", lambda value: 0 <= value <= 30)
STOP_OR_SKIP = Range("stop, or skip:N with a whole N", lambda value: re.fullmatch(r"stop|skip:[1-9]\d*", value))
SAVE_EVERY = re.compile(r"([1-9]\d*)\s*(steps?|min|minutes?)")
INTERVAL = Range("an interval like 500steps or 10min", SAVE_EVERY.fullmatch)
NAMED = Range("a name, not empty", lambda value: value.strip() != "")
REPOSITORY = Range("a repository like me/tinynet-flowers", _is_repository)
AREAS = Range("two shares of the area, 0 < low <= high <= 1", lambda value: 0 < value[0] <= value[1] <= 1)
RATIOS = Range("two ratios, 0 < low <= high", lambda value: 0 < value[0] <= value[1])


def _field(default: Any, group: str, help: str, allowed: Range | None = None, published: bool = False) -> Any:
    """`published`: the default is the published recipe's, and not this project's choice."""
    metadata = {"group": group, "help": help, "allowed": allowed, "published": published}
    return dataclasses.field(default=default, metadata=metadata)


GROUPS = {
    "model": "what is trained; an unset value is the model's own",
    "data": "the images, and how many make one optimizer step",
    "schedule": "how long, and the learning rate at every step",
    "optimizer": "the update, and the EMA of the weights",
    "augmentation": "what happens to a training image and its label",
    "precision": "number formats and speed",
    "run": "where things go and how often",
}


@dataclass(frozen=True)
class TrainConfig:
    """One training run. Fields left alone are the published recipe.

    Raises:
        ValueError: on construction, for a value of the wrong type or out of range; one sentence naming both.
    """

    model: str = _field(
        "tinynet_a", "model", "variant tinynet_a .. tinynet_e, a saved folder, or a Hub id (both fine-tune)", NAMED
    )
    image_size: int | None = _field(
        None, "model", "height and width in pixels (A-E: 192, 188, 184, 152, 106)", POSITIVE
    )
    dropout_rate: float | None = _field(None, "model", "dropout before the classifier (published: 0.2)", FRACTION)
    drop_path_rate: float | None = _field(
        None, "model", "drop path of the last block, rising linearly from 0 (published: 0, and 0.1 for B)", FRACTION
    )
    batch_norm_momentum: float | None = _field(
        None, "model", "weight of the new batch in BatchNorm's running statistics (published: 0.1)", DECAY_RATE
    )
    batch_norm_eps: float | None = _field(None, "model", "epsilon of BatchNorm (published: 1e-5)", POSITIVE)

    dataset: str = _field(
        "ILSVRC/imagenet-1k",
        "data",
        "Hub id, folder of images, of Parquet or of tar files (WebDataset), or digits",
        NAMED,
    )
    dataset_name: str | None = _field(None, "data", "configuration of a Hub dataset that has several", NAMED)
    train_split: str = _field("train", "data", "split to train on", NAMED)
    validation_split: str | None = _field(None, "data", "split to evaluate on; unset: found by its usual names", NAMED)
    image_column: str | None = _field(None, "data", "column of the images; unset: found by its type", NAMED)
    label_column: str | None = _field(None, "data", "column of the labels; unset: found by its type", NAMED)
    class_names: str | None = _field(
        None, "data", "text file, a name in each line, for labels that are plain integers; unset: 0, 1, 2, ...", NAMED
    )
    validation_fraction: float = _field(
        0.2, "data", "share of the train split held out where there is no validation split", INSIDE_0_1
    )
    streaming: bool = _field(False, "data", "read a Hub dataset over the network instead of storing it")
    global_batch_size: int = _field(
        1024, "data", "images in one optimizer step, over all processes", AT_LEAST_1, published=True
    )
    per_device_batch_size: int = _field(
        128, "data", "images a process takes at once; the rest is accumulation", AT_LEAST_1, published=True
    )
    on_bad_image: str = _field(
        "stop", "data", "stop, or skip:N: train on another in its place, at most N times per epoch", STOP_OR_SKIP
    )
    drop_last: bool = _field(True, "data", "drop the last, short batch of an epoch", published=True)
    rescale: bool = _field(
        False, "data", "another --global_batch_size than the recipe's rescales learning rate and EMA decay with it"
    )

    epochs: int = _field(450, "schedule", "passes over the training images", AT_LEAST_1, published=True)
    lr: float = _field(0.048, "schedule", "base learning rate at the recipe's global batch", POSITIVE, published=True)
    schedule: Literal["staircase", "cosine"] = _field(
        "staircase", "schedule", "staircase: x decay_rate every decay_epochs; cosine: down to min_lr", published=True
    )
    warmup_epochs: float = _field(3, "schedule", "epochs of linear warm-up", NOT_NEGATIVE, published=True)
    warmup_lr: float = _field(1e-6, "schedule", "learning rate the warm-up starts from", NOT_NEGATIVE, published=True)
    decay_epochs: float = _field(2.4, "schedule", "epochs between two decays", POSITIVE, published=True)
    decay_rate: float = _field(0.97, "schedule", "factor of one decay", DECAY_RATE, published=True)
    min_lr: float = _field(0.0, "schedule", "learning rate the cosine ends at", NOT_NEGATIVE)

    optimizer: Literal["rmsprop", "sgd", "adamw"] = _field(
        "rmsprop", "optimizer", "rmsprop: TensorFlow's form, not torch's", published=True
    )
    momentum: float = _field(
        0.9, "optimizer", "momentum of rmsprop and sgd; adamw has torch's betas", FRACTION, published=True
    )
    rho: float = _field(0.9, "optimizer", "decay of rmsprop's mean square", FRACTION, published=True)
    optimizer_eps: float = _field(1e-3, "optimizer", "epsilon, inside rmsprop's square root", POSITIVE, published=True)
    weight_decay: float = _field(
        1e-5, "optimizer", "not applied to biases and other 1-D tensors", NOT_NEGATIVE, published=True
    )
    max_grad_norm: float | None = _field(
        None, "optimizer", "clip the gradient's norm to this; unset: no clipping", POSITIVE
    )
    on_nonfinite: str = _field(
        "stop", "optimizer", "loss or gradient not finite: stop, or skip:N: leave out at most N steps", STOP_OR_SKIP
    )
    ema_decay: float = _field(
        0.9999,
        "optimizer",
        "share of the EMA that an update keeps; 0: no average",
        FRACTION,
        published=True,
    )

    crop_scale: tuple[float, float] = _field(
        (0.08, 1.0), "augmentation", "area of the random crop as a share of the image", AREAS, published=True
    )
    crop_ratio: tuple[float, float] = _field(
        (3 / 4, 4 / 3), "augmentation", "width / height of the random crop", RATIOS, published=True
    )
    horizontal_flip: float = _field(0.5, "augmentation", "probability of a mirror image", PROBABILITY, published=True)
    color_jitter: float = _field(
        0.4, "augmentation", "strength for brightness, contrast and saturation; 0: off", PROBABILITY, published=True
    )
    label_smoothing: float = _field(
        0.1, "augmentation", "share of the target spread over the other classes", FRACTION, published=True
    )
    mixup_alpha: float = _field(
        0.0, "augmentation", "mixup's Beta(alpha, alpha); 0: off", NOT_NEGATIVE, published=True
    )
    cutmix_alpha: float = _field(
        0.0, "augmentation", "CutMix's Beta(alpha, alpha); 0: off", NOT_NEGATIVE, published=True
    )
    rand_augment: int = _field(0, "augmentation", "RandAugment's magnitude, 1-30; 0: off", MAGNITUDE, published=True)
    random_erasing: float = _field(
        0.0, "augmentation", "probability that a rectangle is erased; 0: off", PROBABILITY, published=True
    )

    precision: Literal["no", "fp16", "bf16"] | None = _field(
        None, "precision", "number format of the forward pass; unset: accelerate launch decides (published: no)"
    )
    channels_last: bool = _field(True, "precision", "memory format NHWC, the faster one for these networks")
    compile: bool = _field(False, "precision", "torch.compile the model")
    sync_batch_norm: bool = _field(
        False, "precision", "BatchNorm statistics over all processes, slower", published=True
    )

    output_dir: str = _field("runs", "run", "folder that holds one folder a run", NAMED)
    run_name: str | None = _field(None, "run", "name of this run's folder; unset: made from model and dataset", NAMED)
    resume: str = _field(
        "auto", "run", "auto (continue if there is a checkpoint), must, never, or a checkpoint", NAMED
    )
    allow_data_change: bool = _field(False, "run", "continue although the dataset is another than at the checkpoint")
    save_every_epochs: int = _field(1, "run", "epochs between two checkpoints", AT_LEAST_1, published=True)
    save_every: str = _field("10min", "run", "and between two within an epoch: 500steps, 10min", INTERVAL)
    keep: int = _field(2, "run", "newest checkpoints kept, so that a damaged one has a fallback", AT_LEAST_2)
    eval_every_epochs: int = _field(1, "run", "epochs between two evaluations", AT_LEAST_1, published=True)
    log_every_steps: int = _field(50, "run", "optimizer steps between two records (published: 100)", AT_LEAST_1)
    push_to_hub: str | None = _field(
        None, "run", "publish the finished run in this Hub repository, like me/tinynet-flowers", REPOSITORY
    )
    report_to: str | None = _field(None, "run", "tracker of Accelerate: tensorboard, wandb, trackio, ...", NAMED)
    num_workers: int | None = _field(
        None, "run", "loader processes of each training process; unset: its share of the CPU cores", NOT_NEGATIVE
    )
    timeout_s: int = _field(
        600, "run", "seconds after which a loader worker or a process that does not answer ends the run", AT_LEAST_1
    )
    seed: int = _field(0, "run", "all randomness follows from it", NOT_NEGATIVE)

    def __post_init__(self) -> None:
        self.validate()

    def validate(self) -> None:
        """Check each field by itself, then the fields that depend on each other.

        Raises:
            ValueError: one sentence naming the field and its value.
        """
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, read_value(field.name, getattr(self, field.name)))
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

    def check_device(self, device_type: str) -> None:
        """Refuses what `device_type` ("cpu", "cuda", ...) cannot do.

        Raises:
            RunError: fp16 or synchronized BatchNorm on a CPU.
        """
        if device_type == "cpu" and (self.precision == "fp16" or self.sync_batch_norm):
            wish = "precision fp16" if self.precision == "fp16" else "sync_batch_norm"
            raise RunError(f"{wish} needs a GPU; on a CPU take precision bf16 or no, and BatchNorm by process")

    def network(self) -> dict[str, Any]:
        """Overrides for `training.modeling.build.model_config`; None is the model's own value."""
        return {name: getattr(self, name) for name in _names_of("model") if name != "model"}

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
        names = ("lr", "momentum", "weight_decay", "rho")
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
        names = [
            *(
                "model",
                "seed",
                "precision",
                "sync_batch_norm",
                "global_batch_size",
                "drop_last",
                "validation_fraction",
            ),
            *_names_of("model", "schedule", "optimizer", "augmentation"),
        ]
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


FIELDS = {field.name: field for field in dataclasses.fields(TrainConfig)}
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


def _names_of(*groups: str) -> list[str]:
    return [name for name, field in FIELDS.items() if field.metadata["group"] in groups]


TYPES = get_type_hints(TrainConfig)
UNSET = ("null", "none", "~", "")  # YAML's words for None, on the command line too


def read_value(name: str, value: Any) -> Any:
    """Turn the value of field `name` into its type. Text, from a flag or a YAML scalar, is read.

    Reading text here and not in YAML makes `1e-6` a number (a string in YAML 1.1) and `no` a word (False there).

    Raises:
        ValueError: for a wrong type or a value out of range, naming the field, what it must be, and the value.
    """
    kind, optional = _kind(name)
    if optional and (value is None or str(value).lower() in UNSET):
        return None
    result, words = _convert(kind, value)
    allowed = FIELDS[name].metadata["allowed"]
    if result is None:
        raise ValueError(f"{name} must be {words}, got {value!r}")
    if allowed is not None and not allowed.contains(result):
        raise ValueError(f"{name} must be {allowed.words}, got {_plain(result)}")
    return result


def _kind(name: str) -> tuple[Any, bool]:
    """The type of a field without its `| None`, and whether it has one."""
    parts = get_args(TYPES[name])
    if type(None) in parts:
        return parts[0], True
    return TYPES[name], False


def _convert(kind: Any, value: Any) -> tuple[Any, str]:
    """The value in its type, or None; and what such a value must be, in words."""
    if get_origin(kind) is Literal:
        return (value if value in get_args(kind) else None), "one of " + ", ".join(get_args(kind))
    if get_origin(kind) is tuple:
        pair = [_number(float, part) for part in value] if isinstance(value, list | tuple) else []
        return (tuple(pair) if len(pair) == 2 and None not in pair else None), "two numbers"
    if kind is bool:
        words = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
        return words.get(str(value).lower()), "true or false"
    if kind is str:
        # Bytes that are not UTF-8 come from the command line as surrogates, which recipe.yaml cannot hold.
        is_text = isinstance(value, str) and not any("\ud800" <= letter <= "\udfff" for letter in value)
        return (value if is_text else None), "text" if not isinstance(value, str) else "UTF-8 text"
    return _number(kind, value), "a whole number" if kind is int else "a number"


def _number(kind: type, value: Any) -> Any:
    accepted = (str, int) if kind is int else (str, int, float)
    if isinstance(value, bool) or not isinstance(value, accepted):
        return None
    try:
        number = kind(value)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _plain(value: Any) -> str:
    return " ".join(map(repr, value)) if isinstance(value, tuple) else repr(value)


# Names from the original trainer and from transformers' whose nearest spelling here would be misleading or missing.
OTHER_NAMES = {
    "amp_level": "precision",
    "batch_size": "per_device_batch_size",
    "bn_eps": "batch_norm_eps",
    "bn_momentum": "batch_norm_momentum",
    "ckpt": "model",
    "data_path": "dataset",
    "drop": "dropout_rate",
    "drop_connect": "drop_path_rate",
    "learning_rate": "lr",
    "num_train_epochs": "epochs",
    "opt": "optimizer",
    "opt_eps": "optimizer_eps",
    "per_print_times": "log_every_steps",
}


def _suggestion(name: str, known: Sequence[str], prefix: str = "") -> str:
    nearest = [OTHER_NAMES[name]] if name in OTHER_NAMES else difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {prefix}{nearest[0]}?" if nearest else "; --help lists all of them"


def read_recipe(path: str | Path) -> dict[str, Any]:
    """Read a recipe: a flat YAML mapping of fields of TrainConfig.

    Raises:
        ValueError: for a file that cannot be read, is no such mapping, or has a key that is unknown, repeated or has a
            wrong value; one sentence naming file and line.
    """
    try:
        root = yaml.compose(Path(path).read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise ValueError(f"recipe {path} cannot be read: {reason}") from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ValueError(f"{path}:{line}: not valid YAML: {error.problem}") from None
    except yaml.YAMLError as error:
        raise ValueError(f"recipe {path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(root, yaml.MappingNode):
        raise ValueError(f"recipe {path} must be lines of `key: value`, see configuration/ for examples")
    recipe: dict[str, Any] = {}
    for key, node in root.value:
        place, name = f"{path}:{key.start_mark.line + 1}", str(key.value)
        if name not in FIELDS:
            raise ValueError(f"{place}: unknown key {name!r}{_suggestion(name, list(FIELDS))}")
        if name in recipe:
            raise ValueError(f"{place}: {name} is given twice")
        try:
            recipe[name] = read_value(name, _texts(node))
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from None
    return recipe


def _texts(node: yaml.Node) -> str | list | dict:
    """A YAML value with its scalars as they are written."""
    if isinstance(node, yaml.MappingNode):
        return {str(key.value): _texts(value) for key, value in node.value}
    return [_texts(item) for item in node.value] if isinstance(node, yaml.SequenceNode) else node.value


def short_text(value: Any) -> str:
    """A field's value for people to read, as it is typed on the command line."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return " ".join(map(short_text, value))
    return f"{value:.7g}" if isinstance(value, float) else "unset" if value is None else str(value)


@dataclass(frozen=True)
class CommandLine:
    """What the command line says beside the configuration."""

    recipe: str | None  # the file, or None for the defaults
    explain: bool  # print what the run would be, and stop
    doctor: int | None  # seconds to measure what limits the run before it begins
    rescaling: str | None  # the sentence of `rescaled`, for people to see


def parse_config(argv: Sequence[str]) -> tuple[TrainConfig, CommandLine]:
    """Resolve a command line (without the program's name) into one configuration: defaults < recipe < flags.

    Exits with code 2 and one sentence on stderr for whatever is wrong with either; with code 0 after `--help`.
    """
    parser = _build_parser()
    namespace, unknown = parser.parse_known_args([_with_underscores(argument) for argument in argv])
    flags = vars(namespace)
    recipe_path, explain, doctor = flags.pop("recipe"), flags.pop("explain"), flags.pop("doctor")
    try:
        if unknown:
            raise ValueError(_unknown_argument(unknown))
        if doctor is not None:
            if not (doctor.isdecimal() and int(doctor) > 0):
                raise ValueError(f"doctor must be a whole number of seconds, got {doctor!r}")
            doctor = int(doctor)
        flags = {name: read_value(name, value) for name, value in flags.items()}
        recipe = read_recipe(recipe_path) if recipe_path is not None else {}
        config = TrainConfig(**(recipe | flags))
        reference = recipe.get("global_batch_size", FIELDS["global_batch_size"].default)
        if config.global_batch_size != reference and not config.rescale and "lr" not in flags:
            raise ValueError(
                f"global_batch_size {config.global_batch_size} is not the recipe's {reference}, which lr was chosen "
                "for: add --rescale to rescale learning rate and EMA decay with it, or state --lr as well"
            )
        config, rescaling = rescaled(config, reference)
    except ValueError as error:
        parser.error(str(error))
    return config, CommandLine(recipe_path, explain, doctor, rescaling)


EPILOG = """\
examples:
  the published recipe on one node of eight GPUs:
    accelerate launch --config_file configuration/accelerate/eight_gpus.yaml train.py \\
        --recipe configuration/tinynet_c.yaml --dataset ILSVRC/imagenet-1k
  what that run would be, without training:
    accelerate launch train.py --recipe configuration/tinynet_c.yaml --explain
  fine-tune published weights on a folder with train/CLASS/*.jpg and val/CLASS/*.jpg:
    accelerate launch train.py --recipe configuration/finetune.yaml --model timm/tinynet_a.in1k --dataset photos
"""


def _build_parser() -> CommandParser:
    parser = CommandParser(
        launched=True,
        usage="accelerate launch train.py [--recipe FILE] [--explain] [--doctor [SECONDS]] [--FLAG VALUE ...]",
        description="Train a TinyNet. Every flag is also a key of a recipe; defaults < recipe < flags.\n"
        "A switch is turned off by --no_NAME, a value unset by null.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    parser.add_argument("--recipe", metavar="FILE", default=None, help="YAML file of fields to change (default: none)")
    parser.add_argument("--explain", action="store_true", default=False, help="print what the run would be, and stop")
    parser.add_argument(
        "--doctor",
        nargs="?",
        const="20",
        default=None,
        metavar="SECONDS",
        help="measure what limits the run for so many seconds (20 if none are given), then train",
    )
    for group, description in GROUPS.items():
        section = parser.add_argument_group(group, description)
        for field in (field for field in FIELDS.values() if field.metadata["group"] == group):
            _add_flag(section, field)
    return parser


def _add_flag(section: argparse._ArgumentGroup, field: dataclasses.Field) -> None:
    kind, _ = _kind(field.name)
    help = field.metadata["help"]
    if field.default is not None:
        help += f" (default: {short_text(field.default)}{', as published' if field.metadata['published'] else ''})"
    if kind is bool:
        section.add_argument(f"--{field.name}", action="store_const", const=True, help=help)
        section.add_argument(
            f"--no_{field.name}", dest=field.name, action="store_const", const=False, help=argparse.SUPPRESS
        )
    elif get_origin(kind) is tuple:
        section.add_argument(f"--{field.name}", nargs=2, metavar=("LOW", "HIGH"), help=help)
    else:
        choices = "{" + ",".join(get_args(kind)) + "}"
        metavar = {int: "N", float: "X", str: "TEXT"}.get(kind, choices)
        section.add_argument(f"--{field.name}", metavar=metavar, help=help)


def _with_underscores(argument: str) -> str:
    """`--weight-decay=1e-4` is `--weight_decay=1e-4`: the original trainer wrote hyphens."""
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument[2:].partition("=")
    return "--" + name.replace("-", "_") + equals + value


def _unknown_argument(arguments: list[str]) -> str:
    flag = next((argument for argument in arguments if argument.startswith("--")), None)
    if flag is None:
        return f"unexpected argument {arguments[0]!r}; every value needs its flag before it"
    name = flag[2:].partition("=")[0]
    switches = [f"no_{field}" for field in FIELDS if TYPES[field] is bool]
    names = [*FIELDS, *switches, "recipe", "explain", "doctor", "help"]
    return f"unknown flag --{name}{_suggestion(name, names, prefix='--')}"


def rescaled(config: TrainConfig, reference_batch: int) -> tuple[TrainConfig, str | None]:
    """Carry learning rates and EMA decay over from the batch they were chosen for to the batch of the run.

    The whole curve (lr, warmup_lr, min_lr) is scaled linearly, and the EMA keeps its half-life in images. The result
    has `rescale` off, so that the resolved recipe, read again, is not rescaled twice.

    Args:
        config: the run; without `rescale`, or at `reference_batch`, its numbers are left alone.
        reference_batch: images in one optimizer step for which the numbers were chosen.

    Returns:
        The new configuration, and a sentence that says what was changed, or None.
    """
    if not config.rescale or config.global_batch_size == reference_batch:
        return dataclasses.replace(config, rescale=False), None
    factor = config.global_batch_size / reference_batch
    result = dataclasses.replace(
        config,
        lr=config.lr * factor,
        warmup_lr=config.warmup_lr * factor,
        min_lr=config.min_lr * factor,
        ema_decay=rescaled_decay(config.ema_decay, config.global_batch_size, reference_batch),
        rescale=False,
    )
    sentence = (
        f"rescaled from a global batch of {reference_batch} to {config.global_batch_size}: "
        f"lr {config.lr:g} -> {result.lr:g}, ema_decay {config.ema_decay:.7g} -> {result.ema_decay:.7g}"
    )
    return result, sentence


def default_num_workers(local_processes: int) -> int:
    """Loader processes for each of the training processes on this machine: an even share of its CPU cores, at most 16.

    No core is set aside: a training process mostly waits for its device, while decoding images is what limits a
    TinyNet. Fewer cores than processes give 0, which loads in the training process itself. 16 bounds memory and
    start-up time; more is worth a try on a machine that has the cores and still waits for data.
    """
    return min(available_cores() // local_processes, 16)


def available_cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def skip_limit(choice: str) -> int:
    """How many a `stop` or `skip:N` tolerates: 0 or N."""
    return int(choice.partition(":")[2] or 0)
