import hashlib
import io
import json
import os
import shutil
import signal
from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import PIL.Image
import PIL.ImageOps
import pyarrow.parquet as pq
import pytest

from tests import launcher
from tests.photos import write_photo_folder
from training.command import run_command
from training.data.sources import load_splits
from training.prepare.prepare import main
from training.prepare.prepared_copy import plan_shards

ROOT = Path(__file__).parents[3]
CLASSES = ["cat", "coffee", "pagoda"]


def encode(image, format, **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def noise(width, height, mode="RGB"):
    pixels = np.random.default_rng([width, height]).integers(0, 256, (height, width, 3), np.uint8)
    return PIL.Image.fromarray(pixels).convert(mode)


def turned(orientation):
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    return exif


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    root = tmp_path_factory.mktemp("photos") / "photos"
    write_photo_folder(root, crops_per_class=6, val_crops_per_class=2, classes=CLASSES)
    return root


def run(*arguments, workers=0):
    return run_command(main, [*map(str, arguments), "--num_workers", str(workers)])


def rows(folder, split):
    data = datasets.concatenate_datasets(
        [datasets.Dataset.from_parquet(str(file)) for file in sorted(folder.glob(f"{split}-*.parquet"))]
    )
    return data.cast_column("image", datasets.Image(decode=False))


def images(folder, split):
    return [PIL.Image.open(io.BytesIO(row["image"]["bytes"])) for row in rows(folder, split)]


def shards(folder):
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.glob("*.parquet")}


def test_the_copy_holds_every_image_once_with_its_class(photos, tmp_path, capsys):
    output = tmp_path / "copy"
    assert run("--dataset", photos, "--output", output, "--shorter_side", 100, "--shard_size", 5, workers=2) == 0
    source = load_splits(str(photos))
    copy = load_splits(str(output))
    assert copy.class_names == source.class_names == CLASSES
    for split in ("train", "validation"):
        before, after = getattr(source, split), getattr(copy, split)
        assert after["label"] == before["label"]
        names = [Path(picture["path"]) for picture in before["image"]]
        assert [picture["path"] for picture in after["image"]] == [f"{name.parent.name}/{name.name}" for name in names]
    features = datasets.Dataset.from_parquet(str(output / "train-00000-of-00004.parquet")).features
    assert features == {"image": datasets.Image(), "label": datasets.ClassLabel(names=CLASSES)}

    manifest = json.loads((output / "prepared.json").read_text())
    assert {shard["name"]: shard["sha256"] for shard in manifest["shards"]} == {
        name: hashlib.sha256(data).hexdigest() for name, (_, data) in shards(output).items()
    }
    assert manifest["splits"]["train"] == {"images": 18, "by_class": dict.fromkeys(CLASSES, 6)}
    assert manifest["splits"]["validation"] == {"images": 6, "by_class": dict.fromkeys(CLASSES, 2)}
    assert manifest["source"] == str(photos)
    assert set(os.listdir(output)) == {*shards(output), "prepared.json"}
    said = capsys.readouterr()
    assert "18 training and 6 validation images, verified" in said.out and "images/s" in said.out
    assert f"--dataset {output}" in said.out
    assert "24/24" in said.err and "images/s" in said.err


def test_images_are_pillows_own_resize_but_for_jpeg(photos, tmp_path):
    output = tmp_path / "copy"
    assert run("--dataset", photos, "--output", output, "--shorter_side", 100) == 0
    for row, made in zip(load_splits(str(photos)).train, images(output, "train"), strict=True):
        original = PIL.Image.open(row["image"]["path"])
        scale = 100 / min(original.size)
        size = tuple(int(side * scale + 1e-9) for side in original.size)
        assert made.format == "JPEG" and made.size == size and min(size) == 100
        expected = original.resize(size, PIL.Image.Resampling.BICUBIC)
        through_jpeg = PIL.Image.open(io.BytesIO(encode(expected, "JPEG", quality=95)))
        difference = np.abs(np.asarray(made, int) - np.asarray(through_jpeg, int))
        assert difference.mean() < 1  # the two kernels differ by single steps, which JPEG spreads


def test_validation_images_stay_as_they_are_unless_asked_for(photos, tmp_path):
    originals = [Path(row["image"]["path"]).read_bytes() for row in load_splits(str(photos)).validation]
    assert run("--dataset", photos, "--output", tmp_path / "a", "--shorter_side", 100) == 0
    assert [row["image"]["bytes"] for row in rows(tmp_path / "a", "validation")] == originals
    assert run("--dataset", photos, "--output", tmp_path / "b", "--shorter_side", 100, "--resize_validation") == 0
    assert {min(picture.size) for picture in images(tmp_path / "b", "validation")} == {100}


def test_small_plain_jpegs_are_copied_and_everything_else_becomes_one(tmp_path):
    small, gray = encode(noise(90, 64), "JPEG"), encode(noise(64, 64, "L"), "JPEG")
    upright = noise(80, 40)
    files = {
        "train/a/0.jpg": small,
        "train/a/1.jpg": gray,
        "train/a/2.png": encode(noise(30, 20), "PNG"),
        "train/b/0.jpg": encode(upright, "JPEG", exif=turned(6)),
        "train/b/1.jpg": encode(noise(64, 90, "CMYK"), "JPEG"),
        "val/a/0.jpg": small,
    }
    for name, data in files.items():
        (tmp_path / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "source" / name).write_bytes(data)
    assert run("--dataset", tmp_path / "source", "--output", tmp_path / "copy", "--shorter_side", 64) == 0
    stored = [row["image"]["bytes"] for row in rows(tmp_path / "copy", "train")]
    assert stored[:2] == [small, gray]
    made = images(tmp_path / "copy", "train")
    assert [picture.format for picture in made] == ["JPEG"] * 5
    assert [picture.mode for picture in made[2:]] == ["RGB"] * 3
    assert [picture.size for picture in made] == [(90, 64), (64, 64), (30, 20), (40, 80), (64, 90)]
    assert made[3].getexif().get(0x0112) is None
    expected = PIL.ImageOps.exif_transpose(PIL.Image.open(io.BytesIO(files["train/b/0.jpg"])))
    # As good as JPEG of this quality gets noise.
    again = PIL.Image.open(io.BytesIO(encode(expected, "JPEG", quality=95)))
    assert np.array_equal(np.asarray(made[3]), np.asarray(again))


def test_a_bad_image_stops_the_copy_or_is_left_out(photos, tmp_path, capsys):
    source = tmp_path / "source"
    write_photo_folder(source, crops_per_class=3, val_crops_per_class=1, classes=CLASSES)
    bad = source / "train" / "coffee" / "0001.jpg"
    bad.write_bytes(bad.read_bytes()[:500])
    output = tmp_path / "copy"
    assert run("--dataset", source, "--output", output) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: {bad} (sample 4 of train): ") and "--on_bad_image skip" in error
    assert not output.exists()

    assert run("--dataset", source, "--output", output, "--on_bad_image", "skip") == 2  # begun with other arguments
    assert "on_bad_image stop -> skip" in capsys.readouterr().err
    skipped = tmp_path / "skipped"
    assert run("--dataset", source, "--output", skipped, "--on_bad_image", "skip") == 0
    assert f"left out: {bad} (sample 4 of train)" in capsys.readouterr().out
    copy = load_splits(str(skipped))
    assert Counter(copy.train["label"]) == {0: 3, 1: 2, 2: 3}
    (left_out,) = json.loads((skipped / "prepared.json").read_text())["shards"][0]["left_out"]
    assert left_out["sample"] == 4 and str(bad) in left_out["reason"]


KILLED = """
import os, runpy, signal
from training.prepare import prepared_copy
write, written = prepared_copy.write_atomically, []
def write_and_die(path, data):
    write(path, data)
    written.append(path)
    if len(written) == 5:
        os.kill(os.getpid(), signal.SIGKILL)
prepared_copy.write_atomically = write_and_die
runpy.run_module("training.prepare", run_name="__main__")
"""


def test_a_killed_copy_goes_on_with_its_shards(tmp_path):
    source, output = tmp_path / "source", tmp_path / "copy"
    write_photo_folder(source, crops_per_class=60, val_crops_per_class=2, classes=CLASSES)
    partial = tmp_path / "copy.partial"
    arguments = ["--dataset", source, "--output", output, "--shorter_side", 100, "--shard_size", 4]
    # With the fifth shard in its place, but not in the manifest.
    assert launcher.run(["-c", KILLED, *arguments, "--num_workers", "1"]).returncode == -signal.SIGKILL
    listed = [shard["name"] for shard in json.loads((partial / "prepared.json").read_text())["shards"]]
    assert len(listed) == 4 and len(shards(partial)) == 5 and not output.exists()
    damaged, *intact = listed
    before = shards(partial)
    (partial / damaged).write_bytes(before[damaged][1][:-1])

    assert run(*arguments) == 0
    after = shards(output)
    assert {name: after[name] for name in intact} == {name: before[name] for name in intact}  # not written again
    assert after[damaged][1] == before[damaged][1]
    assert not partial.exists()
    assert run(*arguments[:2], "--output", tmp_path / "at once", *arguments[4:]) == 0
    at_once = shards(tmp_path / "at once")
    assert {name: data for name, (_, data) in after.items()} == {name: data for name, (_, data) in at_once.items()}


def test_a_complete_copy_is_verified_and_left_alone(photos, tmp_path, capsys):
    output = tmp_path / "copy"
    arguments = ["--dataset", photos, "--output", output, "--shorter_side", 100]
    assert run(*arguments) == 0
    before = shards(output)
    assert run(*arguments) == 0
    assert shards(output) == before
    assert run(*arguments[:4], "--shorter_side", 90) == 2
    assert "shorter_side 100 -> 90" in capsys.readouterr().err
    shard = output / "train-00000-of-00001.parquet"
    shard.write_bytes(shard.read_bytes()[:-1] + b"?")
    assert run(*arguments) == 2
    assert f"error: {shard} is damaged or missing" in capsys.readouterr().err


def as_the_version_before_wrote_it(manifest):
    """Images were called pictures, and the identity had no format."""
    del manifest["identity"]["format"]
    for facts in [*manifest["shards"], *manifest.get("splits", {}).values()]:
        facts["pictures"] = facts.pop("images")
    return manifest


def test_a_copy_of_the_version_before_trains_and_is_not_written_to(photos, tmp_path, capsys):
    output = tmp_path / "copy"
    arguments = ["--dataset", photos, "--output", output, "--shorter_side", 100]
    assert run(*arguments) == 0
    path = output / "prepared.json"
    path.write_text(json.dumps(as_the_version_before_wrote_it(json.loads(path.read_text()))))
    before = {file: file.read_bytes() for file in output.iterdir()}
    capsys.readouterr()
    assert run(*arguments) == 2
    assert capsys.readouterr().err == (
        f"error: {path} was written by another version of training.prepare: train on it as it is with "
        f"--dataset {output}, or choose another --output\n"
    )
    assert {file: file.read_bytes() for file in output.iterdir()} == before
    copy = load_splits(str(output))
    assert (len(copy.train), len(copy.validation), copy.class_names) == (18, 6, CLASSES)


def test_an_interrupted_copy_of_the_version_before_is_refused_in_a_sentence(photos, tmp_path, capsys):
    output, partial = tmp_path / "copy", tmp_path / "copy.partial"
    arguments = ["--dataset", photos, "--output", output, "--shorter_side", 100, "--shard_size", 5]
    assert run(*arguments) == 0
    output.rename(partial)
    manifest = as_the_version_before_wrote_it(json.loads((partial / "prepared.json").read_text()))
    begun = {"identity": manifest["identity"], "shards": manifest["shards"][:2]}
    (partial / "prepared.json").write_text(json.dumps(begun))
    capsys.readouterr()
    assert run(*arguments) == 2
    assert capsys.readouterr().err == (
        f"error: {partial / 'prepared.json'} was written by another version of training.prepare: delete {partial}, "
        "and the same command starts over\n"
    )


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"identity": {}}', '{"identity": [], "shards": []}'])
def test_a_damaged_manifest_is_one_sentence(content, photos, tmp_path, capsys):
    (tmp_path / "copy.partial").mkdir()
    (tmp_path / "copy.partial" / "prepared.json").write_text(content)
    assert run("--dataset", photos, "--output", tmp_path / "copy") == 2
    assert "copy.partial/prepared.json is damaged: delete " in capsys.readouterr().err


def test_another_source_is_refused(photos, tmp_path, capsys):
    output, other = tmp_path / "copy", tmp_path / "other"
    assert run("--dataset", photos, "--output", output, "--shorter_side", 100) == 0
    write_photo_folder(other, crops_per_class=7, val_crops_per_class=2, classes=CLASSES)
    assert run("--dataset", other, "--output", output, "--shorter_side", 100) == 2
    assert "train_fingerprint" in capsys.readouterr().err


@pytest.mark.parametrize("output", ["{}", "{}/small", "{}/train/cat", "{}/../photos/x", "link/small", "{}/link/x"])
def test_an_output_inside_the_dataset_is_refused(output, tmp_path, capsys, monkeypatch):
    """It would be read as the dataset from then on."""
    source = tmp_path / "photos"
    write_photo_folder(source, crops_per_class=2, val_crops_per_class=1, classes=CLASSES)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to(source)
    (source / "link").symlink_to(tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path)
    before = sorted(source.rglob("*"))
    for dataset in (source, "photos", "./link"):
        if output.startswith("{}/link") and dataset == "./link":
            continue  # elsewhere by any way
        assert run("--dataset", dataset, "--output", output.format("photos")) == 2
        assert capsys.readouterr().err == (
            f"error: --output {output.format('photos')} lies inside the dataset {dataset}: "
            "choose a folder outside of it\n"
        )
    assert sorted(source.rglob("*")) == before


@pytest.mark.parametrize(("dataset", "output"), [("a/images", "a"), ("b.partial", "b"), ("b.partial/x", "b")])
def test_a_dataset_inside_the_output_is_refused(dataset, output, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path(dataset).mkdir(parents=True)
    assert run("--dataset", dataset, "--output", output) == 2
    assert capsys.readouterr().err == (
        f"error: the dataset {dataset} lies inside --output {output}: choose another folder\n"
    )


def test_a_copy_that_was_left_inside_the_dataset_is_not_read_as_the_dataset(photos, tmp_path, capsys):
    shutil.copytree(photos, tmp_path / "photos")
    assert run("--dataset", photos, "--output", tmp_path / "photos" / "small") == 0
    assert run("--dataset", tmp_path / "photos", "--output", tmp_path / "copy") == 2
    assert " can be read in two ways: move " in capsys.readouterr().err


def test_other_files_are_told(tmp_path, capsys):
    source = tmp_path / "photos"
    write_photo_folder(source, crops_per_class=2, val_crops_per_class=1, classes=CLASSES)
    (source / "train" / "cat" / "Thumbs.db").write_bytes(b"thumbs")
    assert run("--dataset", source, "--output", tmp_path / "copy") == 0
    left_out = "left out: 1 hidden or non-image file (train/cat/Thumbs.db)"
    assert left_out in capsys.readouterr().out
    assert left_out in json.loads((tmp_path / "copy" / "prepared.json").read_text())["description"]


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_what_is_no_copy_is_left_alone(kind, photos, tmp_path, capsys):
    output = tmp_path / "mine"
    if kind == "folder":
        output.mkdir()
        (output / "thesis.txt").write_text("words")
    else:
        output.write_text("words")
    assert run("--dataset", photos, "--output", output) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"error: {output} exists and is not a prepared copy: choose another --output"
    )
    assert os.listdir(tmp_path) == ["mine"]


def test_a_full_disk_is_one_sentence(photos, tmp_path):
    limit = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)); "
    code = limit + "import runpy; runpy.run_module('training.prepare', run_name='__main__')"
    arguments = ["--dataset", photos, "--output", tmp_path / "copy", "--num_workers", 0]
    answer = launcher.run(["-c", code, *arguments])
    assert answer.returncode == 2
    assert "Traceback" not in answer.stderr
    sentence = answer.stderr.splitlines()[-1]
    assert sentence.startswith("error: [Errno 27] File too large")
    assert sentence.endswith("; the same command continues with the shards that are finished")
    assert not (tmp_path / "copy").exists()


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--quality", "101"], "argument --quality: must be a whole number from 1 to 100, got 101"),
        (["--shorter_side", "0"], "argument --shorter_side: must be a whole number of at least 1, got '0'"),
        (["--validation_fraction", "2"], "validation_fraction must be less than 1, got '2'"),
    ],
)
def test_wrong_flags_are_exit_code_2(flags, sentence, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--dataset", "digits", "--output", str(tmp_path / "copy"), *flags])
    assert stop.value.code == 2
    assert sentence in capsys.readouterr().err


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert run("--dataset", "digits", "--output", tmp_path / "file" / "copy") == 2
    assert "Not a directory" in capsys.readouterr().err


@pytest.mark.parametrize(("num_samples", "shard_size"), [(1, 5), (5, 5), (6, 5), (1_281_167, 2000)])
def test_shards_cover_the_split_evenly(num_samples, shard_size):
    shards = plan_shards("train", num_samples, shard_size)
    assert [shard.start for shard in shards] == [0, *(shard.stop for shard in shards[:-1])]
    assert shards[-1].stop == num_samples
    sizes = {shard.stop - shard.start for shard in shards}
    assert max(sizes) <= shard_size and max(sizes) - min(sizes) <= 1


def test_digits_can_be_prepared_and_trained_on(tmp_path):
    output = tmp_path / "digits-copy"
    assert run("--dataset", "digits", "--output", output, "--shard_size", 500) == 0
    copy = load_splits(str(output))
    assert (len(copy.train), len(copy.validation)) == (1438, 359)
    command = [ROOT / "train.py", "--recipe", ROOT / "configuration" / "quickstart.yaml"]
    flags = ["--dataset", output, "--epochs", 1, "--warmup_epochs", 0, "--image_size", 32, "--run_name", "copy"]
    answer = launcher.run([*command, *flags], cwd=tmp_path)
    assert answer.returncode == 0, answer.stderr
    assert json.loads((tmp_path / "runs" / "copy" / "summary.json").read_text())["num_train"] == 1438


def test_schema_of_a_shard_is_read_by_arrow_alone(photos, tmp_path):
    assert run("--dataset", photos, "--output", tmp_path / "copy") == 0
    table = pq.read_table(tmp_path / "copy" / "train-00000-of-00001.parquet")
    assert table.column("image").type.equals(datasets.Image().pa_type)
    assert table.column("label").null_count == 0


def test_an_error_of_its_own_ends_the_command_although_workers_ignore_signals(photos, tmp_path):
    """They are ended; Python would wait for them for ever."""
    script = tmp_path / "broken.py"
    script.write_text(
        "import runpy, sys, tqdm\n"
        "def broken(self, n=1): raise RuntimeError('a defect')\n"
        "tqdm.tqdm.update = broken\n"
        "runpy.run_module('training.prepare', run_name='__main__')\n"
    )
    command = [script, "--dataset", photos, "--output", tmp_path / "copy", "--num_workers", "2"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    result = launcher.run(command, env=environment)
    assert result.returncode == 1
    assert result.stderr.endswith("RuntimeError: a defect\n")
