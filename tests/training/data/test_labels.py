"""Labels of any column type, classes that are matched by name, and names that are no text."""

import io
import json
import os
import re
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from tests.image_data import picture, refuses, write_folder, write_plain_parquet
from training.config.fields import ConfigError
from training.config.train_config import parse_config
from training.data.decoding import decode_rgb
from training.data.labels import streamed_class_names
from training.data.sources import load_splits
from training.errors import DataError
from training.modeling.build import head_rows

ROOT = Path(__file__).parents[3]
NFC, NFD = "caf\u00e9", "cafe\u0301"
LATIN_1 = os.fsdecode(b"caf\xe9")


def write_rows(path: Path, labels: pa.Array, images: pa.Array | None = None) -> str:
    if images is None:
        images = pa.array([picture(number % 9) for number in range(len(labels))])
    return write_plain_parquet(path, image=images, label=labels)


def write_classes(path: Path, names: list[str]) -> None:
    """Parquet whose notes declare two classes, each with one image."""
    features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
    images = pa.StructArray.from_arrays([pa.array([picture(0)] * 2), pa.nulls(2, pa.string())], ["bytes", "path"])
    table = pa.table({"image": images, "label": [0, 1]})
    notes = {"huggingface": json.dumps({"info": {"features": features}})}
    pq.write_table(table.replace_schema_metadata(notes), path)


# Column types


@pytest.mark.parametrize("names", [None, "no\nyes\n"])
def test_booleans_are_two_classes(tmp_path, names):
    dataset = write_rows(tmp_path / "train.parquet", pa.array([False, True] * 4))
    (tmp_path / "names.txt").write_text(names or "")
    splits = load_splits(dataset, class_names=str(tmp_path / "names.txt") if names else None)
    assert splits.class_names == (names or "False\nTrue\n").split()
    assert sorted(splits.train["label"]) == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize("kind", [pa.bool_(), pa.string()])
def test_booleans_of_a_validation_split_are_the_same_two_classes(tmp_path, kind):
    write_rows(tmp_path / "train.parquet", pa.array([False, True] * 4))
    write_rows(
        tmp_path / "val.parquet", pa.array([True, True, False] if kind == pa.bool_() else ["True", "True", "False"])
    )
    assert load_splits(str(tmp_path)).validation["label"] == [1, 1, 0]


def test_columns_in_arrows_view_layout_are_read(tmp_path):
    """As Polars writes them. `datasets` reads them, but neither as labels nor as images."""
    encoded = [picture(number) for number in range(4)]
    images, labels = pa.array(encoded, pa.binary_view()), pa.array(["bee", "ant"] * 2, pa.string_view())
    dataset = write_rows(tmp_path / "train.parquet", labels, images)
    assert pq.read_table(dataset).schema.types == [pa.binary_view(), pa.string_view()]
    splits = load_splits(dataset, validation_split="train")
    assert [splits.class_names[label] for label in splits.train["label"]] == ["bee", "ant"] * 2
    assert torch.equal(decode_rgb(splits.train[3]["image"]), decode_rgb(encoded[3]))


@pytest.mark.parametrize("kind", [pa.string(), pa.string_view()])
def test_a_column_of_paths_is_offered_and_read(tmp_path, kind):
    write_folder(tmp_path, "a.jpg", "b.jpg")
    paths = pa.array([str(tmp_path / "a.jpg"), str(tmp_path / "b.jpg")] * 2, kind)
    dataset = write_rows(tmp_path / "train.parquet", pa.array(["ant", "bee"] * 2), paths)
    refuses(
        "{} has no column of images: choose one with image_column (paths or URLs in image will do); its columns are "
        "image, label",
        dataset,
    )
    splits = load_splits(dataset, image_column="image", validation_split="train")
    assert torch.equal(decode_rgb(splits.train[1]["image"]), decode_rgb((tmp_path / "b.jpg").read_bytes()))


def test_labels_that_are_not_utf_8_are_named(tmp_path):
    buffers = pa.array([b"ant", b"caf\xe9"]).buffers()
    dataset = write_rows(tmp_path / "train.parquet", pa.Array.from_buffers(pa.string(), 2, buffers))
    refuses(
        rf"label {b'caf' + bytes([0xE9])!r} of sample 1 of split 'train' of {{}} is not UTF-8: write it as text",
        dataset,
    )


def test_paths_that_are_not_utf_8_are_named(tmp_path):
    buffers = pa.array([b"a.jpg", b"caf\xe9.jpg"]).buffers()
    paths = pa.Array.from_buffers(pa.string(), 2, buffers)
    images = pa.StructArray.from_arrays([pa.array([picture(0)] * 2), paths], ["bytes", "path"])
    dataset = write_rows(tmp_path / "train.parquet", pa.array(["ant", "bee"]), images)
    refuses(
        r"path b'caf\xe9.jpg' of sample 1 of split 'train' of {} is not UTF-8: write it as text",
        dataset,
    )


# Integers


@pytest.mark.parametrize("largest", [1_000_000, 1_700_000_000, 2**63 - 1, 2**64 - 1])
def test_integers_that_number_no_classes_are_refused_at_once(tmp_path, largest):
    dataset = write_rows(tmp_path / "train.parquet", pa.array([0, largest, 1, 1], pa.uint64()))
    started_at = time.process_time()
    refuses(
        f"label {largest} of sample 1 of split 'train' of {{}} would make {largest + 1:,} classes, of which only 3 "
        "occur: number the classes 0, 1, 2, ..., or name all of them in a class_names file",
        dataset,
    )
    assert time.process_time() - started_at < 5


def test_a_validation_label_may_be_any_integer(tmp_path):
    write_rows(tmp_path / "train.parquet", pa.array([0, 1]))
    write_rows(tmp_path / "validation.parquet", pa.array([0, 1_700_000_000]))
    refuses("split 'validation' of {} has images of classes that the training split lacks: 1700000000", str(tmp_path))


def test_imagenet_21k_as_integers_is_read(tmp_path):
    """A few of its classes are empty, and a validation split of a hundred samples is no reason to refuse it."""
    used = np.setdiff1d(np.arange(21_841), [5, 300, 20_000])
    images = pa.array([picture(0)]).take(pa.array(np.zeros(len(used), int)))
    write_rows(tmp_path / "train.parquet", pa.array(used), images)
    write_rows(tmp_path / "validation.parquet", pa.array(used[-100:]), images[:100])
    splits = load_splits(str(tmp_path))
    assert splits.class_names == [str(number) for number in range(21_841)]
    assert splits.validation["label"][:] == used[-100:].tolist()


def test_a_small_gap_is_a_class_without_samples(tmp_path):
    splits = load_splits(write_rows(tmp_path / "train.parquet", pa.array([1, 2, 500] * 2)))
    assert len(splits.class_names) == 501


# Unicode


def test_classes_that_read_alike_are_the_same_in_both_splits(tmp_path):
    write_folder(tmp_path, f"train/{NFC}/1.jpg", "train/tea/1.jpg", f"val/{NFD}/1.jpg", "val/tea/1.jpg")
    splits = load_splits(str(tmp_path))
    assert splits.class_names == [NFC, "tea"]
    assert splits.validation["label"][:] == [0, 1]


def test_classes_that_read_alike_are_refused_within_one(tmp_path):
    write_folder(tmp_path, f"{NFC}/1.jpg", f"{NFD}/1.jpg")
    with pytest.raises(DataError, match=r"two classes that read alike, 'cafe.u0301' and 'caf.xe9', which differ only"):
        load_splits(str(tmp_path))


def test_classes_that_read_alike_are_refused_in_a_stream():
    features = datasets.Features({"label": datasets.ClassLabel(names=[NFC, NFD])})
    stream = datasets.IterableDataset.from_generator(lambda: iter(()), features=features)
    with pytest.raises(DataError, match="has two classes that read alike"):
        streamed_class_names("photos", [stream, stream], "label", None)


def test_a_model_knows_classes_that_read_alike():
    assert head_rows(["tea", NFC], [NFD, "tea"]) == [1, 0]


@pytest.mark.parametrize(
    ("file", "said"),
    [
        (f"ant/{LATIN_1}.jpg", rf"the name {LATIN_1 + '.jpg'!r} of a file in {{}}/ant is not UTF-8: rename it"),
        (f"{LATIN_1}/1.jpg", rf"the name {LATIN_1!r} of a class folder in {{}} is not UTF-8: rename it"),
    ],
)
def test_names_that_are_not_utf_8_are_refused(tmp_path, file, said):
    write_folder(tmp_path, "ant/1.jpg", "bee/1.jpg", file)
    with pytest.raises(DataError, match="^" + re.escape(said.format(tmp_path))):
        load_splits(str(tmp_path))


def test_a_tar_file_with_a_name_that_is_not_utf_8_is_refused(tmp_path):
    with tarfile.open(tmp_path / "train-0.tar", "w", errors="surrogateescape") as tar:
        for name, data in (
            ("a.png", picture(0)),
            ("a.cls", b"0"),
            (f"{LATIN_1}.png", picture(1)),
            (f"{LATIN_1}.cls", b"1"),
        ):
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    with pytest.raises(DataError, match=r"cannot be loaded: '.*caf\\udce9.*' is not UTF-8: rename the file"):
        load_splits(str(tmp_path))


def test_a_table_that_is_not_utf_8_is_shown(tmp_path):
    write_folder(tmp_path, "1.jpg", "2.jpg")
    (tmp_path / "metadata.csv").write_bytes(b"file_name,label\n1.jpg,caf\xe9\n2.jpg,tea\n")
    with pytest.raises(DataError, match=r"cannot be loaded: b'.*caf\\xe9.*' is not UTF-8: rename the file, or re"):
        load_splits(str(tmp_path))


def test_a_class_name_of_a_parquet_file_that_is_no_text_is_refused(tmp_path):
    """JSON can hold what UTF-8 cannot."""
    write_classes(tmp_path / "train.parquet", ["ant", LATIN_1])
    said = f"the name {LATIN_1!r} of a class of split 'train' of {tmp_path}/train.parquet is not UTF-8: rename it"
    with pytest.raises(DataError, match="^" + re.escape(said)):
        load_splits(str(tmp_path / "train.parquet"))


def test_a_locale_without_utf_8_is_named(tmp_path, monkeypatch):
    write_folder(tmp_path, "ant/1.jpg", f"{LATIN_1}/1.jpg")
    monkeypatch.setattr("sys.getfilesystemencoding", lambda: "ascii")
    with pytest.raises(DataError, match="cannot be read: Python takes file names for ascii here; set PYTHONUTF8=1"):
        load_splits(str(tmp_path))


@pytest.mark.parametrize("option", ["dataset", "output_dir", "run_name"])
def test_an_argument_that_is_not_utf_8_is_refused(option):
    with pytest.raises(ConfigError, match=re.escape(f"{option} must be UTF-8 text, got {LATIN_1!r}")):
        parse_config([f"--{option}", LATIN_1])


def test_any_terminal_can_be_told_of_any_class(tmp_path):
    """What its encoding lacks is escaped; Python's own rule for standard output would end the program."""
    write_folder(tmp_path, *(f"{name}/{number}.jpg" for name in (NFC, "\u65e5") for number in range(3)))
    command = [sys.executable, "-m", "training.audit", "--dataset", tmp_path, "--num_workers", "0"]
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True)
    assert (result.returncode, b"Traceback" in result.stderr) == (0, False), result.stderr
    assert rb"caf\xe9" in result.stdout and rb"\u65e5" in result.stdout
