"""
What needs a GPU, in one command of at most ten minutes without network: the tests marked gpu, then training's speed.

    make gpu                                            # in .venv
    make gpu GPU_PYTHON=python3                         # with the PyTorch that the machine has
    python -m benchmarks.gpu --device cpu --dry_run     # every path with tiny shapes; the numbers mean nothing

Speed is that of the trainer's own optimizer step (`training.engine.step`) on random uint8 images that already lie on
the GPU: smoothed targets, color jitter and normalization, forward in bf16 and channels-last, cross-entropy, backward,
the gradient's norm, RMSProp, EMA. Here: this package's network, optimizer and EMA. timm: its network, its RMSpropTF as
its own factory builds it, and ModelEmaV3 with its defaults, in the same step. Both begin with the same weights.

The two take turns, the order swapped at each round; a round is as many steps as fill half a second here, and ends when
the GPU has finished. The ratio is the median over rounds of timm's time to ours, above 1 where ours is faster. CUDA
events between the parts of a step tell what each part takes without making the next one wait for it; `other_share` is
the share of the step that is neither forward nor backward.

Results go to gpu.json, written anew after each case, so that an interrupted run leaves what it has measured. A test or
case that fails is recorded with its text, and the others still run; the exit code is then 1. Where there is no timm,
`timm` is null. Cases that the time budget leaves no room for are recorded as skipped.
"""

import argparse
import gc
import itertools
import math
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers.modeling_outputs import ImageClassifierOutput

from benchmarks.timing import interleaved, median_ratio
from modeling_tinynet import TinyNetConfig, TinyNetForImageClassification
from training.config.train_config import TrainConfig
from training.engine.step import Batch, OptimizerStep
from training.modeling.ema import ExponentialMovingAverage
from training.optim.optimizer import build_optimizer
from training.reporting.metrics import write_summary
from training.system.environment import environment
from training.transforms.device_transforms import DeviceTransform

ROOT = Path(__file__).parents[1]
PUBLISHED = TrainConfig()
NUM_CLASSES = 1000
PARTS = ("device_transform", "forward", "loss", "backward", "optimizer", "average")
TESTS_SHARE = 0.5  # of the budget, at most
EXPECTED_S = {False: 20.0, True: 120.0}  # a case without and with torch.compile; once seen, as long as the last one
TEXT_LIMIT = 3000  # characters of a failure


@dataclass(frozen=True)
class Scale:
    """How large a benchmark is."""

    batch_sizes: tuple[int, ...]
    image_size: int | None  # None: the variant's own
    rounds: int
    round_s: float
    backend: str  # of torch.compile


FULL = Scale(batch_sizes=(512, 128), image_size=None, rounds=9, round_s=0.5, backend="inductor")
DRY = Scale(batch_sizes=(4,), image_size=64, rounds=1, round_s=0.0, backend="aot_eager")


def main() -> None:
    arguments = parse_arguments()
    started_at = time.perf_counter()
    deadline = started_at + arguments.budget_s
    scale = DRY if arguments.dry_run else FULL
    report: dict[str, Any] = {
        "environment": environment() | ({"commit": arguments.commit} if arguments.commit else {}),
        "device": describe(arguments.device),
        "dry_run": arguments.dry_run,
        "precision": "bf16",
        "channels_last": True,
        "rounds": scale.rounds,
        "budget_s": arguments.budget_s,
    }

    def save() -> None:
        write_summary(path, report | {"elapsed_s": time.perf_counter() - started_at})

    arguments.output.mkdir(parents=True, exist_ok=True)
    path = arguments.output / "gpu.json"
    report["tests"] = run_tests(arguments.device, arguments.dry_run, TESTS_SHARE * arguments.budget_s)
    print_tests(report["tests"])
    save()

    torch.backends.cudnn.benchmark = True  # as train.py does
    report["training"] = []
    expected_s = EXPECTED_S.copy()
    for compiled in (False, True):
        for batch_size in scale.batch_sizes:
            for variant in arguments.variants:
                case_started_at = time.perf_counter()
                row = {"variant": variant, "batch_size": batch_size, "compile": compiled}
                if case_started_at + expected_s[compiled] > deadline:
                    row["skipped"] = "the time budget leaves no room"
                else:
                    row |= measured_or_failure(arguments.device, variant, batch_size, compiled, scale)
                    expected_s[compiled] = time.perf_counter() - case_started_at
                report["training"].append(row)
                print_row(row)
                save()
    print(f"written: {path}")
    if not report["tests"]["succeeded"] or any("failure" in row for row in report["training"]):
        sys.exit(1)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", nargs="+", default=["tinynet_a", "tinynet_c", "tinynet_e"])
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--dry_run", action="store_true", help="tiny shapes, and only the tests that take seconds")
    parser.add_argument("--budget_s", type=float, default=540.0, help="seconds for everything")
    parser.add_argument("--output", type=Path, help="folder of gpu.json (benchmarks/results; of a dry run: runs)")
    parser.add_argument("--commit", help="what the result is of, where the files are without their git history")
    arguments = parser.parse_args()
    if arguments.device == "cpu" and not arguments.dry_run:
        parser.error("on a CPU these numbers would mean nothing: add --dry_run")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch finds no CUDA device here; --device cpu --dry_run tries this script without one")
    if arguments.output is None:
        arguments.output = ROOT / "runs" if arguments.dry_run else ROOT / "benchmarks" / "results"
    return arguments


def describe(device: str) -> dict[str, Any]:
    if device == "cpu":
        return {"type": "cpu"}
    properties = torch.cuda.get_device_properties(device)
    return {
        "type": device,
        "name": properties.name,
        "memory_gb": properties.total_memory / 1e9,
        "capability": f"{properties.major}.{properties.minor}",
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }


# 1. The tests marked gpu.


def run_tests(device: str, dry_run: bool, limit_s: float) -> dict[str, Any]:
    """pytest's verdict on each test marked gpu, in a process of its own that ends with all it started at `limit_s`.

    A test file that cannot be imported, for want of a package that has nothing to do with a GPU, fails by itself.
    """
    selection = ["-m", "gpu and not slow", "tests/gpu"] if dry_run else ["-m", "gpu"]
    with tempfile.TemporaryDirectory() as folder:
        junit = Path(folder) / "junit.xml"
        command = [sys.executable, "-m", "pytest", "-v", "--tb=short", "-p", "no:cacheprovider"]
        command += ["--continue-on-collection-errors", f"--junitxml={junit}", *selection]
        started_at = time.perf_counter()
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | {"TINYNET_TEST_DEVICE": device, "PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            output, _ = process.communicate(timeout=limit_s)
            problem = None if junit.exists() else f"pytest ended with code {process.returncode} and without a result"
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            output, _ = process.communicate()
            problem = f"stopped after {limit_s:.0f} s"
        tests = read_junit(junit) if problem is None else []
    result = {
        "succeeded": process.returncode == 0 and bool(tests),
        "elapsed_s": time.perf_counter() - started_at,
        "tests": tests,
    }
    return result if problem is None else result | {"failure": f"{problem}\n{output[-TEXT_LIMIT:]}"}


def read_junit(path: Path) -> list[dict[str, Any]]:
    """Each test's name, outcome, seconds, and what pytest says of one that did not pass."""
    tests = []
    for case in ElementTree.parse(path).iter("testcase"):
        test = {"test": f"{case.get('classname')}::{case.get('name')}".lstrip(":"), "s": float(case.get("time", 0))}
        problem = next((child for child in case if child.tag in ("failure", "error", "skipped")), None)
        if problem is None:
            tests.append(test | {"outcome": "passed"})
        else:
            text = problem.text or problem.get("message", "")
            tests.append(test | {"outcome": problem.tag, "text": text[-TEXT_LIMIT:]})
    return tests


def print_tests(result: dict[str, Any]) -> None:
    outcomes = [test["outcome"] for test in result["tests"]]
    print(f"tests: {outcomes.count('passed')} of {len(outcomes)} passed in {result['elapsed_s']:.0f} s", flush=True)
    for test in result["tests"]:
        if test["outcome"] != "passed":
            print(f"{test['outcome']}: {test['test']}\n{test['text']}")
    if "failure" in result:
        print(result["failure"])


# 2. Training's speed.


@dataclass
class Marks:
    """Moments on the device, a list for each step under measurement."""

    device: str
    of_steps: list[list[Any]] = field(default_factory=list)

    def begin_step(self) -> None:
        self.of_steps.append([])
        self.mark()

    def mark(self) -> None:
        self.of_steps[-1].append(now(self.device))

    def part_seconds(self) -> list[list[float]]:
        """What each part of each step took, in the order of PARTS; to be called once the device has finished."""
        return [[seconds_between(start, end) for start, end in itertools.pairwise(marks)] for marks in self.of_steps]


class MarkedTransform(DeviceTransform):
    """Marks its end, which is the begin of the forward pass."""

    def __init__(self, marks: Marks, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.marks = marks

    def __call__(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        result = super().__call__(*args, **kwargs)
        self.marks.mark()
        return result


class MarkedModel(nn.Module):
    """A network whose output has `.logits` and whose end is marked."""

    def __init__(self, marks: Marks, network: nn.Module) -> None:
        super().__init__()
        self.marks = marks
        self.network = network

    def forward(self, pixel_values: Tensor) -> ImageClassifierOutput:
        output = self.network(pixel_values)
        self.marks.mark()
        return ImageClassifierOutput(logits=output) if isinstance(output, Tensor) else output


class MarkedAccelerator(Accelerator):
    """Marks begin and end of the backward pass."""

    def __init__(self, marks: Marks) -> None:
        super().__init__(cpu=marks.device == "cpu", mixed_precision="bf16")
        self.marks = marks

    def backward(self, loss: Tensor, **kwargs: Any) -> None:
        self.marks.mark()
        super().backward(loss, **kwargs)
        self.marks.mark()


class MarkedAverage:
    """An EMA, ours or timm's, with a mark at the begin of its update."""

    def __init__(self, marks: Marks, average: Any) -> None:
        self.marks = marks
        self.average = average

    def update(self, network: nn.Module) -> None:
        self.marks.mark()
        self.average.update(network)


@dataclass
class Contestant:
    """One way to train: the trainer's own step with a network, an optimizer and an EMA, which note when they are."""

    step: OptimizerStep
    marks: Marks

    @classmethod
    def of(
        cls, device: str, network: nn.Module, optimizer: torch.optim.Optimizer, average: Any, config: TinyNetConfig
    ) -> "Contestant":
        marks = Marks(device)
        accelerator = MarkedAccelerator(marks)
        step = OptimizerStep(
            accelerator,
            accelerator.prepare_model(MarkedModel(marks, network), device_placement=False),
            network,
            accelerator.prepare_optimizer(optimizer, device_placement=False),
            MarkedAverage(marks, average),
            MarkedTransform(marks, config.image_mean, config.image_std, **PUBLISHED.batch_transform()),
            num_classes=NUM_CLASSES,
            label_smoothing=PUBLISHED.label_smoothing,
            max_grad_norm=PUBLISHED.max_grad_norm,
            seed=PUBLISHED.seed,
        )
        return cls(step, marks)


def measured_or_failure(device: str, variant: str, batch_size: int, compiled: bool, scale: Scale) -> dict[str, Any]:
    try:
        # torch.compile gives up on code that it has met in too many forms, and each network is another form.
        torch.compiler.reset()
        gc.collect()
        torch.cuda.empty_cache()
        return measure(device, variant, batch_size, compiled, scale)
    except Exception:  # of whatever kind: an error of CUDA, the compiler or timm must not cost the other cases
        return {"failure": traceback.format_exc()[-TEXT_LIMIT:]}


def measure(device: str, variant: str, batch_size: int, compiled: bool, scale: Scale) -> dict[str, Any]:
    """One case: both contestants in turn; timm's figures are None where timm cannot be imported."""
    torch.manual_seed(0)
    config = TinyNetConfig.from_variant(variant)
    size = scale.image_size or config.image_size
    batch = {
        "pixel_values": torch.randint(256, (batch_size, 3, size, size), dtype=torch.uint8, device=device),
        "labels": torch.randint(NUM_CLASSES, (batch_size,), device=device),
        "index": torch.arange(batch_size),
        "replaced": torch.zeros(batch_size, dtype=torch.bool),
    }
    network = TinyNetForImageClassification(config)
    contestants = {"ours": ours(network, device)}
    try:
        contestants["timm"] = timms(variant, network, device)
    except ImportError as error:
        print(f"without timm: {error}")

    first_step_s = {}
    for name, contestant in contestants.items():
        if compiled:
            contestant.step.network.compile(backend=scale.backend)
        start = time.perf_counter()
        training_steps(contestant, batch, 1)
        first_step_s[name] = time.perf_counter() - start
        training_steps(contestant, batch, 1)  # compiling and cuDNN's choice of kernels are over
    start = time.perf_counter()
    training_steps(contestants["ours"], batch, 1)
    steps = max(2, math.ceil(scale.round_s / (time.perf_counter() - start)))

    def round_of(contestant: Contestant) -> Callable[[], None]:
        return lambda: training_steps(contestant, batch, steps)

    times = interleaved({name: round_of(contestant) for name, contestant in contestants.items()}, scale.rounds)
    figures = {
        name: summary(contestant, times[name], steps, batch_size) | {"first_step_s": first_step_s[name]}
        for name, contestant in contestants.items()
    }
    return {
        "image_size": size,
        "steps_per_round": steps,
        "ours": figures["ours"],
        "timm": figures.get("timm"),
        "ratio": median_ratio(times["timm"], times["ours"]) if "timm" in times else None,
    }


def ours(network: TinyNetForImageClassification, device: str) -> Contestant:
    network.to(device, memory_format=torch.channels_last).train()
    optimizer = build_optimizer(network, **PUBLISHED.update())
    average = ExponentialMovingAverage(network, PUBLISHED.ema_decay)
    return Contestant.of(device, network, optimizer, average, network.config)


def timms(variant: str, same_weights: TinyNetForImageClassification, device: str) -> Contestant:
    """Raises ImportError where there is no timm."""
    import timm
    import timm.utils

    from benchmarks.timm_rmsprop import timm_rmsprop

    config = same_weights.config
    network = timm.create_model(variant, drop_rate=config.dropout_rate, num_classes=NUM_CLASSES)
    network.load_state_dict({name.removeprefix("tinynet."): t for name, t in same_weights.state_dict().items()})
    network.to(device, memory_format=torch.channels_last).train()
    optimizer = timm_rmsprop(network, PUBLISHED, lr=PUBLISHED.warmup_lr)
    average = timm.utils.ModelEmaV3(network, decay=PUBLISHED.ema_decay)
    return Contestant.of(device, network, optimizer, average, config)


def training_steps(contestant: Contestant, batch: Batch, steps: int) -> None:
    """Trains, waits for the device, and notes what the parts of each step took."""
    step, marks = contestant.step, contestant.marks
    num_samples = len(batch["index"])
    for _ in range(steps):
        marks.begin_step()
        gradients = step.train_step(itertools.repeat(batch), epoch=0, step=0, micro_batches=1, num_samples=num_samples)
        step.apply_update(PUBLISHED.warmup_lr)
        marks.mark()
    if not math.isfinite(gradients.loss.item()):  # which waits for the forward pass; the rest is waited for below
        raise RuntimeError(f"the loss is {gradients.loss.item()}: what was measured is no training")
    if step.accelerator.device.type == "cuda":
        torch.cuda.synchronize()


def now(device: str) -> Any:
    """A moment on the device: an event in the stream of a GPU, which nothing waits for, or the clock."""
    if device != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def seconds_between(start: Any, end: Any) -> float:
    return end - start if isinstance(start, float) else start.elapsed_time(end) / 1e3


def summary(contestant: Contestant, round_seconds: list[float], steps: int, batch_size: int) -> dict[str, Any]:
    step_s = statistics.median(round_seconds) / steps
    counted = contestant.marks.part_seconds()[-len(round_seconds) * steps :]  # before them: warm-up
    parts = {part: statistics.median(seconds) for part, seconds in zip(PARTS, zip(*counted, strict=True), strict=True)}
    return {
        "images_per_s": batch_size / step_s,
        "step_ms": 1e3 * step_s,
        "round_step_ms": [1e3 * seconds / steps for seconds in round_seconds],
        "parts_ms": {part: 1e3 * seconds for part, seconds in parts.items()},
        "other_share": 1 - (parts["forward"] + parts["backward"]) / sum(parts.values()),
    }


def print_row(row: dict[str, Any]) -> None:
    case = f"{row['variant']}, batch {row['batch_size']}{', compiled' if row['compile'] else ''}"
    if "ours" not in row:
        print(f"{case}: {row.get('skipped') or row['failure']}", flush=True)
        return
    sides = [
        f"{name} {row[name]['images_per_s']:,.0f} images/s, {100 * row[name]['other_share']:.0f} % beside the network"
        for name in ("ours", "timm")
        if row[name]
    ]
    ratio = f", ratio {row['ratio']:.3f}" if row["ratio"] else ""
    print(f"{case}: {'; '.join(sides)}{ratio}", flush=True)


if __name__ == "__main__":
    main()
