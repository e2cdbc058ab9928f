"""What a run would be, before it is one: `train.py --explain` prints this text and draws the learning rate."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib.style
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from modeling_tinynet import TinyNetConfig
from training.config.ema_decay import half_life_steps
from training.config.train_config import FIELDS, TrainConfig, read_recipe, short_text
from training.data.sources import IMAGENET_COUNTS, is_imagenet, load_splits, num_samples
from training.errors import RunError
from training.loading.sampling import TrainingPlan
from training.modeling.build import model_config
from training.optim.lr_schedule import lr_schedule, warmup_remark
from training.reporting.curves import STYLE, write_png
from training.run.run_folder import default_run_name

Rows = list[tuple[str, str]]

RECIPES = Path(__file__).parents[1] / "configuration"
INITIAL_WEIGHTS_LEFT = 0.05  # below this share the EMA is about the run, and no longer about its start
FIRST_CHANGES, LATER_CHANGES = 8, 6  # learning rates shown one by one, and then as milestones
CURVE_POINTS = 5_000

# Fields that change where or how fast a run computes, not what it computes.
SAME_RESULT = {"rescale", "streaming", "channels_last", "compile", "image_column", "label_column"}


def explain(
    config: TrainConfig,
    *,
    num_train: int,
    num_classes: int,
    num_processes: int,
    model_config: TinyNetConfig,
) -> str:
    """Describe the run of `config` on `num_train` images of `num_classes` classes with `num_processes` processes.

    Args:
        model_config: the network that would be trained, with the overrides of `config` applied.

    Returns:
        Sections of aligned lines, for a terminal.

    Raises:
        RunError: the global batch cannot be made from these processes (see `sampling.TrainingPlan`).
    """
    plan = TrainingPlan(
        num_train, config.global_batch_size, config.per_device_batch_size, num_processes, config.drop_last
    )
    steps_per_epoch = plan.steps_per_epoch
    sections = {
        "Run": _run(config, plan, num_train, num_classes, num_processes, model_config),
        "Learning rate, from epoch ...": _learning_rates(config, steps_per_epoch),
        "EMA of the weights": _moving_average(config, steps_per_epoch),
        f"Differences from the published recipe of {_published_variant(model_config)}": _differences(
            config, model_config
        ),
    }
    width = max(len(label) for rows in sections.values() for label, _ in rows)
    return "\n\n".join(
        "\n".join([title, *(f"  {label:<{width}}  {value}".rstrip() for label, value in rows)])
        for title, rows in sections.items()
    )


def explain_run(config: TrainConfig, num_processes: int) -> None:
    """Prints what the run of `config` would be and draws its learning rate. ImageNet is not read: its size is known.

    Raises:
        DataError: the dataset is missing, or cannot be trained on.
        RunError: the run cannot be made of these values.
    """
    if is_imagenet(config.dataset):
        num_train, class_names = IMAGENET_COUNTS["train"], list(TinyNetConfig().id2label.values())
    else:
        splits = load_splits(config.dataset, **config.source())
        num_train, class_names = num_samples(splits.train), splits.class_names
    plan = TrainingPlan(
        num_train, config.global_batch_size, config.per_device_batch_size, num_processes, config.drop_last
    )
    text = explain(
        config,
        num_train=num_train,
        num_classes=len(class_names),
        num_processes=num_processes,
        model_config=model_config(config.model, class_names, **config.network()),
    )
    plot = Path(f"{default_run_name(config.model, config.dataset)}-learning-rate.png")
    try:
        save_lr_curve(
            plot,
            lr_schedule(config, plan.steps_per_epoch),
            total_steps=config.epochs * plan.steps_per_epoch,
            steps_per_epoch=plan.steps_per_epoch,
            title=f"Learning rate of {config.model}",
        )
    except OSError as error:
        raise RunError(f"{plot} cannot be written: {error.strerror or error}") from error
    print(f"{text}\n\nlearning rate curve: {plot}")


def save_lr_curve(
    path: str | Path, schedule: Callable[[int], float], *, total_steps: int, steps_per_epoch: int, title: str
) -> None:
    """Draw `schedule` over the epochs of a run into a PNG of 1200 x 700 pixels.

    Raises:
        OSError: `path` cannot be written.
    """
    evenly = {index * (total_steps - 1) // CURVE_POINTS for index in range(CURVE_POINTS + 1)}
    steps = sorted(evenly.union(range(0, total_steps, steps_per_epoch)))
    epochs = [step / steps_per_epoch for step in steps]
    lrs = [schedule(step) for step in steps]
    peak = lrs.index(max(lrs))
    with matplotlib.style.context(["default", STYLE]):
        figure = Figure(figsize=(12, 7), dpi=100, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        axes.plot(epochs, lrs, color="tab:green", linewidth=2, drawstyle="steps-post")  # a step has one rate
        axes.plot(
            [epochs[peak]], [lrs[peak]], "o", color="tab:red", label=f"peak {lrs[peak]:.6g}, epoch {epochs[peak]:.4g}"
        )
        axes.plot([epochs[-1]], [lrs[-1]], "s", color="tab:blue", label=f"last {lrs[-1]:.6g}")
        axes.set(title=title, xlabel="epochs", ylabel="learning rate", xlim=(0, total_steps / steps_per_epoch))
        axes.set_ylim(bottom=0)
        axes.legend(frameon=False)
        write_png(figure, path)


def _run(
    config: TrainConfig,
    plan: TrainingPlan,
    num_train: int,
    num_classes: int,
    num_processes: int,
    model_config: TinyNetConfig,
) -> Rows:
    dropped = num_train - plan.samples_per_epoch
    images_seen = config.epochs * plan.samples_per_epoch
    macs = model_config.macs
    parts = f"{num_processes} process{'' if num_processes == 1 else 'es'} x {config.per_device_batch_size} images"
    if plan.accumulation_steps > 1:
        parts += f" x {plan.accumulation_steps} accumulated"
    return [
        ("model", f"{config.model} at {model_config.image_size} px, {num_classes:,} classes"),
        ("parameters", f"{model_config.parameter_count:,}"),
        (
            "MACs",
            f"{macs / 1e6:,.1f} M per image forward, {3 * macs * images_seen:.1e} forward and backward for the run",
        ),
        ("training images", f"{num_train:,} of {config.dataset}"),
        ("global batch", f"{config.global_batch_size:,} = {parts}"),
        ("steps per epoch", f"{plan.steps_per_epoch:,}" + (f", {dropped:,} images left out" if dropped else "")),
        ("updates", f"{config.epochs * plan.steps_per_epoch:,} in {config.epochs} epochs"),
        ("images seen", f"{images_seen:,}"),
    ]


def _learning_rates(config: TrainConfig, steps_per_epoch: int) -> Rows:
    """The learning rate where it changes from one epoch to the next: the first changes, milestones, the last."""
    schedule = lr_schedule(config, steps_per_epoch)
    lrs = [schedule(epoch * steps_per_epoch) for epoch in range(config.epochs)]
    changes = [epoch for epoch in range(config.epochs) if epoch == 0 or lrs[epoch] != lrs[epoch - 1]]
    peak_step = max(_peak_candidates(config, steps_per_epoch), key=schedule)
    shown = _milestones(changes)
    rows = [(str(epoch), f"{lrs[epoch]:.6g}") for epoch in shown]
    if len(shown) < len(changes):
        rows.append(("", f"({len(changes)} values in all, {len(changes) - len(shown)} not shown)"))
    rows.append(("peak", f"{schedule(peak_step):.6g} in epoch {peak_step // steps_per_epoch}"))
    last_step = config.epochs * steps_per_epoch - 1
    rows.append(("last step", f"{schedule(last_step):.6g}"))
    if (scale := config.backbone_lr_scale) != 1:
        rows.append(
            ("backbone", f"x {scale:g}: peak {scale * schedule(peak_step):.6g}; the rates above are the classifier's")
        )
    if remark := warmup_remark(config, steps_per_epoch):
        rows.append(("remark", remark))
    return rows


def _peak_candidates(config: TrainConfig, steps_per_epoch: int) -> list[int]:
    """Steps one of which has the highest learning rate: the starts of epochs, and both sides of the warm-up's end."""
    warm = config.warmup_epochs * steps_per_epoch
    last = config.epochs * steps_per_epoch - 1
    return [min(step, last) for step in (*range(0, last + 1, steps_per_epoch), math.floor(warm), math.ceil(warm))]


def _milestones(changes: Sequence[int]) -> Sequence[int]:
    if len(changes) <= FIRST_CHANGES + LATER_CHANGES:
        return changes
    later = changes[FIRST_CHANGES:]
    return [
        *changes[:FIRST_CHANGES],
        *(later[round((index + 1) * len(later) / LATER_CHANGES) - 1] for index in range(LATER_CHANGES)),
    ]


def _moving_average(config: TrainConfig, steps_per_epoch: int) -> Rows:
    decay = config.ema_decay
    if decay == 0:
        return [("off", "ema_decay is 0")]
    half_life = half_life_steps(decay)
    needed = math.floor(math.log(INITIAL_WEIGHTS_LEFT) / math.log(decay)) + 1
    total = config.epochs * steps_per_epoch
    limit = f"{INITIAL_WEIGHTS_LEFT:.0%} of the initial weights"
    if needed <= total:
        first = f"after epoch {math.ceil(needed / steps_per_epoch)}, with less than {limit} left"
    else:
        first = f"never: {decay**total:.0%} of the initial weights are left at the end; lower ema_decay"
    return [
        ("half-life", f"{half_life:,.0f} updates = {half_life / steps_per_epoch:.2f} epochs"),
        ("means something", first),
        ("rule", f"{decay:.7g} ** {needed:,} updates leaves {limit}"),
    ]


def _published_variant(model_config: TinyNetConfig) -> str:
    return model_config.variant or "tinynet_a"


def _differences(config: TrainConfig, model_config: TinyNetConfig) -> Rows:
    """Fields that bear on the result and are not as published, as `published -> here`."""
    variant = _published_variant(model_config)
    recipe = TrainConfig(**read_recipe(RECIPES / f"{variant}.yaml"))
    network = TinyNetConfig.from_variant(variant)
    rows = []
    for name, field in FIELDS.items():
        if field.metadata["group"] == "run" or name in SAME_RESULT:
            continue
        published, here = getattr(recipe, name), getattr(config, name)
        if field.metadata["group"] == "model" and name != "model":
            published = getattr(network, name) if published is None else published
            here = getattr(model_config, name)
        elif name == "precision":
            published, here = published or "no", here or "no"
        if published != here:
            rows.append((name, f"{short_text(published)} -> {short_text(here)}"))
    return rows or [("none", "")]
