"""What can be trained on, and what is refused in one sentence: digits, folders of images, ImageNet."""

import csv
from pathlib import Path

import datasets
import numpy as np
import pytest
from sklearn.datasets import load_digits

from tests.image_data import (
    refuses,
    write_folder,
    write_parquet,
)
from training.data.decoding import decode_rgb
from training.data.sources import check_imagenet_counts, load_splits
from training.errors import DataError

SORT = "sort them into one folder for each class, or write {}/metadata.csv with the columns file_name and label"


def folder_names(split, class_names):
    """[(class folder of the file, class name of its label)]"""
    return [(Path(row["image"]["path"]).parent.name, class_names[row["label"]]) for row in split]


# Digits


def test_digits_are_scikit_learns_1797_with_a_fifth_held_out():
    splits = load_splits("digits")
    assert (len(splits.train), len(splits.validation)) == (1438, 359)
    assert splits.class_names == list("0123456789")
    assert splits.description == (
        "digits: 1,438 training and 359 validation images, 10 classes; there is no validation split: "
        "20 % of each class is held out of 'train' for it (seed 0)"
    )
    expected = load_digits()
    counts = np.bincount(expected.target)
    assert np.bincount(splits.validation["label"]).tolist() == [round(count / 5) for count in counts]
    # Together and once each: the 1,797, at 8 x 8 pixels, 0 to 16 spread over 0 to 255.
    rows = [*splits.train, *splits.validation]
    found = [(row["label"], decode_rgb(row["image"])[0].numpy().tobytes()) for row in rows]
    scaled = [
        (label, np.rint(image / 16 * 255).astype(np.uint8).tobytes())
        for label, image in zip(expected.target, expected.images, strict=True)
    ]
    assert sorted(found) == sorted(scaled)
    assert len(set(scaled)) == 1797  # so that no image is in both parts


def test_digits_are_held_out_the_same_each_time():
    first, again = load_splits("digits"), load_splits("digits")
    assert first.validation["image"][:] == again.validation["image"][:]
    assert first.validation["image"][:] != load_splits("digits", seed=1).validation["image"][:]


# Folders


@pytest.mark.parametrize("validation", ["validation", "val", "valid", "test"])
def test_imagenet_style_folder_is_read(tmp_path, validation):
    dataset = write_folder(
        tmp_path,
        "train/ant/1.JPEG",
        "train/ant/2.jpg",
        "train/bee/1.png",
        f"{validation}/ant/3.webp",
        f"{validation}/bee/1.jpg",
    )
    splits = load_splits(dataset)
    assert splits.class_names == ["ant", "bee"]
    assert folder_names(splits.train, splits.class_names) == [("ant", "ant"), ("ant", "ant"), ("bee", "bee")]
    assert folder_names(splits.validation, splits.class_names) == [("ant", "ant"), ("bee", "bee")]
    assert (
        splits.description
        == f"{dataset}: 3 training and 2 validation images, 2 classes; evaluated on its split {validation!r}"
    )


def test_of_several_validation_splits_the_first_usual_name_is_taken(tmp_path):
    dataset = write_folder(tmp_path, "train/ant/1.jpg", "train/bee/1.jpg", "test/ant/1.jpg", "val/bee/1.jpg")
    assert len(load_splits(dataset).validation) == 1
    assert load_splits(dataset).validation[0]["label"] == 1
    assert load_splits(dataset, validation_split="test").validation[0]["label"] == 0


@pytest.mark.fault("16 empty or missing classes, stray metadata")
@pytest.mark.parametrize("empty", [[], ["val/ant/"]])
def test_class_missing_in_validation_does_not_shift_the_others(tmp_path, empty):
    dataset = write_folder(
        tmp_path, "train/ant/1.jpg", "train/bee/1.jpg", "train/cat/1.jpg", "val/bee/1.jpg", "val/cat/1.jpg", *empty
    )
    splits = load_splits(dataset)
    assert splits.validation["label"][:] == [1, 2]
    assert splits.description.endswith("; no validation images of ant")
    # The witness: read apart, as the folder's own class list would have it, the labels are others.
    apart = datasets.load_dataset("imagefolder", data_dir=str(tmp_path / "val"), split="train")
    assert apart["label"][:] == [0, 1]


def test_class_folders_alone_are_split_with_a_note(tmp_path):
    dataset = write_folder(tmp_path, *(f"{name}/{number}.jpg" for name in ("ant", "bee") for number in range(10)))
    splits = load_splits(dataset, validation_fraction=0.3)
    assert [np.bincount(split["label"]).tolist() for split in (splits.train, splits.validation)] == [[7, 7], [3, 3]]
    paths = [image["path"] for split in (splits.train, splits.validation) for image in split["image"]]
    assert len(set(paths)) == 20
    assert "no validation split: 30 % of each class is held out of 'train' for it (seed 0)" in splits.description


def test_class_may_be_called_like_a_split(tmp_path):
    dataset = write_folder(
        tmp_path, *(f"{name}/{number}.jpg" for name in ("bus", "train", "valid") for number in range(2))
    )
    assert load_splits(dataset).class_names == ["bus", "train", "valid"]


def test_other_files_and_hidden_ones_are_left_alone(tmp_path):
    dataset = write_folder(
        tmp_path, "train/ant/1.jpg", "train/ant/._1.jpg", "train/bee/1.jpg", "train/.cache/1.jpg", "val/ant/1.jpg"
    )
    (tmp_path / "train/ant/notes.txt").write_text("six legs")
    (tmp_path / "LICENSE").write_text("free")
    assert len(load_splits(dataset).train) == 2


def test_class_names_are_sorted_whatever_the_order_on_disk(tmp_path):
    dataset = write_folder(
        tmp_path, "train/b/1.jpg", "train/a/1.jpg", "train/c/1.jpg", "train/B/1.jpg", "val/c/1.jpg", "val/B/1.jpg"
    )
    splits = load_splits(dataset)
    assert splits.class_names == ["B", "a", "b", "c"]
    assert splits.validation["label"][:] == [0, 3]


def test_folder_of_metadata_with_labels_is_read(tmp_path):
    write_folder(tmp_path, "train/1.jpg", "train/2.jpg", "val/1.jpg")
    for split, rows in {"train": [("1.jpg", "cat"), ("2.jpg", "ant")], "val": [("1.jpg", "cat")]}.items():
        with open(tmp_path / split / "metadata.csv", "w", newline="") as file:
            csv.writer(file).writerows([("file_name", "label"), *rows])
    splits = load_splits(str(tmp_path))
    assert splits.class_names == ["ant", "cat"]
    assert (splits.train["label"][:], splits.validation["label"][:]) == ([1, 0], [1])
    assert decode_rgb(splits.train[0]["image"]).shape == (3, 10, 12)


@pytest.mark.fault("16 empty or missing classes, stray metadata")
@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        ([], "folder {} holds no images"),
        (["train/", "val/ant/1.jpg"], "folder {}/train holds no images"),
        (["1.jpg", "2.jpg"], f"{{}} has images, but no labels: {SORT.format('{}')}"),
        (
            ["train/1.jpg", "test/2.jpg"],
            f"split {{}}/train has images, but no labels: {SORT.format('{}/train')}, or move it away",
        ),
        (
            ["train/ant/1.jpg", "train/bee/1.jpg", "val/2.jpg"],
            f"split {{}}/val has images, but no labels: {SORT.format('{}/val')}, or move it away",
        ),
        (["val/ant/1.jpg", "val/bee/1.jpg"], "{} has no folder 'train'; its folders are val"),
        (
            ["fit/ant/1.jpg", "val/ant/1.jpg", "fit/bee/1.jpg"],
            "{} has no folder 'train'; its folders are fit, val",
        ),
        (
            ["first/ant/1.jpg", "second/ant/1.jpg"],
            "{} has no folder 'train', and its folders first, second hold folders: choose the one to train on "
            "with train_split, or give one of them as the dataset",
        ),
        (
            ["train/ant/1.jpg", "train/bee/", "train/cat/1.jpg"],
            "class folder {}/train/bee holds no images (nothing): fill or delete it",
        ),
        (
            ["train/ant/1.jpg", "train/2.jpg", "train/bee/1.jpg"],
            "{}/train/2.jpg lies outside of the class folders: move it into one, or away",
        ),
        (
            ["train/ant/1.jpg", "train/bee/1.jpg", "val/ant/1.jpg", "val/dog/1.jpg", "val/eel/1.jpg"],
            "split 'val' of {} has images of classes that the training split lacks: dog, eel",
        ),
        (
            ["train/ant/1.jpg", "val/ant/1.jpg"],
            "split 'train' of {} has images of one class only (ant): training needs two or more",
        ),
        (
            ["ant/1.jpg", "bee/1.jpg"],
            "{} has only one image per class, so none can be held out for validation",
        ),
    ],
)
def test_folder_that_cannot_be_trained_on_is_refused(tmp_path, files, sentence):
    refuses(sentence, write_folder(tmp_path, *files))


def test_class_folder_without_images_says_what_it_holds(tmp_path):
    dataset = write_folder(tmp_path, "train/ant/1.jpg", "train/bee/")
    (tmp_path / "train/bee/1.txt").write_text("a bee")
    refuses("class folder {}/train/bee holds no images (only 1.txt): fill or delete it", dataset)


@pytest.mark.fault("16 empty or missing classes, stray metadata")
def test_stray_metadata_file_is_named(tmp_path):
    dataset = write_folder(tmp_path, "train/ant/1.jpg", "train/bee/1.jpg", "val/ant/1.jpg")
    (tmp_path / "train/metadata.csv").write_text("file_name,photographer\nant/1.jpg,me\nbee/1.jpg,you\n")
    refuses(
        "{} can be read in two ways: move {}/train/metadata.csv away to train on its class folders, such as train/ant "
        "and train/bee, or choose the column of labels in that file with label_column",
        dataset,
    )


def test_metadata_file_without_labels_is_named(tmp_path):
    dataset = write_folder(tmp_path, "train/1.jpg", "train/2.jpg")
    (tmp_path / "train/metadata.csv").write_text("file_name,photographer\n1.jpg,me\n2.jpg,you\n")
    refuses(
        "{}/train/metadata.csv takes the place of the class folders and has no label column: delete it, give it one, "
        "or choose one with label_column; its columns are image, photographer",
        dataset,
    )


def test_missing_folder_is_named(tmp_path):
    refuses("folder {} does not exist", str(tmp_path / "nothing"))
    refuses("folder {} does not exist", "./nothing")
    refuses("folder {} does not exist", "~/nothing at all")
    refuses("folder {} does not exist", "a/b/c")


def test_file_that_is_no_data_set_is_refused(tmp_path):
    (tmp_path / "images.zip").write_bytes(b"")
    refuses(
        "{} is a file, but neither a folder of images nor a .parquet file: unpack it if it is an archive",
        str(tmp_path / "images.zip"),
    )


@pytest.mark.parametrize("dataset", ["nothing", "nobody/nothing"])
def test_hub_id_that_cannot_be_reached_is_named(dataset):
    """Offline, as all tests are."""
    with pytest.raises(
        DataError,
        match=rf"^there is no folder {dataset} here, and no dataset of the Hub with this name in the cache: HF_",
    ):
        load_splits(dataset)


@pytest.mark.parametrize("option", ["train_split", "validation_split"])
def test_split_that_does_not_exist_is_named(tmp_path, option):
    dataset = write_parquet(tmp_path / "images.parquet", [0, 1, 2])
    folder = write_folder(tmp_path / "folder", "train/ant/1.jpg", "train/bee/1.jpg")
    if option == "validation_split":
        refuses("{} has no split 'dev'; its splits are train", dataset, validation_split="dev")
        refuses("{} has no split 'dev'; its splits are train", folder, validation_split="dev")
    else:
        refuses("digits has no split 'dev'; its splits are train", "digits", train_split="dev")
        refuses("{} has no folder 'dev'; its folders are train", folder, train_split="dev")


# ImageNet


@pytest.mark.parametrize(
    "dataset", ["ILSVRC/imagenet-1k", "photos/imagenet_1k", "timm/ImageNet-1K", "photos/imagenet-1k/"]
)
def test_imagenet_must_be_complete(dataset):
    check_imagenet_counts(dataset, {"train": 1_281_167, "validation": 50_000})
    check_imagenet_counts(dataset, {"train": None, "val": 50_000, "test": 3})
    with pytest.raises(DataError, match=r"'train' of .* has 1,281,166 images where ImageNet-1k has 1,281,167"):
        check_imagenet_counts(dataset, {"train": 1_281_166, "validation": 50_000})
    with pytest.raises(DataError, match=r"'val' of .* has 49,920 images where ImageNet-1k has 50,000"):
        check_imagenet_counts(dataset, {"train": 1_281_167, "val": 49_920})


def test_other_data_sets_may_have_any_size():
    check_imagenet_counts("ILSVRC/imagenet-100", {"train": 5, "validation": 3})


def test_incomplete_imagenet_folder_is_refused(tmp_path):
    dataset = write_folder(tmp_path / "imagenet-1k", "train/ant/1.jpg", "train/bee/1.jpg")
    refuses(
        "split 'train' of {} has 2 images where ImageNet-1k has 1,281,167: it is incomplete, "
        "or should be called something else",
        dataset,
    )


# Streaming


def test_what_cannot_be_streamed_is_refused(tmp_path):
    refuses("digits is read in place anyway: use it without streaming", "digits", streaming=True)
    folder = write_folder(tmp_path / "folder", "train/ant/1.jpg", "train/bee/1.jpg")
    refuses("{} is read in place anyway: use it without streaming", folder, streaming=True)
    alone = write_parquet(tmp_path / "alone.parquet", [0, 1, 2])
    refuses("{} has no validation split, and none can be held out of a stream; name one", alone, streaming=True)
    for split in ("train", "test"):
        write_parquet(tmp_path / f"plain/{split}.parquet", [0, 1, 2], datasets.Value("int64"))
    refuses(
        "streaming needs class names, the same in each split, but column 'label' of {} has none: "
        "give a file of them as class_names",
        str(tmp_path / "plain"),
        streaming=True,
    )
