import os
import time
from dataclasses import replace
from pathlib import Path

import datasets
import pytest
from accelerate import Accelerator

from tests import launcher
from tests.photos import write_photo_folder
from training.command import run_command
from training.config.train_config import TrainConfig
from training.data import decoding
from training.data.sources import Splits, load_splits
from training.doctor.diagnosis import advice, main, report
from training.doctor.rates import Rates, measure_rates
from training.engine.step import OptimizerStep
from training.loading.sampling import TrainingPlan

ROOT = Path(__file__).parents[3]
CLASSES = ["cat", "coffee"]
SMALL_RUN = ["--model", "tinynet_e", "--image_size", "32", "--global_batch_size", "8", "--per_device_batch_size", "8"]
RATES = Rates(
    read=4000.0,
    decode=800.0,
    augment=500.0,
    loader=900.0,
    transfer=50_000.0,
    step=3000.0,
    num_workers=2,
    batch_size=128,
    image_size=106,
    device="cuda",
    shorter_side=375.0,
    image_bytes=110_000.0,
    settings={"precision": "no", "compile": False, "channels_last": True, "streaming": False},
)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    root = tmp_path_factory.mktemp("photos") / "photos"
    write_photo_folder(root, crops_per_class=8, val_crops_per_class=1, classes=CLASSES)
    return root


def command(*arguments):
    return launcher.run(["-m", "training.doctor", *arguments], env=os.environ | {"CUDA_VISIBLE_DEVICES": ""})


def test_every_part_is_measured_and_the_limit_named(photos):
    answer = command(*SMALL_RUN, "--lr", "0.01", "--dataset", photos, "--num_workers", "1", "--seconds", "1")
    assert answer.returncode == 0, answer.stderr
    assert "Traceback" not in answer.stderr
    lines = answer.stdout.splitlines()
    rows = {line.split()[0]: line for line in lines if line.startswith("  ")}
    assert list(rows) == ["read", "decode", "augment", "loader", "step"]  # on a CPU nothing has to be moved
    assert all("#" in row for row in rows.values())
    (limit,) = [name for name, row in rows.items() if row.endswith("<- the limit")]
    assert limit in ("loader", "step")
    assert any(line.startswith("- ") for line in lines)


def test_a_slow_source_is_seen_as_what_it_is(photos):
    """Rows that take 10 ms cannot come faster than a hundred a second; who says more has not waited for them."""
    stored = load_splits(str(photos)).train

    def rows(shards):
        for _ in shards:
            for row in stored:
                time.sleep(0.01)
                yield row

    stream = datasets.IterableDataset.from_generator(rows, features=stored.features, gen_kwargs={"shards": [0]})
    splits = Splits(stream, stream, CLASSES, "image", "label", "a slow stream")
    config = TrainConfig(
        model="tinynet_e",
        image_size=32,
        global_batch_size=8,
        per_device_batch_size=8,
        streaming=True,
        precision="no",
        num_workers=1,
    )
    plan = TrainingPlan(len(stored), 8, 8, drop_last=True)
    rates = measure_rates(config, splits, plan, Accelerator(cpu=True), seconds=1)
    assert 0 < rates.read <= 100
    assert rates.decode > rates.read
    hints = advice(replace(rates, device="cuda", step=1e9), cores=1)
    assert any("Parquet" in hint for hint in hints)


def test_the_step_is_the_trainers_own_and_leaves_the_accelerator_as_it_was(photos, monkeypatch):
    """What the doctor measures cannot drift from what a run does; and the run's own model is prepared only later."""
    updates, apply_update = [], OptimizerStep.apply_update
    monkeypatch.setattr(OptimizerStep, "apply_update", lambda self, lr: updates.append(self) or apply_update(self, lr))
    config = TrainConfig(
        **{"model": "tinynet_e", "image_size": 32, "global_batch_size": 8, "per_device_batch_size": 4},
        **{"precision": "no", "num_workers": 0},
    )
    accelerator = Accelerator(cpu=True)
    rates = measure_rates(config, load_splits(str(photos)), TrainingPlan(16, 8, 4), accelerator, seconds=0.6)
    assert rates.step > 0 and len(updates) >= 2
    assert accelerator._models == accelerator._optimizers == []


def test_bars_are_as_long_as_the_rates():
    lines = report(replace(RATES, augment=450.0, loader=900.0, step=1800.0), cores=2).splitlines()
    marks = {line.split()[0]: line.count("#") for line in lines if line.startswith("  ")}
    assert marks["step"] == 2 * marks["loader"] == 4 * marks["augment"]
    assert "The loader is the limit: the network would wait for 50 % of the time." in lines
    assert [line.split()[0] for line in lines if ">" in line] == ["read", "transfer"]  # longer than the image


@pytest.mark.parametrize(
    ("changes", "cores", "expected"),
    [
        ({}, 8, "--num_workers 8"),
        ({"read": 100.0}, 2, "a local disk"),
        ({}, 2, "python -m training.prepare --shorter_side 256"),
        ({"image_size": 260, "shorter_side": 2000.0}, 2, "python -m training.prepare --shorter_side 297"),
        ({"shorter_side": 256.0}, 2, "more cores"),
        ({"device": "cpu", "transfer": None}, 2, "a GPU"),
        ({"step": 100.0}, 2, "--compile"),
        ({"step": 100.0}, 2, "--precision bf16"),
        ({"step": 100.0, "device": "cpu"}, 2, "a GPU"),
        ({"transfer": 50.0}, 2, "bus"),
    ],
)
def test_advice_fits_the_limit(changes, cores, expected):
    rates = replace(RATES, **changes)
    hints = advice(rates, cores)
    assert any(expected in hint for hint in hints)
    assert all(f"- {hint}" in report(rates, cores).splitlines() for hint in hints)


def test_what_is_done_already_is_not_advised():
    hints = " ".join(advice(replace(RATES, shorter_side=256.0), cores=2))
    assert "--num_workers" not in hints and "prepare" not in hints
    settings = {"precision": "bf16", "compile": True, "channels_last": True, "streaming": False}
    hints = " ".join(advice(replace(RATES, step=100.0, settings=settings), cores=2))
    assert "--compile" not in hints and "bf16" not in hints


def test_a_faster_decoder_is_advised_where_it_is_missing(monkeypatch):
    assert "simplejpeg" not in " ".join(advice(RATES, cores=2))
    monkeypatch.setattr(decoding, "simplejpeg", None)
    assert "pip install simplejpeg" in " ".join(advice(RATES, cores=2))


def test_a_bad_image_is_one_sentence(tmp_path, capsys):
    write_photo_folder(tmp_path / "photos", crops_per_class=8, val_crops_per_class=1, classes=CLASSES)
    for image in (tmp_path / "photos" / "train").glob("*/*.jpg"):
        image.write_bytes(b"\xff\xd8 not much more")
    data = ["--dataset", str(tmp_path / "photos"), "--lr", "0.01", "--num_workers", "0", "--seconds", "1"]
    assert run_command(main, [*SMALL_RUN, *data]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {tmp_path / 'photos' / 'train'}")
    assert error.endswith(".jpg (a training image): is not an image, or its format is unknown to Pillow\n")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--lr", "fast"], "error: lr must be a valid number, got 'fast'"),
        (["--dataset", "/nowhere"], "error: folder /nowhere does not exist"),
        (["--dataset", "digits", "--global_batch_size", "4096", "--rescale"], "fewer than one global batch of 4096"),
    ],
)
def test_mistakes_are_one_sentence(arguments, sentence, capsys):
    assert run_command(main, arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert sentence in line


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--secnods", "3"], "unknown flag --secnods"),
        (["--seconds", "0"], "--seconds: must be a whole number of at least 1, got '0'"),
    ],
)
def test_wrong_flags_are_exit_code_2(arguments, sentence, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert sentence in capsys.readouterr().err
