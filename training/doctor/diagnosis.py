"""Says what limits a training run: measures its parts for some seconds, draws them, and names what to do.

python -m training.doctor --recipe configuration/tinynet_c.yaml --dataset photos [--seconds 20]

It takes the flags of train.py, which `train.py --help` lists, and trains nothing that is kept. `train.py --doctor`
does the same at the start of a run, on all of its processes at once.
"""

import dataclasses
import os
from collections.abc import Sequence

import torch
import transformers
from accelerate import Accelerator

from training.command import CommandParser
from training.config.arguments import whole_number
from training.config.train_config import TrainConfig, available_cores, parse_config
from training.data import decoding
from training.data.sources import Splits, load_splits, num_samples
from training.doctor.rates import Rates, measure_rates
from training.engine.accelerator import set_up_backend
from training.errors import RunError
from training.loading.sampling import TrainingPlan
from training.reporting.console import format_speed

BAR_WIDTH = 40
PREPARED_SIDE = 256  # pixels, the default of training.prepare.prepare
RESIZED_TO_SEEN = 256 / 224  # the published evaluation's sides before and after its crop, or nearly
WORTH_IT = 1.2  # times the side of prepared copies: above, half of the images have 1.4 times the pixels of a copy's


def diagnose(
    config: TrainConfig, splits: Splits, plan: TrainingPlan, accelerator: Accelerator, *, seconds: float = 20.0
) -> str:
    """Measure the run of `config` and say what limits it; see `rates.measure_rates` for arguments and errors."""
    rates = measure_rates(config, splits, plan, accelerator, seconds=seconds)
    return report(rates, available_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


def report(rates: Rates, cores: int) -> str:
    """A bar chart of all rates, the limit, and what to do; `cores` are the processor's for this training process."""
    limit, next_rate = _limit(rates)
    rows = [
        ("read", "source alone, one process", rates.read),
        ("decode", "from memory, one process", rates.decode),
        ("augment", "decoding too, one process", rates.augment),
        ("loader", f"all of it, {_workers(rates.num_workers)}", rates.loader),
        *([("transfer", f"to the {rates.device}", rates.transfer)] if rates.transfer else []),
        ("step", f"network and update, {rates.device}", rates.step),
    ]
    longest = 2 * max(rates.loader, rates.step)
    lines = [f"images/s of each part alone; batch {rates.batch_size}, {rates.image_size} px"]
    for name, what, rate in rows:
        bar = "#" * max(1, round(BAR_WIDTH * min(rate, longest) / longest)) + (">" if rate > longest else "")
        mark = "  <- the limit" if name == limit else ""
        lines.append(f"  {name:<9}{what:<27}{format_speed(rate):>9}  {bar}{mark}")
    return "\n".join([*lines, _verdict(rates, limit, next_rate), *(f"- {hint}" for hint in advice(rates, cores))])


def _limit(rates: Rates) -> tuple[str, float]:
    """The slowest of the parts that run at the same time, and the rate of the next."""
    parts = {"loader": rates.loader, "step": rates.step}
    if rates.transfer:
        parts["transfer"] = rates.transfer
    limit, following, *_ = sorted(parts, key=parts.__getitem__)
    return limit, parts[following]


def _verdict(rates: Rates, limit: str, next_rate: float) -> str:
    if limit == "step":
        return f"The network is the limit: data could come {next_rate / rates.step:.1f} times as fast."
    waiting = 100 * (1 - getattr(rates, limit) / next_rate)
    part = "The loader" if limit == "loader" else f"The way to the {rates.device}"
    return f"{part} is the limit: the network would wait for {waiting:.0f} % of the time."


def advice(rates: Rates, cores: int) -> list[str]:
    """What to do about the limit: flags of train.py, and commands."""
    limit, _ = _limit(rates)
    if limit == "step":
        return _advice_on_step(rates)
    if limit == "transfer":
        return ["other processes may use the same bus; no flag changes it"]
    hints = []
    if rates.num_workers < cores:
        hints.append(f"--num_workers {cores}, one for each core that this process has for itself")
    read_s, decode_s, augment_s = 1 / rates.read, 1 / rates.decode, 1 / rates.augment
    if read_s > augment_s:
        hints.append(
            "reading takes longer than decoding: a local disk, or a copy in Parquet (python -m training.prepare), "
            "in place of a stream or of many small files"
        )
    if decoding.simplejpeg is None:
        hints.append("pip install simplejpeg, which decodes JPEGs faster than Pillow")
    side = max(PREPARED_SIDE, round(rates.image_size * RESIZED_TO_SEEN))
    if rates.shorter_side > WORTH_IT * side:
        hints.append(
            f"python -m training.prepare --shorter_side {side}: half of the images have a shorter side of "
            f"{rates.shorter_side:.0f} px or more, and {100 * decode_s / (read_s + augment_s):.0f} % of a worker's "
            "time is decoding"
        )
    if rates.device == "cpu":
        hints.append("a GPU: here, network and workers take the cores from each other")
    return hints or ["more cores: the workers use all of them, and decode as fast as they can"]


def _advice_on_step(rates: Rates) -> list[str]:
    if rates.device == "cpu":
        return ["a GPU; the data could not be the limit here"]
    hints = {
        "--precision bf16": rates.settings["precision"] == "no",
        "--compile": not rates.settings["compile"],
        "--channels_last": not rates.settings["channels_last"],
        "a larger --per_device_batch_size, as far as the device's memory goes": True,
    }
    return [hint for hint, helps in hints.items() if helps]


def _workers(number: int) -> str:
    return "in the training process" if number == 0 else f"{number} worker{'' if number == 1 else 's'}"


def main(argv: Sequence[str]) -> None:
    """Measure and print.

    Raises:
        UserError: the run cannot be made of these settings, or of this dataset or model.
    """
    own = CommandParser("python -m training.doctor", add_help=False, allow_abbrev=False)
    own.add_argument("--seconds", type=whole_number(1), default=20)
    options, rest = own.parse_known_args(argv)
    if not {"-h", "--help"}.isdisjoint(rest):
        print(__doc__.strip())
        return
    config, _ = parse_config(rest)
    transformers.utils.logging.disable_progress_bar()
    try:
        accelerator = Accelerator(cpu=not torch.accelerator.is_available(), mixed_precision=config.precision)
    except (ValueError, OSError) as error:  # what the device lacks, or the variables of a launcher
        raise RunError(str(error)) from error
    set_up_backend(accelerator.device)
    config = dataclasses.replace(config, precision=accelerator.mixed_precision)
    splits = load_splits(config.dataset, **config.source())
    print(splits.description, flush=True)
    plan = TrainingPlan(
        num_samples(splits.train), config.global_batch_size, config.per_device_batch_size, 1, config.drop_last
    )
    print(diagnose(config, splits, plan, accelerator, seconds=options.seconds))
