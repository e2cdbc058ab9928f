import csv
import io
import re
import time

import datasets
import numpy as np
import PIL.Image
import pytest

from training.data.sources import load_splits
from training.errors import DataError

SORT = "sort them into one folder for each class, or write {}/metadata.csv with the columns file_name and label"


def image(number, kind="JPEG"):
    file = io.BytesIO()
    PIL.Image.fromarray(np.full((6, 8, 3), number % 256, np.uint8)).save(file, kind)
    return file.getvalue()


def write_tree(root, *files):
    """Images at the given paths, other files with a word in them, folders where a path ends in /."""
    for number, name in enumerate(files):
        path = root / name
        (path if name.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
        if not name.endswith("/"):
            path.write_bytes(image(number) if path.suffix in (".jpg", ".jfif", "") else b"word")
    return str(root)


def tree(*splits, classes=("ant", "bee"), count=1):
    """Paths of `count` images of each class in each split."""
    return [f"{split}/{name}/{number}.jpg" for split in splits for name in classes for number in range(count)]


def refuses(sentence, dataset, **options):
    """`load_splits` must fail with this one sentence, in which {} stands for the dataset."""
    with pytest.raises(DataError) as error:
        load_splits(dataset, **options)
    assert str(error.value) == sentence.replace("{}", dataset)


# Files


def test_images_are_read_whatever_their_ending_and_other_files_are_counted(tmp_path):
    files = ["1.jfif", "2.jpe", "3.jpg", "4", ".DS_Store", "Thumbs.db", "notes.txt", "._3.jpg"]
    write_tree(
        tmp_path, *(f"train/ant/{name}" for name in files), "train/bee/1.jpg", "train/.DS_Store", "val/ant/1.jpg"
    )
    (tmp_path / "train/ant/2.jpe").write_bytes(image(2))
    splits = load_splits(str(tmp_path))
    assert [path["path"].rpartition("/")[2] for path in splits.train["image"]] == [
        "1.jfif",
        "2.jpe",
        "3.jpg",
        "4",
        "1.jpg",
    ]
    assert splits.num_other_files == 5
    assert splits.description.endswith(
        "; left out: 5 hidden or non-image files (train/.DS_Store, train/ant/.DS_Store, train/ant/._3.jpg, ...)"
    )


def test_one_other_file_is_named(tmp_path):
    dataset = write_tree(tmp_path, *tree("train", "val"), "val/bee/notes.txt")
    assert load_splits(dataset).description.endswith("; left out: 1 hidden or non-image file (val/bee/notes.txt)")


# Splits


@pytest.mark.parametrize("train", ["train", "Train", "TRAIN", "training"])
@pytest.mark.parametrize("validation", ["dev", "Val", "VALID", "eval", "TEST", "testing"])
def test_splits_are_found_by_usual_names_in_any_case(tmp_path, train, validation):
    dataset = write_tree(tmp_path, *tree(train, count=2), *tree(validation))
    splits = load_splits(dataset)
    assert (len(splits.train), len(splits.validation)) == (4, 2)
    renamed = "" if train == "train" else f"; trained on its split {train!r}"
    assert splits.description == (
        f"{dataset}: 4 training and 2 validation images, 2 classes; evaluated on its split {validation!r}{renamed}"
    )


def test_folders_of_images_that_are_not_used_are_named(tmp_path):
    files = [*tree("train", "val", "test", "extra"), "masks/1.jpg", "stray.jpg", "annotations/1.xml", ".cache/1.jpg"]
    assert load_splits(write_tree(tmp_path, *files)).description.endswith(
        "; not used: extra, masks, test; not used: 1 image beside the splits (stray.jpg)"
    )


def test_of_two_spellings_one_is_used_and_the_other_named(tmp_path):
    dataset = write_tree(tmp_path, *tree("train", "TRAIN", "Val", "val"))
    assert load_splits(dataset).description.endswith("evaluated on its split 'val'; not used: TRAIN, Val")


@pytest.mark.parametrize("test", ["test", "Test", "testing"])
def test_test_images_without_labels_are_passed_over_unless_named(tmp_path, test):
    dataset = write_tree(tmp_path, *tree("train", count=5), f"{test}/1.jpg", f"{test}/2.jpg")
    splits = load_splits(dataset)
    assert (len(splits.train), len(splits.validation)) == (8, 2)
    assert splits.description.endswith(f"'train' for it (seed 0); {test} has no labels and is not used")
    refuses(
        f"split {{}}/{test} has images, but no labels: {SORT.format(f'{{}}/{test}')}, or move it away",
        dataset,
        validation_split=test,
    )


def test_test_images_in_a_folder_that_is_no_class_are_passed_over_unless_named(tmp_path):
    """As Keras wants them; there was no way to train beside them."""
    dataset = write_tree(tmp_path, *tree("train", count=5), "test/unknown/1.jpg")
    splits = load_splits(dataset)
    assert (len(splits.train), len(splits.validation)) == (8, 2)
    assert splits.description.endswith("; test has none of the classes, but unknown, and is not used")
    refuses(
        "split 'test' of {} has images of classes that the training split lacks: unknown",
        dataset,
        validation_split="test",
    )


def test_a_labeled_split_behind_a_test_split_without_labels_is_used(tmp_path):
    dataset = write_tree(tmp_path, *tree("train", "testing"), "test/1.jpg", "eval/notes.txt")
    assert load_splits(dataset).description.endswith(
        "evaluated on its split 'testing'; eval holds no images and is not used; test has no labels and is not used"
    )


def test_classes_that_are_called_like_splits_are_told(tmp_path):
    dataset = write_tree(tmp_path, *(f"{name}/{n}.jpg" for name in ("bus", "dev", "Test") for n in range(2)))
    splits = load_splits(dataset)
    assert splits.class_names == ["Test", "bus", "dev"]
    assert splits.description.endswith("; classes, though called like splits: Test, dev")


def test_one_split_can_be_trained_and_evaluated_on(tmp_path):
    """As eval.py reads a split that it is told."""
    dataset = write_tree(tmp_path, *tree("train", "dev"))
    splits = load_splits(dataset, train_split="dev", validation_split="dev")
    assert splits.train["image"] == splits.validation["image"]
    assert splits.description.endswith("evaluated on its split 'dev'; not used: train")


# Layouts


@pytest.mark.parametrize("inside", [tree("set/train", "set/val"), tree("set")])
def test_a_wrapper_folder_is_named(tmp_path, inside):
    dataset = write_tree(tmp_path, *inside, "__MACOSX/set/._1.jpg", "README.txt")
    names = "ant, bee" if len(inside) == 2 else "train, val"
    refuses(f"the images of {{}} lie in its folder set, with {names} in it: give {{}}/set as the dataset", dataset)
    assert load_splits(f"{dataset}/set", validation_fraction=0.5) if len(inside) == 4 else True


def test_folders_that_systems_leave_behind_are_no_classes(tmp_path):
    dataset = write_tree(
        tmp_path, *tree(".", count=2), "__MACOSX/ant/._1.jpg", "ant/@eaDir/1.jpg", ".ipynb_checkpoints/1.jpg"
    )
    assert load_splits(dataset).class_names == ["ant", "bee"]


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        (
            ["images/1.jpg", "images/2.jpg", "labels.csv"],
            f"folder {{}}/images has images, but no labels: {SORT.format('{}/images')} from labels.csv",
        ),
        (
            ["train_images/1.jpg", "test_images/2.jpg", "train.csv"],
            f"folder {{}}/train_images has images, but no labels: {SORT.format('{}/train_images')} from train.csv",
        ),
        (
            ["train/1.jpg", "test/2.jpg", "train.csv", "sample_submission.csv"],
            f"split {{}}/train has images, but no labels: {SORT.format('{}/train')} from sample_submission.csv, "
            "train.csv, or move it away",
        ),
        (
            [*tree("train_images", "val_images")],
            "{} has no folder 'train', and its folders train_images, val_images hold folders: choose the one to "
            "train on with train_split, or give one of them as the dataset",
        ),
        (
            ["images/1.jpg", "images/2.jpg", "annotations/1.xml", "classes.txt"],
            f"folder {{}}/images has images, but no labels: {SORT.format('{}/images')}",
        ),
        (
            [*tree("images"), "meta/classes.txt"],
            "the images of {} lie in its folder images, with ant, bee in it: give {}/images as the dataset",
        ),
        (
            [*tree("."), "runs/first/recipe.yaml", "runs/first/curves.jpg"],
            "{}/runs/first is a run of train.py inside the dataset: move {}/runs away, and set output_dir to "
            "its new place",
        ),
        (
            [*tree("train"), "train/1.heic"],
            "{}/train/1.heic lies outside of the class folders: move it into one, or away",
        ),
        (["1.heic"], f"{{}} has images, but no labels: {SORT.format('{}')}"),
        (
            ["train/ant/images/1.jpg", "train/bee/images/1.jpg"],
            "folder {}/train/ant/images lies inside a class folder, where only images may lie: move its images up "
            "into {}/train/ant, or {}/train/ant/images away",
        ),
        (["images.zip"], "folder {} holds no images, only images.zip: unpack it"),
    ],
)
def test_other_layouts_are_refused_with_what_to_do(tmp_path, files, sentence):
    refuses(sentence, write_tree(tmp_path, *files))


def test_folders_with_other_names_can_be_named(tmp_path):
    dataset = write_tree(tmp_path, *tree("train_images", "val_images"))
    splits = load_splits(dataset, train_split="train_images", validation_split="val_images")
    assert splits.class_names == ["ant", "bee"] and len(splits.validation) == 2


# Files that would take the tree over


@pytest.mark.parametrize(
    "stray", ["x.parquet", "train/x.parquet", "copy/train-00000-of-00001.parquet", "train/n01.tar"]
)
@pytest.mark.parametrize("splits", [("train", "val"), (".",)])
def test_a_stray_file_does_not_take_class_folders_over(tmp_path, stray, splits):
    if splits == (".",) and stray.startswith("train"):
        stray = stray.removeprefix("train/")
    dataset = write_tree(tmp_path, *tree(*splits, count=2), stray)
    classes = "ant and bee" if splits == (".",) else "train/ant and train/bee"
    refuses(
        f"{{}} can be read in two ways: move {{}}/{stray} away to train on its class folders, such as {classes}, or "
        "those away to train on that file",
        dataset,
    )


def write_metadata(path, rows):
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([("file_name", "label"), *rows])


def test_stray_metadata_does_not_take_class_folders_over_unless_its_column_is_named(tmp_path):
    dataset = write_tree(tmp_path, *tree("train", count=5))
    write_metadata(tmp_path / "train/metadata.csv", [(f"ant/{n}.jpg", "xy"[n % 2]) for n in range(4)])
    refuses(
        "{} can be read in two ways: move {}/train/metadata.csv away to train on its class folders, such as train/ant "
        "and train/bee, or choose the column of labels in that file with label_column",
        dataset,
    )
    splits = load_splits(dataset, label_column="label", validation_fraction=0.5)
    assert splits.class_names == ["x", "y"]
    assert splits.description.endswith("; left out: 6 images that the metadata file does not list")


def test_parquet_with_images_of_its_documentation_is_read(tmp_path):
    write_tree(tmp_path, "assets/1.jpg", "docs/2.jpg", "banner.jpg", "README.txt")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["ant", "bee"])})
    rows = {"image": [{"bytes": image(n), "path": None} for n in range(4)], "label": [0, 1, 0, 1]}
    (tmp_path / "data").mkdir()
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "data" / "train-00000-of-00001.parquet")
    assert len(load_splits(str(tmp_path), validation_fraction=0.5).train) == 2


# save_to_disk


@pytest.fixture
def rows():
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["ant", "bee"])})
    columns = {"image": [{"bytes": image(n), "path": None} for n in range(10)], "label": [0, 1] * 5}
    return datasets.Dataset.from_dict(columns, features=features)


def test_what_save_to_disk_wrote_is_read(tmp_path, rows):
    datasets.DatasetDict({"train": rows, "test": rows.select([9, 0])}).save_to_disk(tmp_path / "both")
    rows.with_format("torch").select(range(8, -1, -1)).save_to_disk(tmp_path / "one")
    both, one = load_splits(str(tmp_path / "both")), load_splits(str(tmp_path / "one"))
    assert (len(both.train), len(both.validation), both.class_names) == (10, 2, ["ant", "bee"])
    assert both.validation["label"] == [1, 0] and both.train[3]["image"]["bytes"] == image(3)
    assert (len(one.train), len(one.validation)) == (7, 2)
    assert one.train[0]["image"]["bytes"] in [image(n) for n in range(10)]


def test_a_damaged_folder_of_save_to_disk_is_one_sentence(tmp_path, rows):
    rows.save_to_disk(tmp_path)
    (tmp_path / "state.json").write_text("{}")
    with pytest.raises(
        DataError, match=rf"^{re.escape(str(tmp_path))} was written by save_to_disk and cannot be read: "
    ):
        load_splits(str(tmp_path))
    (tmp_path / "state.json").write_text("{")
    with pytest.raises(
        DataError, match=rf"^{re.escape(str(tmp_path))} was written by save_to_disk and cannot be read: "
    ):
        load_splits(str(tmp_path))


# Names that are no folder


@pytest.mark.parametrize("name", ["./data/missing", "data/missing", "data/missing/", "missing/", "my images", "été"])
def test_a_missing_folder_is_never_looked_for_on_the_hub(tmp_path, monkeypatch, name):
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path)
    started_at = time.perf_counter()
    refuses("folder {} does not exist", name)
    assert time.perf_counter() - started_at < 15  # the Hub's client tries for 23 seconds


@pytest.mark.parametrize("address", ["hf://datasets/me/ants", "https://huggingface.co/datasets/me/ants/tree/main"])
def test_an_address_is_told_from_an_id(address):
    refuses("{} is an address: give the dataset's id alone, me/ants", address)


@pytest.mark.parametrize("name", ["", " "])
def test_a_dataset_without_a_name_is_not_the_current_folder(name):
    refuses(f"a dataset must have a name, got {name!r}", name)


def test_a_folder_may_be_called_like_a_format(tmp_path, monkeypatch, rows):
    """`datasets` takes such a name for its own reader of that format."""
    (tmp_path / "parquet").mkdir()
    rows.to_parquet(tmp_path / "parquet" / "train.parquet")
    monkeypatch.chdir(tmp_path)
    assert len(load_splits("parquet").train) == 8
