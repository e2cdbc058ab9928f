"""The settings of a training run: their types, limits, defaults and help.

pydantic converts and checks them, from Python's values and from the text of a recipe or a command line alike. What a
limit cannot express, because it is between two settings, is in `TrainConfig`.
"""

import dataclasses
import re
from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Literal, TypeVar, get_args, get_type_hints

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass

from training.errors import RunError, ToldBy

UNSET = ("null", "none", "~", "")  # YAML's words for None, on the command line too
SAVE_EVERY = re.compile(r"([1-9]\d*)\s*(steps?|min|minutes?)")


class ConfigError(RunError):
    """A configuration cannot be used. The message is one sentence that names the setting and its value."""

    told_by: ClassVar[ToldBy] = "one"


def _limit(holds: Callable[[Any], object], words: str) -> AfterValidator:
    """A limit that pydantic has no name for; `words` complete the sentence "<setting> must be ..."."""

    def check(value: Any) -> Any:
        if not holds(value):
            raise ValueError(f"must be {words}")
        return value

    return AfterValidator(check)


def _only(holds: Callable[[Any], object], words: str) -> BeforeValidator:
    """Refuses what pydantic would convert all the same: 2.0 to an integer, `y` to true, a set to a pair."""

    def check(value: Any) -> Any:
        if not holds(value):
            raise ValueError(f"must be {words}")
        return value

    return BeforeValidator(check)


def _is_number(value: Any) -> bool:
    return isinstance(value, str | int | float) and not isinstance(value, bool)  # to Python, True is 1


def _is_integer(value: Any) -> bool:
    # Text without digits of a fraction; pydantic says what else is wrong with it.
    return _is_number(value) and not isinstance(value, float) and "." not in str(value)


def _is_switch(value: Any) -> bool:
    return isinstance(value, bool) or str(value).lower() in ("true", "yes", "on", "false", "no", "off")


def _none_if_unset(value: Any) -> Any:
    return None if isinstance(value, str) and value.lower() in UNSET else value


def _is_utf8(text: str) -> bool:
    """Other bytes come from the command line as surrogates, which recipe.yaml cannot hold."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_repository(text: str) -> bool:
    """By the client's own rule: what it refuses would be known only after the training."""
    try:
        validate_repo_id(text)
    except HFValidationError:
        return False
    return "/" in text


T = TypeVar("T")
Unsettable = Annotated[T | None, BeforeValidator(_none_if_unset)]
Integer = Annotated[int, _only(_is_integer, "a valid integer")]
Number = Annotated[float, _only(_is_number, "a valid number")]
Switch = Annotated[bool, _only(_is_switch, "true or false")]
Text = Annotated[str, Field(strict=True)]

Count = Annotated[Integer, Field(ge=1)]
CountOrZero = Annotated[Integer, Field(ge=0)]
Positive = Annotated[Number, Field(gt=0)]
NotNegative = Annotated[Number, Field(ge=0)]
Fraction = Annotated[Number, Field(ge=0, lt=1)]
Probability = Annotated[Number, Field(ge=0, le=1)]
Share = Annotated[Number, Field(gt=0, lt=1)]
DecayRate = Annotated[Number, Field(gt=0, le=1)]
Scale = Annotated[
    Number, _limit(lambda scale: scale > 0, "above 0 (a factor like 1e-3 leaves the weights almost as they are)")
]

Name = Annotated[Text, _limit(_is_utf8, "UTF-8 text"), _limit(str.strip, "a name, not empty")]
Repository = Annotated[Text, _limit(_is_repository, "a repository like me/tinynet-flowers")]
StopOrSkip = Annotated[Text, _limit(re.compile(r"stop|skip:[1-9]\d*").fullmatch, "stop, or skip:N with a whole N")]
Interval = Annotated[Text, _limit(SAVE_EVERY.fullmatch, "an interval like 500steps or 10min")]
Pair = Annotated[tuple[Number, Number], _only(lambda pair: isinstance(pair, list | tuple), "two numbers")]
Areas = Annotated[
    Pair, _limit(lambda pair: 0 < pair[0] <= pair[1] <= 1, "two shares of the area, 0 < low <= high <= 1")
]
Ratios = Annotated[Pair, _limit(lambda pair: 0 < pair[0] <= pair[1], "two ratios, 0 < low <= high")]

GROUPS = {
    "model": "what is trained; an unset value is the model's own",
    "data": "the images, and how many make one optimizer step",
    "schedule": "how long, and the learning rate at every step",
    "optimizer": "the update, and the EMA of the weights",
    "augmentation": "what happens to a training image and its label",
    "precision": "number formats and speed",
    "run": "where things go and how often",
}


def _field(default: Any, group: str, help: str, published: bool = False) -> Any:
    """`published`: the default is the published recipe's, and not this project's choice."""
    return dataclasses.field(default=default, metadata={"group": group, "help": help, "published": published})


CONFIG = ConfigDict(extra="forbid", allow_inf_nan=False, validate_default=True)


@dataclass(frozen=True, config=CONFIG)
class Fields:
    """Every setting by itself. Values may be text, which is converted to the type of the setting.

    Raises:
        pydantic.ValidationError: on construction; `one_sentence` says what it is about.
    """

    model: Name = _field(
        "tinynet_a", "model", "variant tinynet_a .. tinynet_e, a saved folder, or a Hub id (both fine-tune)"
    )
    image_size: Unsettable[Count] = _field(None, "model", "height and width in pixels (A-E: 192, 188, 184, 152, 106)")
    dropout_rate: Unsettable[Fraction] = _field(None, "model", "dropout before the classifier (published: 0.2)")
    drop_path_rate: Unsettable[Fraction] = _field(
        None, "model", "drop path of the last block, rising linearly from 0 (published: 0, and 0.1 for B)"
    )
    batch_norm_momentum: Unsettable[DecayRate] = _field(
        None, "model", "weight of the new batch in BatchNorm's running statistics (published: 0.1)"
    )
    batch_norm_eps: Unsettable[Positive] = _field(None, "model", "epsilon of BatchNorm (published: 1e-5)")

    dataset: Name = _field(
        "ILSVRC/imagenet-1k", "data", "Hub id, folder of images, of Parquet or of tar files (WebDataset), or digits"
    )
    dataset_name: Unsettable[Name] = _field(None, "data", "configuration of a Hub dataset that has several")
    train_split: Name = _field("train", "data", "split to train on")
    validation_split: Unsettable[Name] = _field(None, "data", "split to evaluate on; unset: found by its usual names")
    image_column: Unsettable[Name] = _field(None, "data", "column of the images; unset: found by its type")
    label_column: Unsettable[Name] = _field(None, "data", "column of the labels; unset: found by its type")
    class_names: Unsettable[Name] = _field(
        None, "data", "text file, a name in each line, for labels that are plain integers; unset: 0, 1, 2, ..."
    )
    validation_fraction: Share = _field(
        0.2, "data", "share of the train split held out where there is no validation split"
    )
    streaming: Switch = _field(False, "data", "read a Hub dataset over the network instead of storing it")
    global_batch_size: Count = _field(1024, "data", "images in one optimizer step, over all processes", published=True)
    per_device_batch_size: Count = _field(
        128, "data", "images a process takes at once; the rest is accumulation", published=True
    )
    on_bad_image: StopOrSkip = _field(
        "stop", "data", "stop, or skip:N: train on another in its place, at most N times per epoch"
    )
    drop_last: Switch = _field(True, "data", "drop the last, short batch of an epoch", published=True)
    rescale: Switch = _field(
        False, "data", "another --global_batch_size than the recipe's rescales learning rate and EMA decay with it"
    )

    epochs: Count = _field(450, "schedule", "passes over the training images", published=True)
    lr: Positive = _field(0.048, "schedule", "base learning rate at the recipe's global batch", published=True)
    schedule: Literal["staircase", "cosine"] = _field(
        "staircase", "schedule", "staircase: x decay_rate every decay_epochs; cosine: down to min_lr", published=True
    )
    warmup_epochs: NotNegative = _field(3, "schedule", "epochs of linear warm-up", published=True)
    warmup_lr: NotNegative = _field(1e-6, "schedule", "learning rate the warm-up starts from", published=True)
    decay_epochs: Positive = _field(2.4, "schedule", "epochs between two decays", published=True)
    decay_rate: DecayRate = _field(0.97, "schedule", "factor of one decay", published=True)
    min_lr: NotNegative = _field(0.0, "schedule", "learning rate the cosine ends at")

    optimizer: Literal["rmsprop", "sgd", "adamw"] = _field(
        "rmsprop", "optimizer", "rmsprop: TensorFlow's form, not torch's", published=True
    )
    momentum: Fraction = _field(
        0.9, "optimizer", "momentum of rmsprop and sgd; adamw has torch's betas", published=True
    )
    rho: Fraction = _field(0.9, "optimizer", "decay of rmsprop's mean square", published=True)
    optimizer_eps: Positive = _field(1e-3, "optimizer", "epsilon, inside rmsprop's square root", published=True)
    weight_decay: NotNegative = _field(
        1e-5, "optimizer", "not applied to biases and other 1-D tensors", published=True
    )
    backbone_lr_scale: Scale = _field(
        1.0, "optimizer", "learning rate of all but the classifier, as a factor of lr; for fine-tuning"
    )
    max_grad_norm: Unsettable[Positive] = _field(
        None, "optimizer", "clip the gradient's norm to this; unset: no clipping"
    )
    on_nonfinite: StopOrSkip = _field(
        "stop", "optimizer", "loss or gradient not finite: stop, or skip:N: leave out at most N steps"
    )
    ema_decay: Fraction = _field(
        0.9999, "optimizer", "share of the EMA that an update keeps; 0: no average", published=True
    )

    crop_scale: Areas = _field(
        (0.08, 1.0), "augmentation", "area of the random crop as a share of the image", published=True
    )
    crop_ratio: Ratios = _field((3 / 4, 4 / 3), "augmentation", "width / height of the random crop", published=True)
    horizontal_flip: Probability = _field(0.5, "augmentation", "probability of a mirror image", published=True)
    color_jitter: Probability = _field(
        0.4, "augmentation", "strength for brightness, contrast and saturation; 0: off", published=True
    )
    label_smoothing: Fraction = _field(
        0.1, "augmentation", "share of the target spread over the other classes", published=True
    )
    mixup_alpha: NotNegative = _field(0.0, "augmentation", "mixup's Beta(alpha, alpha); 0: off", published=True)
    cutmix_alpha: NotNegative = _field(0.0, "augmentation", "CutMix's Beta(alpha, alpha); 0: off", published=True)
    rand_augment: Annotated[Integer, Field(ge=0, le=30)] = _field(
        0, "augmentation", "RandAugment's magnitude, 1-30; 0: off", published=True
    )
    random_erasing: Probability = _field(
        0.0, "augmentation", "probability that a rectangle is erased; 0: off", published=True
    )

    precision: Unsettable[Literal["no", "fp16", "bf16"]] = _field(
        None, "precision", "number format of the forward pass; unset: accelerate launch decides (published: no)"
    )
    channels_last: Switch = _field(True, "precision", "memory format NHWC, the faster one for these networks")
    compile: Switch = _field(False, "precision", "torch.compile the model")
    sync_batch_norm: Switch = _field(
        False, "precision", "BatchNorm statistics over all processes, slower", published=True
    )

    output_dir: Name = _field("runs", "run", "folder that holds one folder a run")
    run_name: Unsettable[Name] = _field(None, "run", "name of this run's folder; unset: made from model and dataset")
    resume: Name = _field("auto", "run", "auto (continue if there is a checkpoint), must, never, or a checkpoint")
    allow_data_change: Switch = _field(False, "run", "continue although the dataset is another than at the checkpoint")
    save_every_epochs: Count = _field(1, "run", "epochs between two checkpoints", published=True)
    save_every: Interval = _field("10min", "run", "and between two within an epoch: 500steps, 10min")
    keep: Annotated[Integer, Field(ge=2)] = _field(
        2, "run", "newest checkpoints kept, so that a damaged one has a fallback"
    )
    eval_every_epochs: Count = _field(1, "run", "epochs between two evaluations", published=True)
    log_every_steps: Count = _field(50, "run", "optimizer steps between two records (published: 100)")
    push_to_hub: Unsettable[Repository] = _field(
        None, "run", "publish the finished run in this Hub repository, like me/tinynet-flowers"
    )
    report_to: Unsettable[Name] = _field(None, "run", "tracker of Accelerate: tensorboard, wandb, trackio, ...")
    num_workers: Unsettable[CountOrZero] = _field(
        None, "run", "loader processes of each training process; unset: its share of the CPU cores"
    )
    timeout_s: Count = _field(
        600, "run", "seconds after which a loader worker or a process that does not answer ends the run"
    )
    seed: CountOrZero = _field(0, "run", "all randomness follows from it")


FIELDS = {field.name: field for field in dataclasses.fields(Fields)}
_TYPES = get_type_hints(Fields)


def kind_of(name: str) -> Any:
    """The type of a setting without its limits and its `| None`."""
    kind = _TYPES[name]
    return get_args(kind)[0] if type(None) in get_args(kind) else kind


def names_of(*groups: str) -> list[str]:
    """The settings of these groups."""
    return [name for name, field in FIELDS.items() if field.metadata["group"] in groups]


def one_sentence(error: ValidationError) -> str:
    """What the first mistake is, and the value: "epochs must be greater than or equal to 1, got '0'"."""
    mistake = error.errors()[0]
    our_rule = mistake.get("ctx", {}).get("error")
    if not mistake["loc"]:  # between settings, which it names
        return str(our_rule)
    name, *inside = mistake["loc"]
    if inside or mistake["type"] in ("tuple_type", "too_long"):
        return f"{name} must be two numbers, got {mistake['input']!r}"
    # pydantic adds how it failed to read the value, which comes next anyway.
    rule = str(our_rule or re.sub(r", (unable to (parse (string|raw data)|interpret)|got) .*", "", mistake["msg"]))
    if mistake["type"] == "int_parsing_size":
        rule = "must be an integer of fewer digits"
    rule = rule.replace("Input should", "must").replace("a valid boolean", "true or false")
    return f"{name} {rule}, got {mistake['input']!r}"


def skip_limit(choice: str) -> int:
    """How many a `stop` or `skip:N` tolerates: 0 or N."""
    return int(choice.partition(":")[2] or 0)


def short_text(value: Any) -> str:
    """A setting's value for people to read, as it is typed on the command line."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return " ".join(map(short_text, value))
    return f"{value:.7g}" if isinstance(value, float) else "unset" if value is None else str(value)
