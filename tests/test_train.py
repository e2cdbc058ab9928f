"""train.py as people start it: real digits, real checkpoints, and for one run each plain python and torchrun."""

import json
import math
import re
from pathlib import Path

import pytest
import safetensors.torch
import torch
from PIL import Image
from sklearn.datasets import load_digits
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from modeling_tinynet import TinyNetConfig, TinyNetForImageClassification, TinyNetImageProcessor
from tests.training_jobs import AUGMENTED, PYTHON, RECIPE, ROOT, SMALL, TORCHRUN, final_tensors, train, trained
from training.config.train_config import parse_config
from training.reporting.metrics import read_metrics

WHOLE = (*SMALL, *AUGMENTED, "--epochs", "2", "--num_workers", "0")


def batches_of(log_folder: Path, ranks: int) -> list[list[tuple[int, str]]]:
    """For each step the (index, pixel hash) pairs of the global batch, rank by rank and piece by piece."""
    texts = [(log_folder / f"rank{rank}.jsonl").read_text() for rank in range(ranks)]
    logs = [[json.loads(line) for line in text.splitlines()] for text in texts]
    steps: dict[int, list] = {}
    for pieces in zip(*logs, strict=True):
        for piece in pieces:
            steps.setdefault(piece["step"], []).extend(zip(piece["indices"], piece["pixels"], strict=True))
    return [steps[step] for step in sorted(steps)]


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory) -> tuple[Path, str]:
    """Two epochs in one go, without loader workers."""
    folder = tmp_path_factory.mktemp("whole")
    output = trained(*WHOLE, command=PYTHON, folder=folder)
    return folder / "runs" / "tinynet_e-digits", output


def test_a_run_leaves_everything(whole_run):
    folder, output = whole_run
    assert sorted(path.name for path in folder.iterdir()) == [
        ".lock",
        "best",
        "checkpoints",
        "curves.png",
        "last",
        "metrics.jsonl",
        "recipe.yaml",
        "summary.json",
    ]
    config, _ = parse_config(["--recipe", str(folder / "recipe.yaml")])
    assert (config.model, config.epochs, config.image_size) == ("tinynet_e", 2, 32)
    assert Image.open(folder / "curves.png").size >= (800, 500)

    records = read_metrics(folder / "metrics.jsonl")
    epochs = [record for record in records if record["kind"] == "epoch"]
    steps = [record for record in records if record["kind"] == "step"]
    assert [record["epoch"] for record in epochs] == [1, 2]
    assert all(math.isfinite(record["loss"]) and record["grad_norm"] > 0 for record in steps)
    assert {"data", "forward_backward", "optimizer", "evaluation"} <= set(epochs[0]["time_shares"])

    summary = json.loads((folder / "summary.json").read_text())
    assert summary["best"]["n"] == summary["num_validation"] == epochs[1]["raw"]["n"] == epochs[1]["ema"]["n"]
    assert summary["steps"] == steps[-1]["step"] == 2 * math.ceil(summary["num_train"] / 32)
    for name in ("best", "last"):
        model = TinyNetForImageClassification.from_pretrained(folder / name)
        assert model.config.id2label == {index: str(index) for index in range(10)}
        assert TinyNetImageProcessor.from_pretrained(folder / name).crop_size["height"] == 32
    assert not [path for path in folder.rglob("*") if path.suffix in (".pkl", ".pt", ".pth", ".bin")]

    assert "top-1 raw" in output and "images/s" in output and "time:" in output
    assert 'pipeline("image-classification"' in output
    best = (summary["best"]["top_1_correct"], summary["best"]["n"])
    assert f"top-1 {best[0]}/{best[1]} = {100 * best[0] / best[1]:.3f} %" in output


def test_best_is_what_the_log_says_it_is(whole_run):
    folder, _ = whole_run
    best = json.loads((folder / "summary.json").read_text())["best"]
    epochs = [record for record in read_metrics(folder / "metrics.jsonl") if record["kind"] == "epoch"]
    assert best["top_1_correct"] == max(e[weights]["top_1_correct"] for e in epochs for weights in ("raw", "ema"))
    assert epochs[best["epoch"] - 1][best["weights"]]["top_1_correct"] == best["top_1_correct"]


@pytest.mark.fault("28 no, two and four loader workers")
@pytest.mark.parametrize("workers", [2, pytest.param(4, marks=pytest.mark.only_thorough)])
def test_any_number_of_workers_gives_the_same_weights_also_after_a_measurement(whole_run, workers, tmp_path):
    assert "<- the limit" in trained(*WHOLE, "--num_workers", workers, "--doctor", 2, folder=tmp_path)
    tensors, reference = final_tensors(tmp_path / "runs" / "tinynet_e-digits"), final_tensors(whole_run[0])
    assert tensors.keys() == reference.keys()
    assert all(torch.equal(tensors[name], reference[name]) for name in reference)


def test_finished_run_is_left_alone(whole_run):
    folder, _ = whole_run
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("[!.]*")}
    result = train(*WHOLE, folder=folder.parents[1])
    assert result.returncode != 0
    assert result.stderr.strip().startswith("error: the run in runs/tinynet_e-digits is finished after 52 steps")
    assert len(result.stderr.strip().splitlines()) == 1
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("[!.]*")} == before


def test_another_recipe_does_not_continue_a_run(whole_run):
    result = train(*WHOLE, "--epochs", "3", "--weight_decay", "0.5", folder=whole_run[0].parents[1])
    assert result.returncode != 0
    assert "holds another run (weight_decay 0.01 -> 0.5)" in result.stderr


def test_a_branch_from_a_checkpoint_ends_like_the_run_it_left(whole_run, tmp_path):
    middle = min((whole_run[0] / "checkpoints").glob("step-*"))
    trained(*WHOLE, "--resume", middle, "--run_name", "branch", folder=tmp_path)
    folder = tmp_path / "runs" / "branch"
    tensors, reference = final_tensors(folder), final_tensors(whole_run[0])
    assert all(torch.equal(tensors[name], reference[name]) for name in reference)
    assert sorted(path.name for path in folder.iterdir()) == sorted(path.name for path in whole_run[0].iterdir())


# A batch cut in another way: two ranks, and accumulation. BatchNorm is frozen, since it knows its micro-batch.

FROZEN = (
    *SMALL,
    *(
        "--epochs",
        "1",
        "--num_workers",
        "0",
        "--dropout_rate",
        "0",
        "--color_jitter",
        "0.4",
        "--horizontal_flip",
        "0.5",
    ),
    *("--optimizer", "rmsprop", "--optimizer_eps", "1e-3", "--ema_decay", "0.9"),
    *("--schedule", "staircase", "--warmup_epochs", "0", "--decay_rate", "1"),
)


@pytest.fixture(scope="module")
def fine_tuned(tmp_path_factory) -> tuple[Path, str]:
    """A run from a saved model whose backbone's learning rate is next to nothing: its folder and its output."""
    folder = tmp_path_factory.mktemp("fine_tuned")
    config = TinyNetConfig.from_variant("tinynet_e", image_size=32, num_labels=10)
    TinyNetForImageClassification(config).save_pretrained(folder / "model")
    sizes = {"size": {"shortest_edge": 40}, "crop_size": {"height": 36, "width": 36}}
    processor = TinyNetImageProcessor(image_mean=[0.5, 0.5, 0.5], image_std=[0.25, 0.25, 0.25], **sizes)
    processor.save_pretrained(folder / "model")
    recipe = ROOT / "configuration" / "finetune.yaml"  # which leaves the image size to the model
    flags = ("--recipe", recipe, "--dataset", "./digits", "--model", "./model", "--run_name", "run")
    flags += ("--epochs", 1, "--warmup_epochs", 0, "--num_workers", 0)
    flags += ("--backbone_lr_scale", 1e-9, "--log_every_steps", 1)
    return folder, trained(*flags, folder=folder)


def test_a_saved_models_image_processor_decides_and_is_saved_again(fine_tuned):
    """Unlike its config.json, which says ImageNet's mean and std, 32 px, and 7/8 of the image."""
    folder, output = fine_tuned
    processor = TinyNetImageProcessor.from_pretrained(folder / "model")
    assert "at 36 px" in output
    assert "mean 0.5 0.5 0.5 and std 0.25 0.25 0.25 as its image processor states" in output
    for name in ("best", "last"):
        saved = folder / "runs" / "run" / name
        assert TinyNetImageProcessor.from_pretrained(saved).to_dict() == processor.to_dict()
        assert TinyNetConfig.from_pretrained(saved).resize_size == 40


def test_the_backbone_learns_at_its_own_rate(fine_tuned):
    folder, _ = fine_tuned
    records = [record for record in read_metrics(folder / "runs/run/metrics.jsonl") if record["kind"] == "step"]
    assert len(records) == 13
    assert [record["lr_backbone"] for record in records] == [record["lr"] * 1e-9 for record in records]
    assert records[0]["lr"] == 5e-4 > records[-1]["lr"]
    initial = safetensors.torch.load_file(folder / "model" / "model.safetensors")
    trained_model = TinyNetForImageClassification.from_pretrained(folder / "runs/run/last")
    for name, p in trained_model.tinynet.named_parameters():
        assert (p - initial[name]).abs().max() < 1e-7, name


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory) -> Path:
    """TinyNet-E with the digits' BatchNorm statistics: frozen at their initial values nothing would be learned."""
    folder = tmp_path_factory.mktemp("calibrated")
    names = {index: str(index) for index in range(10)}
    # A large epsilon, so that a channel which is constant on these images does not explode on others.
    config = TinyNetConfig.from_variant("tinynet_e", image_size=32, id2label=names, batch_norm_eps=0.1)
    config.batch_norm_momentum = 1.0
    torch.manual_seed(0)
    model = TinyNetForImageClassification(config).train()
    images = [digit.repeat(8, 0).repeat(8, 1).astype("uint8")[..., None] * 15 for digit in load_digits().images[:256]]
    with torch.no_grad():
        model(TinyNetImageProcessor.from_config(config)(images, return_tensors="pt")["pixel_values"])
    model.save_pretrained(folder)
    return folder


def frozen_run(model: Path, folder: Path, *arguments, **options) -> Path:
    script = ROOT / "tests" / "frozen_train.py"
    flags = (*FROZEN, "--model", model, "--run_name", "run", *arguments)
    trained(folder, *flags, script=script, folder=folder, **options)
    return folder


@pytest.fixture(scope="module")
def one_process(calibrated, tmp_path_factory) -> Path:
    return frozen_run(calibrated, tmp_path_factory.mktemp("one"), "--lr", "1e-4")


@pytest.mark.parametrize(("processes", "per_device"), [(2, 16), (1, 8)], ids=["two ranks x 16", "four times 8"])
def test_a_global_batch_cut_otherwise_trains_the_same(calibrated, one_process, processes, per_device, tmp_path):
    flags = ("--lr", "1e-4", "--per_device_batch_size", per_device)
    frozen_run(calibrated, tmp_path, *flags, command=TORCHRUN if processes == 2 else None)
    batches, reference = batches_of(tmp_path, processes), batches_of(one_process, 1)
    assert batches == reference
    assert len(batches) == 26
    initial = safetensors.torch.load_file(calibrated / "model.safetensors")
    tensors, reference = final_tensors(tmp_path / "runs/run"), final_tensors(one_process / "runs/run")
    for name, tensor in reference.items():
        key = name.removeprefix("model.").removeprefix("tinynet.")
        if name.startswith("model.") and tensor.ndim > 1:
            assert (tensor - initial[key]).abs().max() > 1e-4, f"{name} has not learned"
        assert (tensors[name] - tensor).abs().max() < 1e-5, name


def test_accumulated_gradients_are_those_of_the_whole_batch(calibrated, tmp_path):
    """26 steps of 4 micro-batches and, in the last, of one: at each step the gradient of the whole batch."""
    for name, per_device in (("whole", 32), ("accumulated", 8)):
        (tmp_path / name).mkdir()
        # With this learning rate the weights stay as they are, so that the gradients of all steps can be compared.
        frozen_run(calibrated, tmp_path / name, "--lr", "1e-12", "--per_device_batch_size", per_device)
    files = sorted(path.name for path in (tmp_path / "whole").glob("gradients-*"))
    assert len(files) == 26
    for file in files:
        whole, accumulated = (safetensors.torch.load_file(tmp_path / name / file) for name in ("whole", "accumulated"))
        whole, difference = (
            torch.cat([tensor.double().flatten() for tensor in tensors])
            for tensors in (whole.values(), [accumulated[name] - whole[name] for name in whole])
        )
        assert whole.norm() > 0.1
        assert difference.norm() < 1e-6 * whole.norm(), file


def test_bf16_autocast_trains_and_tensorboard_follows(tmp_path):
    losses = {}
    for precision in ("no", "bf16"):
        flags = ("--epochs", "1", "--precision", precision, "--log_every_steps", "1", "--run_name", precision)
        flags += ("--lr", "0.0005", "--num_workers", "0", "--ema_decay", "0", "--report_to", "tensorboard")
        trained(*SMALL, *flags, folder=tmp_path)
        records = read_metrics(tmp_path / "runs" / precision / "metrics.jsonl")
        losses[precision] = [record["loss"] for record in records if record["kind"] == "step"]
        tracked = EventAccumulator(str(tmp_path / "runs" / precision / "tinynet")).Reload()
        assert [event.value for event in tracked.Scalars("loss")] == pytest.approx(losses[precision], rel=1e-6)
    assert sum(losses["bf16"][-5:]) < sum(losses["bf16"][:5])
    assert losses["bf16"] != losses["no"]
    assert losses["bf16"][0] == pytest.approx(losses["no"][0], rel=0.02)
    weights = safetensors.torch.load_file(tmp_path / "runs/bf16/last/model.safetensors")
    assert weights["conv_stem.weight"].dtype == torch.float32


# Mistakes: one sentence, an exit code that is not 0, nothing overwritten.


def write_image(path: Path, value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 40), (value, value, value)).save(path)


def image_folder(root: Path, **classes: int) -> Path:
    for name, count in classes.items():
        (root / "train" / name).mkdir(parents=True)
        for index in range(count):
            write_image(root / "train" / name / f"{index}.png", 20 * index)
            write_image(root / "val" / name / f"{index}.png", 20 * index)
    return root


MISTAKES = {
    "unknown recipe key": (
        ["--recipe", "broken.yaml"],
        "broken.yaml:2: unknown key 'learning_rate'; did you mean lr?",
    ),
    "misspelled flag": (["--wieght_decay", "0"], "unknown flag --wieght_decay; did you mean --weight_decay?"),
    "EMA decay out of range": (["--ema_decay", "1.5"], "ema_decay must be less than 1, got '1.5'"),
    "batch that does not divide": (
        [*RECIPE, "--per_device_batch_size", "48"],
        "global_batch_size must be a multiple of per_device_batch_size, got 64 and 48",
    ),
    "another batch without --rescale": ([*RECIPE, "--global_batch_size", "128"], "add --rescale"),
    "missing folder": ([*RECIPE, "--dataset", "./no/such/folder"], "./no/such/folder"),
    "empty class": ([*RECIPE, "--dataset", "empty_class"], "cats"),
    "non-image file": (
        [*SMALL, "--dataset", "bad_file", "--global_batch_size", "4", "--per_device_batch_size", "4"],
        "bad.png",
    ),
    "missing model": ([*RECIPE, "--model", "./no/such/model"], "./no/such/model"),
    "missing model to measure": ([*RECIPE, "--model", "./no/such/model", "--doctor", "1"], "./no/such/model"),
    "image too small": ([*RECIPE, "--image_size", "16"], "image_size must be at least 32 pixels"),
    "a single value of each channel": (
        [*SMALL, "--dataset", "two_classes", "--global_batch_size", "4", "--per_device_batch_size", "1"],
        "per_device_batch_size 1 at 32 pixels leaves BatchNorm a single value of each channel",
    ),
    "fp16 on a CPU": ([*RECIPE, "--precision", "fp16"], "precision fp16 needs a GPU"),
    "tracker that is not there": ([*RECIPE, "--report_to", "wandb"], "wandb"),
    "stream with a short batch": ([*RECIPE, "--streaming"], "streaming needs drop_last"),
    "no checkpoint": ([*RECIPE, "--resume", "must"], "there is no checkpoint in runs/tinynet_e-digits"),
    # A file where the folder should be stands for a lack of permission, which root would not notice.
    "no write permission": ([*RECIPE, "--output_dir", "in_the_way"], "in_the_way"),
}
BUGS = {
    "in the plan": "from training.loading.sampling import TrainingPlan as T; T.steps_per_epoch = property(broken)",
    "in the network": "import modeling_tinynet; modeling_tinynet.TinyNetForImageClassification.__init__ = broken",
}
BROKEN_TRAIN = (
    f"import sys; sys.path.insert(0, {str(ROOT)!r})"
    + """
import train
def broken(*arguments, **named):
    raise ValueError("a bug")
{}
sys.exit(train.run(sys.argv[1:]))
"""
)


@pytest.fixture(scope="module")
def mistakes(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("mistakes")
    (folder / "broken.yaml").write_text("model: tinynet_e\nlearning_rate: 1\n")
    (folder / "in_the_way").write_text("a file")
    image_folder(folder / "empty_class", dogs=3, cats=0)
    image_folder(folder / "bad_file", dogs=3, cats=3)
    image_folder(folder / "two_classes", dogs=3, cats=3)
    (folder / "bad_file/train/cats/bad.png").write_bytes(b"this is no image")
    return folder


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_end_in_one_sentence(mistakes, name):
    arguments, words = MISTAKES[name]
    result = train(*arguments, folder=mistakes)
    assert words in result.stderr
    assert re.fullmatch("error: .*\n", result.stderr)
    assert result.returncode == 2
    assert (mistakes / "in_the_way").read_text() == "a file"  # nothing is overwritten
    assert not list(mistakes.rglob("*.safetensors"))


@pytest.mark.parametrize("bug", BUGS)
def test_a_bug_of_ours_keeps_its_traceback(bug, tmp_path):
    """A ValueError that nobody raised on purpose, from where a user's mistakes are found."""
    script = tmp_path / "broken_train.py"
    script.write_text(BROKEN_TRAIN.format(BUGS[bug]))
    result = train(*RECIPE, folder=tmp_path, script=script)
    assert "Traceback (most recent call last):" in result.stderr
    assert result.stderr.endswith("ValueError: a bug\n") and "\nerror: " not in result.stderr
    assert result.returncode == 1


def test_explain_says_what_the_published_run_would_be(tmp_path):
    output = trained("--recipe", ROOT / "configuration" / "tinynet_c.yaml", "--explain", folder=tmp_path)
    for figure in ("562,950", "0.04656", "5.54 epochs", "2,457,234", "99.5 M"):
        assert figure in output
    assert Image.open(tmp_path / "tinynet_c-imagenet-1k-learning-rate.png").size == (1200, 700)
