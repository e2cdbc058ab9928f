"""Folders of Parquet or metadata files, whose splits `datasets` finds by the names of files."""

import io

import datasets
import numpy as np
import PIL.Image
import pytest

from training.data.sources import load_splits
from training.errors import DataError


def image(number):
    file = io.BytesIO()
    PIL.Image.fromarray(np.full((6, 8, 3), number, np.uint8)).save(file, "JPEG")
    return file.getvalue()


def write_images(folder, labels, *, metadata=True):
    """An image for each label, and a metadata file beside them."""
    folder.mkdir(parents=True)
    lines = ["file_name,label"]
    for number, label in enumerate(labels):
        (folder / f"{number}.jpg").write_bytes(image(number))
        lines.append(f"{number}.jpg,{label}")
    if metadata:
        (folder / "metadata.csv").write_text("\n".join(lines) + "\n")


def write_parquet(path, num_images):
    path.parent.mkdir(parents=True, exist_ok=True)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["ant", "bee"])})
    rows = {"image": [{"bytes": image(n)} for n in range(num_images)], "label": [n % 2 for n in range(num_images)]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(path))


def refusal(dataset, **options):
    with pytest.raises(DataError) as error:
        load_splits(str(dataset), **options)
    return str(error.value)


@pytest.mark.parametrize("train, validation", [("Train", "Val"), ("train", "DEV"), ("TRAIN", "Testing")])
def test_metadata_in_splits_that_datasets_would_join_is_refused(tmp_path, train, validation):
    write_images(tmp_path / train, ["ant", "bee"] * 3)
    write_images(tmp_path / validation, ["ant", "bee"])
    assert "for only names in lower case are: rename" in refusal(tmp_path)


@pytest.mark.parametrize("files", [("Train.parquet", "Val.parquet"), ("Train/0.parquet", "Dev/0.parquet")])
def test_parquet_in_splits_that_datasets_would_join_is_refused(tmp_path, files):
    for file in files:
        write_parquet(tmp_path / file, 4)
    split = "Val" if "Val.parquet" in files else "Dev"
    assert refusal(tmp_path).endswith(
        f"would not be read as a split of its own, for only names in lower case are: rename {split} to {split.lower()}"
    )


def test_parquet_that_is_not_used_is_named(tmp_path):
    write_parquet(tmp_path / "train.parquet", 10)
    write_parquet(tmp_path / "holdout.parquet", 4)
    assert load_splits(str(tmp_path)).description.endswith("; not used: holdout.parquet")


def test_one_parquet_file_may_be_called_anything(tmp_path):
    write_parquet(tmp_path / "Test.parquet", 10)
    assert len(load_splits(str(tmp_path)).train) == 8


@pytest.mark.parametrize("label_column", [None, "label"])
def test_metadata_beside_splits_is_not_replaced_by_folder_names(tmp_path, label_column):
    """Its labels are asked for by name; those of the folders came, which happen to be in a column called the same."""
    for name in ("ant", "bee"):
        write_images(tmp_path / f"train/{name}", ["x", "y"], metadata=False)
        write_images(tmp_path / f"val/{name}", ["x", "y"], metadata=False)
    lines = [f"train/{name}/{n}.jpg,{'xy'[n]}" for name in ("ant", "bee") for n in range(2)]
    (tmp_path / "metadata.csv").write_text("\n".join(["file_name,label", *lines]) + "\n")
    sentence = refusal(tmp_path, label_column=label_column)
    if label_column:
        assert sentence == (
            f"{tmp_path}/metadata.csv is not read, for the images lie in splits of their own (train, validation): "
            "write such a file into the folder of each split"
        )


def test_test_images_without_metadata_are_passed_over(tmp_path):
    write_images(tmp_path / "train", ["ant", "bee"] * 5)
    write_images(tmp_path / "test", ["ant", "bee"], metadata=False)
    splits = load_splits(str(tmp_path))
    assert (len(splits.train), len(splits.validation)) == (8, 2)
    assert "test has no labels and is not used" in splits.description


def test_validation_images_without_metadata_are_refused(tmp_path):
    write_images(tmp_path / "train", ["ant", "bee"] * 5)
    write_images(tmp_path / "val", ["ant", "bee"], metadata=False)
    assert refusal(tmp_path) == (
        f"split 'validation' of {tmp_path} has no metadata.csv, as {tmp_path}/train/metadata.csv has it: write one, "
        "or move its images away"
    )


def test_metadata_of_a_folder_that_is_no_split_is_named(tmp_path):
    write_images(tmp_path / "train", ["ant", "bee"] * 5)
    write_images(tmp_path / "holdout", ["ant", "bee"])
    assert "not used: holdout/metadata.csv" in load_splits(str(tmp_path)).description


def test_a_link_to_a_folder_of_metadata_is_read(tmp_path):
    write_images(tmp_path / "birds/train", ["ant", "bee"] * 5)
    write_images(tmp_path / "birds/val", ["ant", "bee"])
    (tmp_path / "link").symlink_to(tmp_path / "birds")
    splits = load_splits(str(tmp_path / "link"))
    assert (len(splits.train), len(splits.validation)) == (10, 2)
    assert "not used" not in splits.description


def test_splits_that_a_readme_states_are_taken(tmp_path):
    write_parquet(tmp_path / "Train.parquet", 10)
    write_parquet(tmp_path / "Val.parquet", 4)
    stated = "".join(f"  - split: {split}\n    path: {split}.parquet\n" for split in ("Train", "Val"))
    (tmp_path / "README.md").write_text(f"---\nconfigs:\n- config_name: default\n  data_files:\n{stated}---\n")
    splits = load_splits(str(tmp_path))
    assert (len(splits.train), len(splits.validation)) == (10, 4)
