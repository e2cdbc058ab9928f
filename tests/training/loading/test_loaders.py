import csv
import io
import re
import tarfile
import warnings
from pathlib import Path

import datasets
import numpy as np
import PIL.Image
import PIL.ImageOps
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import skimage.data
import torch
from sklearn.datasets import load_digits

from tests.photos import PHOTOS, write_photo_folder
from training.data import decoding
from training.data.decoding import ImageDecodeError, decode_rgb
from training.data.permutation import epoch_permutation
from training.data.sources import check_imagenet_counts, load_splits, num_samples
from training.errors import DataError
from training.loading.loaders import ImageDataset, build_eval_loader, build_train_loader
from training.loading.samples import SampleReader
from training.loading.sampling import TrainingPlan

# Some tests start more loader workers than a small machine has cores.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")

CLASS_LABEL = datasets.ClassLabel(names=["ant", "bee", "cat"])
SORT = "sort them into one folder for each class, or write {}/metadata.csv with the columns file_name and label"


def encode(pixels, kind="PNG", **options):
    image = pixels if isinstance(pixels, PIL.Image.Image) else PIL.Image.fromarray(pixels)
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def picture(number, size=(12, 10)):
    """A small photograph, another one for each number."""
    crop = PIL.Image.fromarray(skimage.data.coffee()).crop((7 * number % 500, 3 * number % 300, 600, 400))
    return encode(crop.resize(size), "JPEG", quality=90)


def write_folder(root, *files):
    """Write images at the given paths; a path that ends in / becomes an empty folder."""
    for number, file in enumerate(files):
        path = root / file
        (path if file.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
        if not file.endswith("/"):
            path.write_bytes(picture(number))
    return str(root)


def pictures(count):
    return [{"bytes": picture(number), "path": None} for number in range(count)]


def write_parquet(path, labels, feature=CLASS_LABEL, image_column="image", label_column="label"):
    """Parquet as `datasets` writes it, with an image for each label."""
    features = datasets.Features({image_column: datasets.Image(), label_column: feature})
    rows = datasets.Dataset.from_dict({image_column: pictures(len(labels)), label_column: labels}, features=features)
    path.parent.mkdir(parents=True, exist_ok=True)
    rows.to_parquet(path)
    return str(path)


def write_plain_parquet(path, **columns):
    """Parquet as other tools write it, without `datasets`' notes on the types."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return str(path)


def folder_names(split, class_names):
    """[(class folder of the file, class name of its label)]"""
    return [(Path(row["image"]["path"]).parent.name, class_names[row["label"]]) for row in split]


def refuses(sentence, dataset, **options):
    """`load_splits` must fail with this one sentence, in which {} stands for the dataset."""
    with pytest.raises(DataError) as error:
        load_splits(dataset, **options)
    assert str(error.value) == sentence.replace("{}", dataset)


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


# Parquet


def test_parquet_folder_is_read(tmp_path):
    for shard in range(2):
        write_parquet(tmp_path / f"data/train-{shard:05}-of-00002.parquet", [0, 1, 2])
        write_parquet(tmp_path / f"data/validation-{shard:05}-of-00002.parquet", [2, 1])
    splits = load_splits(str(tmp_path))
    assert (splits.class_names, splits.image_column, splits.label_column) == (["ant", "bee", "cat"], "image", "label")
    assert splits.train["label"][:] == [0, 1, 2, 0, 1, 2]
    assert splits.validation["label"][:] == [2, 1, 2, 1]
    assert splits.train[1]["image"]["bytes"] == picture(1)


def test_parquet_file_is_read_with_a_part_held_out(tmp_path):
    splits = load_splits(write_parquet(tmp_path / "images.parquet", [0, 1, 2] * 5))
    assert (len(splits.train), len(splits.validation)) == (12, 3)


def test_parquet_files_that_list_classes_differently_are_refused(tmp_path):
    """Mapped by name they cannot be: the witness is `datasets`, which reads all by the names of the first."""
    train = write_parquet(tmp_path / "train.parquet", [0, 1, 2])
    validation = write_parquet(
        tmp_path / "validation.parquet", [0, 1, 2], datasets.ClassLabel(names=["cat", "bee", "ant"])
    )
    both = datasets.load_dataset(str(tmp_path))
    assert both["validation"].features["label"] == both["train"].features["label"]
    refuses(f"{train} and {validation} declare different columns or class names: write them alike", str(tmp_path))


@pytest.mark.parametrize("wrap", [lambda data: {"bytes": data, "path": "x.jpg"}, lambda data: data])
def test_parquet_that_other_tools_wrote_is_read(tmp_path, wrap):
    images = [wrap(picture(number)) for number in range(6)]
    write_plain_parquet(
        tmp_path / "train.parquet", key=list("uvwxyz"), img=images, target=["dog", "ant", "dog", "bee", "ant", "bee"]
    )
    write_plain_parquet(tmp_path / "test.parquet", key=list("uvw"), img=images[:3], target=["dog", "dog", "ant"])
    splits = load_splits(str(tmp_path))
    assert (splits.image_column, splits.label_column) == ("img", "target")
    assert splits.class_names == ["ant", "bee", "dog"]
    assert (splits.train["target"][:], splits.validation["target"][:]) == ([2, 0, 2, 1, 0, 1], [2, 2, 0])
    torch.testing.assert_close(decode_rgb(splits.train[2]["img"]), decode_rgb(picture(2)))


def test_plain_integers_name_their_classes(tmp_path):
    images = [picture(number) for number in range(6)]
    splits = load_splits(write_plain_parquet(tmp_path / "train.parquet", image=images, label=[0, 0, 3, 3, 1, 1]))
    assert splits.class_names == ["0", "1", "2", "3"]
    assert splits.description.endswith("; no training images of 2; no validation images of 2")


def test_columns_are_found_by_type_or_named(tmp_path):
    features = datasets.Features(
        {"before": datasets.Image(), "after": datasets.Image(), "fine": CLASS_LABEL, "coarse": datasets.ClassLabel(2)}
    )
    columns = {"before": pictures(4), "after": pictures(4), "fine": [0, 1, 2, 2], "coarse": [0, 1, 0, 1]}
    dataset = str(tmp_path / "train.parquet")
    datasets.Dataset.from_dict(columns, features=features).to_parquet(dataset)
    listed = "its columns are before, after, fine, coarse"
    refuses(f"{{}} has several columns of images (before, after): choose one with image_column; {listed}", dataset)
    refuses(
        f"{{}} has several columns of labels (fine, coarse): choose one with label_column; {listed}",
        dataset,
        image_column="after",
    )
    splits = load_splits(dataset, image_column="after", label_column="coarse")
    assert splits.train.column_names == ["after", "coarse"]
    assert splits.class_names == ["0", "1"]


def test_columns_that_are_not_there_are_named(tmp_path):
    dataset = write_parquet(tmp_path / "train.parquet", [0, 1, 2])
    refuses("image_column 'photo' is not a column of {}, which has image, label", dataset, image_column="photo")
    refuses("label_column 'species' is not a column of {}, which has image, label", dataset, label_column="species")
    refuses("column 'label' of {} cannot hold both the images and the labels", dataset, image_column="label")

    numbers = write_plain_parquet(tmp_path / "numbers.parquet", label=[0, 1], width=[3, 4])
    refuses("{} has no column of images: choose one with image_column; its columns are label, width", numbers)
    refuses("column 'width' of split 'train' of {} holds no images, but Value('int64')", numbers, image_column="width")
    unlabelled = write_plain_parquet(tmp_path / "unlabelled.parquet", image=[picture(0), picture(1)], width=[3, 4])
    refuses("{} has no column of labels: choose one with label_column; its columns are image, width", unlabelled)

    write_parquet(tmp_path / "both/train.parquet", [0, 1, 2])
    write_parquet(tmp_path / "both/test.parquet", [0, 1, 2])
    both = str(tmp_path / "both")
    assert load_splits(both).description.endswith("evaluated on its split 'test'")


@pytest.mark.fault("15 labels missing or out of range")
@pytest.mark.parametrize(
    ("labels", "sentence"),
    [
        ([0, -1, 2], "label -1 of sample 1 of split 'train' of {} is not one of 0, 1, 2, ..."),
        ([-1, -1, -1], "split 'train' of {} has no labels: all are -1"),
        ([None, None, None], "split 'train' of {} has no labels: the column 'label' is empty"),
        ([0, 1, None], "sample 2 of split 'train' of {} has no label"),
        (
            [0.0, 1.0, 2.0],
            "labels of split 'train' of {} must be class labels, integers, booleans or strings, but 'label' is double",
        ),
        ([1, 1, 1], "split 'train' of {} has images of one class only (1): training needs two or more"),
    ],
)
def test_labels_that_cannot_be_trained_on_are_refused(tmp_path, labels, sentence):
    refuses(
        sentence, write_plain_parquet(tmp_path / "train.parquet", image=[picture(i) for i in range(3)], label=labels)
    )


@pytest.mark.fault("15 labels missing or out of range")
def test_class_label_out_of_range_is_named(tmp_path):
    """`datasets` checks only what it writes itself, so that the file is changed afterwards."""
    dataset = tmp_path / "train.parquet"
    write_parquet(dataset, [0, 1, 2])
    table = pq.read_table(dataset)
    column = table.schema.get_field_index("label")
    pq.write_table(table.set_column(column, table.schema.field(column), pa.array([0, 1, 3])), dataset)
    refuses("label 3 of sample 2 of split 'train' of {} is not one of the 3 classes", str(dataset))


@pytest.mark.parametrize("labels", [[-1, -1], [None, None]])
def test_test_split_without_labels_is_passed_over_unless_named(tmp_path, labels):
    """ImageNet's own test split on the Hub: -1 throughout."""
    dataset = str(tmp_path)
    write_parquet(tmp_path / "train.parquet", [0, 1, 2] * 5)
    write_parquet(tmp_path / "test.parquet", labels)
    assert "; test has no labels and is not used" in load_splits(dataset).description
    assert len(load_splits(dataset).validation) == 3
    with pytest.raises(DataError, match=rf"^split 'test' of {dataset} has no labels: "):
        load_splits(dataset, validation_split="test")


def test_test_split_with_some_labels_missing_is_refused(tmp_path):
    write_parquet(tmp_path / "train.parquet", [0, 1, 2])
    write_parquet(tmp_path / "test.parquet", [0, None])
    refuses("sample 1 of split 'test' of {} has no label", str(tmp_path))


def test_validation_split_without_labels_is_refused(tmp_path):
    write_parquet(tmp_path / "train.parquet", [0, 1, 2])
    write_parquet(tmp_path / "validation.parquet", [-1, -1])
    refuses("split 'validation' of {} has no labels: all are -1", str(tmp_path))


def test_validation_label_unknown_in_training_is_named(tmp_path):
    images = [picture(0), picture(1)]
    write_plain_parquet(tmp_path / "train.parquet", image=images, label=[0, 1])
    write_plain_parquet(tmp_path / "validation.parquet", image=images, label=[0, 2])
    refuses("split 'validation' of {} has images of classes that the training split lacks: 2", str(tmp_path))


def test_damaged_parquet_is_refused_in_one_sentence(tmp_path):
    path = tmp_path / "train.parquet"
    path.write_bytes(b"hello")
    with pytest.raises(DataError, match=rf"^dataset {re.escape(str(path))} cannot be loaded: [^\n]+$"):
        load_splits(str(path))


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


# Decoding

PHOTO = PIL.Image.fromarray(skimage.data.chelsea()).resize((64, 48))
GRADIENT_16 = np.linspace(0, 65535, 64 * 48).astype(np.uint16).reshape(48, 64)
RULE_16 = np.rint(GRADIENT_16.astype(np.float64) / 257).astype(np.uint8)
ORIENTATION = 0x0112


def rotated(orientation):
    exif = PIL.Image.Exif()
    exif[ORIENTATION] = orientation
    return exif


def transparent_palette():
    image = PHOTO.quantize(16)
    image.info["transparency"] = bytes(range(16))
    return image


ODD_BUT_GOOD = {
    "jpeg": encode(PHOTO, "JPEG", quality=90),
    "jpeg without chroma subsampling": encode(PHOTO, "JPEG", subsampling=0),
    "progressive jpeg": encode(PHOTO, "JPEG", progressive=True),
    "jpeg stored as RGB": encode(PHOTO, "JPEG", keep_rgb=True),
    "gray jpeg": encode(PHOTO.convert("L"), "JPEG"),
    "cmyk jpeg": encode(PHOTO.convert("CMYK"), "JPEG"),
    "png": encode(PHOTO),
    "gray png": encode(PHOTO.convert("L")),
    "1-bit png": encode(PHOTO.convert("1")),
    "gray png with alpha": encode(PHOTO.convert("LA")),
    "png with alpha": encode(PHOTO.convert("RGBA")),
    "palette png": encode(PHOTO.quantize(16)),
    "palette png with transparency": encode(transparent_palette()),
    "animated gif": encode(PHOTO, "GIF", save_all=True, append_images=[PHOTO.rotate(180)]),
    "webp": encode(PHOTO, "WEBP", lossless=True),
    "bmp": encode(PHOTO, "BMP"),
    "tiff": encode(PHOTO, "TIFF"),
    "lab tiff": encode(PHOTO.convert("LAB"), "TIFF"),
}


@pytest.mark.fault("14 odd images decode to documented pixels")
@pytest.mark.filterwarnings("ignore:Palette images with Transparency:UserWarning")  # the witness's, not ours
@pytest.mark.parametrize("kind", ODD_BUT_GOOD)
def test_pixels_are_pillows(kind):
    data = ODD_BUT_GOOD[kind]
    expected = torch.from_numpy(np.array(PIL.Image.open(io.BytesIO(data)).convert("RGB"))).permute(2, 0, 1)
    with warnings.catch_warnings(action="error"):
        found = decode_rgb(data)
    assert (found.dtype, found.shape) == (torch.uint8, (3, 48, 64))
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("kind", [kind for kind in ODD_BUT_GOOD if "jpeg" in kind])
def test_pixels_do_not_depend_on_the_fast_decoder(kind, monkeypatch):
    assert decoding.simplejpeg is not None
    fast = decode_rgb(ODD_BUT_GOOD[kind])
    monkeypatch.setattr(decoding, "simplejpeg", None)
    torch.testing.assert_close(fast, decode_rgb(ODD_BUT_GOOD[kind]), rtol=0, atol=0)


def test_fast_decoder_is_used_for_plain_jpegs_only(monkeypatch):
    decoded = []

    simplejpeg = decoding.simplejpeg

    class Counting:
        decode_jpeg_header = staticmethod(simplejpeg.decode_jpeg_header)

        @staticmethod
        def decode_jpeg(data, colorspace):
            decoded.append(data)
            return simplejpeg.decode_jpeg(data, colorspace)

    monkeypatch.setattr(decoding, "simplejpeg", Counting)
    upright = encode(PHOTO, "JPEG", exif=rotated(1))
    for data in [*ODD_BUT_GOOD.values(), encode(PHOTO, "JPEG", exif=rotated(6)), upright]:
        decode_rgb(data)
    plain = ["jpeg", "jpeg without chroma subsampling", "progressive jpeg", "jpeg stored as RGB", "gray jpeg"]
    assert decoded == [*(ODD_BUT_GOOD[kind] for kind in plain), upright]


@pytest.mark.fault("14 odd images decode to documented pixels")
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_as_pillow_does(kind, orientation):
    data = encode(PHOTO, kind, exif=rotated(orientation))
    expected = PIL.ImageOps.exif_transpose(PIL.Image.open(io.BytesIO(data))).convert("RGB")
    assert expected.size == ((64, 48) if orientation < 5 else (48, 64))
    assert (decode_rgb(data).permute(1, 2, 0).numpy() == np.array(expected)).all()


@pytest.mark.parametrize("fill", [b"", b"\xff\xff"], ids=["", "after fill bytes"])
@pytest.mark.parametrize("kind", ["EXIF", "XMP"])
def test_orientation_is_found_wherever_pillow_finds_it(kind, fill):
    """Behind other segments, in XMP too, and after the bytes that may fill the space between two segments."""
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    stored = {"exif": rotated(6)} if kind == "EXIF" else {"xmp": xmp}
    data = encode(PHOTO, "JPEG", comment=b"\xff\xda is no scan here", **stored)
    marker = data.index(b"\xff\xe1")
    data = data[:marker] + fill + data[marker:]
    expected = PIL.ImageOps.exif_transpose(PIL.Image.open(io.BytesIO(data)))
    assert expected.size == (48, 64)
    assert (decode_rgb(data).permute(1, 2, 0).numpy() == np.array(expected)).all()


def test_datasets_decodes_the_same_pixels(tmp_path):
    """Its `Image` feature is what other users of the same data see."""
    for data in (encode(PHOTO, "JPEG", exif=rotated(8)), ODD_BUT_GOOD["cmyk jpeg"], ODD_BUT_GOOD["jpeg"]):
        theirs = datasets.Image().decode_example({"bytes": data, "path": None}).convert("RGB")
        assert (decode_rgb(data).permute(1, 2, 0).numpy() == np.array(theirs)).all()


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data:UserWarning")
@pytest.mark.parametrize("exif", [b"Exif\0\0", b"Exif\0\0garbage", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"])
def test_unreadable_exif_counts_as_none(exif):
    assert (decode_rgb(encode(PHOTO, "JPEG", exif=exif)) == decode_rgb(encode(PHOTO, "JPEG"))).all()


@pytest.mark.fault("14 odd images decode to documented pixels")
@pytest.mark.parametrize(
    "data",
    [
        encode(GRADIENT_16),
        encode(GRADIENT_16, "TIFF"),
        encode(PIL.Image.frombytes("I;16B", (64, 48), GRADIENT_16.astype(">u2").tobytes()), "TIFF"),
        encode(GRADIENT_16.astype(np.int32), "TIFF"),
        encode(GRADIENT_16, "PPM"),
    ],
)
def test_16_bit_gray_is_scaled_to_8_bit(data):
    assert PIL.Image.open(io.BytesIO(data)).mode.startswith("I")
    assert (decode_rgb(data).numpy() == RULE_16).all()


def test_opened_image_and_path_and_bytes_give_the_same_pixels(tmp_path):
    path = tmp_path / "image.jpg"
    path.write_bytes(ODD_BUT_GOOD["jpeg"])
    expected = decode_rgb(ODD_BUT_GOOD["jpeg"])
    ways = [PIL.Image.open(path), {"bytes": None, "path": str(path)}, {"bytes": path.read_bytes(), "path": "gone.jpg"}]
    for way in [*ways, {"bytes": None, "path": path.as_uri()}]:
        assert (decode_rgb(way) == expected).all()


def test_decoded_image_lies_in_channels_last_memory():
    for kind in ("jpeg", "png"):
        assert decode_rgb(ODD_BUT_GOOD[kind]).unsqueeze(0).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.fault("13 bad images are named, or replaced on request")
@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "the file is empty"),
        (b"\0" * 1000, "is not an image, or its format is unknown to Pillow"),
        (b"<!DOCTYPE html><title>404</title>", "is not an image, or its format is unknown to Pillow"),
        (
            ODD_BUT_GOOD["jpeg"][: len(ODD_BUT_GOOD["jpeg"]) // 2],
            "the image is damaged or in an unusual format: .*truncated.*",
        ),
        (ODD_BUT_GOOD["png"][: len(ODD_BUT_GOOD["png"]) // 2], "the image is damaged or in an unusual format: .*"),
        (ODD_BUT_GOOD["gray jpeg"][:30], ".*"),
        (ODD_BUT_GOOD["webp"][:60], ".*"),
        (encode(GRADIENT_16.astype(np.float32), "TIFF"), ".*floating-point pixels have no known range; .*"),
        (
            encode(np.full((4, 4), 70_000, np.int32), "TIFF"),
            ".*pixels of mode I must lie in 0 to 65535, got 70000 to 70000; .*",
        ),
        (encode(PIL.Image.new("1", (10_000, 10_000))), "10000 x 10000 pixels are more than 89,478,485"),
    ],
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_image_that_cannot_be_used_is_named(tmp_path, data, problem):
    with pytest.raises(ImageDecodeError, match=rf"^sample 7: {problem}$"):
        decode_rgb(data, name="sample 7")
    path = tmp_path / "image.jpg"
    path.write_bytes(data)
    with pytest.raises(ImageDecodeError, match=rf"^{re.escape(str(path))} \(sample 7\): {problem}$"):
        decode_rgb({"bytes": None, "path": str(path)}, name="sample 7")


def test_missing_image_is_named(tmp_path):
    with pytest.raises(ImageDecodeError, match=r"gone\.jpg \(sample 3\): No such file or directory$"):
        decode_rgb({"bytes": None, "path": str(tmp_path / "gone.jpg")}, name="sample 3")
    for nothing in (None, {"bytes": None, "path": None}):
        with pytest.raises(ImageDecodeError, match=r"^sample 3: holds no image$"):
            decode_rgb(nothing, name="sample 3")


# Datasets and loaders


class NoisyCorner:
    """Stands in for a transform: the upper left corner, with noise that the key decides."""

    def __call__(self, image, key):
        noise = np.random.default_rng(key).integers(0, 16, (3, 8, 8), dtype=np.uint8)
        return image[:, :8, :8] // 2 + torch.from_numpy(noise)


def digits_dataset(count=None, seed=0):
    splits = load_splits("digits")
    split = splits.train if count is None else splits.train.select(range(count))
    return ImageDataset(split, SampleReader("image", "label", NoisyCorner(), 10), seed=seed)


def batches(loader):
    """Copies: a worker's shared memory is freed with its batch."""
    return [{name: value.clone() for name, value in batch.items()} for batch in loader]


def assert_same_batches(found, expected):
    assert len(found) == len(expected) > 0
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_sample_is_what_the_key_says():
    dataset = digits_dataset(20, seed=5)
    sample = dataset[(3, 7)]
    pixels = decode_rgb(dataset.split[7]["image"])
    assert (sample["labels"], sample["index"]) == (dataset.split[7]["label"], 7)
    assert (sample["pixel_values"] == NoisyCorner()(pixels, (5, 3, 7))).all()
    assert (sample["pixel_values"] != dataset[(4, 7)]["pixel_values"]).any()


def test_batches_are_uint8_with_labels_and_indices():
    batch = next(iter(build_train_loader(digits_dataset(20), TrainingPlan(20, 8, 8), rank=0, total_steps=1)))
    assert {name: (value.dtype, tuple(value.shape)) for name, value in batch.items()} == {
        "pixel_values": (torch.uint8, (8, 3, 8, 8)),
        "labels": (torch.int64, (8,)),
        "index": (torch.int64, (8,)),
        "replaced": (torch.int64, (8,)),
    }


def test_workers_do_not_change_a_bit():
    """Over two epochs and into a third, with accumulation and short last batches."""
    dataset, plan = digits_dataset(45), TrainingPlan(45, 16, 4)
    expected = batches(build_train_loader(dataset, plan, rank=0, total_steps=8))
    assert len(expected) == 12 + 12 + 8
    for num_workers in (2, 4):
        loader = build_train_loader(dataset, plan, rank=0, total_steps=8, num_workers=num_workers)
        assert_same_batches(batches(loader), expected)


def test_two_ranks_train_on_the_samples_and_pixels_of_one_process():
    dataset = digits_dataset(90)
    whole = batches(build_train_loader(dataset, TrainingPlan(90, 32, 32), rank=0, total_steps=6))
    plan = TrainingPlan(90, 32, 16, num_processes=2)
    left, right = (batches(build_train_loader(dataset, plan, rank=rank, total_steps=6)) for rank in range(2))
    joined = [
        {name: torch.cat([one[name], other[name]]) for name in one} for one, other in zip(left, right, strict=True)
    ]
    assert_same_batches(joined, whole)
    order = [epoch_permutation(90, 0, epoch).tolist() for epoch in range(2)]
    assert [batch["index"].tolist() for batch in whole] == [
        epoch[start : start + 32] for epoch in order for start in (0, 32, 64)
    ]


def test_a_started_run_goes_on_with_the_same_batches():
    dataset, plan = digits_dataset(45), TrainingPlan(45, 16, 8)
    everything = batches(build_train_loader(dataset, plan, rank=0, total_steps=9))
    rest = build_train_loader(dataset, plan, rank=0, total_steps=9, start_step=4, num_workers=2)
    assert_same_batches(batches(rest), everything[plan.micro_batches_before(4) :])


def test_loaders_leave_the_global_generator_alone():
    dataset = digits_dataset(20)
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    batches(build_train_loader(dataset, TrainingPlan(20, 8, 8), rank=0, total_steps=2))
    batches(build_eval_loader(dataset, batch_size=8))
    assert (torch.rand(3) == expected).all()


@pytest.mark.parametrize("count", [1, 2, 3, 31, 32, 33, 65])
@pytest.mark.parametrize("num_processes", [1, 2])
def test_evaluation_delivers_each_sample_once(count, num_processes):
    dataset = digits_dataset(count)
    ranks = [
        batches(build_eval_loader(dataset, batch_size=16, rank=rank, num_processes=num_processes))
        for rank in range(num_processes)
    ]
    delivered = [batch for rank in ranks for batch in rank]
    indices = torch.cat([batch["index"] for batch in delivered])
    assert indices.tolist() == list(range(count))
    assert torch.cat([batch["labels"] for batch in delivered]).tolist() == dataset.split["label"][:]


def test_evaluation_is_the_same_each_time_with_any_number_of_workers():
    dataset = digits_dataset(33)
    expected = batches(build_eval_loader(dataset, batch_size=16))
    loader = build_eval_loader(dataset, batch_size=16, num_workers=2)
    for _ in range(2):
        assert_same_batches(batches(loader), expected)


@pytest.mark.fault("15 labels missing or out of range")
@pytest.mark.parametrize("label", [-1, 3, None, 1.5])
def test_label_out_of_range_is_named_with_its_sample(label):
    split = datasets.Dataset.from_dict({"image": pictures(2), "label": [0, label]})
    with pytest.raises(DataError, match=f"^label {label} of sample 1 is not one of the 3 classes$"):
        ImageDataset(split, SampleReader("image", "label", NoisyCorner(), 3))[(0, 1)]


@pytest.mark.fault("13 bad images are named, or replaced on request")
@pytest.mark.parametrize("num_workers", [0, 2])
def test_damaged_image_ends_loading_with_its_path(tmp_path, num_workers):
    write_folder(tmp_path, "train/ant/1.jpg", "train/ant/2.jpg", "train/bee/1.jpg", "val/ant/1.jpg")
    bad = tmp_path / "train/ant/2.jpg"
    bad.write_text("not an image")
    splits = load_splits(str(tmp_path))
    dataset = ImageDataset(splits.train, SampleReader(splits.image_column, splits.label_column, NoisyCorner(), 2))
    loader = iter(build_train_loader(dataset, TrainingPlan(3, 3, 3), rank=0, total_steps=1, num_workers=num_workers))
    with pytest.raises(ImageDecodeError) as error:
        next(loader)
    message = str(error.value).strip()
    del error  # its traceback and this frame hold each other, and the garbage collector is slow to end workers
    # A worker's message is its whole traceback, the sentence at its end.
    assert message.endswith(f"{bad} (sample 1): is not an image, or its format is unknown to Pillow")


def with_bad_images(bad: list[int], count: int = 12) -> datasets.Dataset:
    images = [
        {"bytes": b"<html>", "path": f"{i}.jpg"} if i in bad else image for i, image in enumerate(pictures(count))
    ]
    features = datasets.Features(
        {"image": datasets.Image(decode=False), "label": datasets.ClassLabel(names=["a", "b", "c"])}
    )
    return datasets.Dataset.from_dict({"image": images, "label": [i % 3 for i in range(count)]}, features=features)


@pytest.mark.fault("13 bad images are named, or replaced on request")
def test_a_bad_image_is_replaced_by_what_its_key_says():
    dataset = ImageDataset(
        with_bad_images([3, 7]), SampleReader("image", "label", NoisyCorner(), 3), replace_bad_images=True
    )
    keys = [(epoch, index) for epoch in range(8) for index in (2, 3)]
    samples = [dataset[key] for key in keys]
    assert [(sample["index"], sample["replaced"]) for sample in samples] == 8 * [(2, 0), (3, 1)]
    again = [dataset[key] for key in reversed(keys)][::-1]
    for one, other in zip(samples, again, strict=True):
        assert torch.equal(one["pixel_values"], other["pixel_values"]) and one["labels"] == other["labels"]
    labels = [sample["labels"] for sample in samples[1::2]]
    assert len(set(labels)) > 1  # another one in each epoch


def test_a_data_set_without_good_images_is_named_by_the_one_asked_for():
    dataset = ImageDataset(
        with_bad_images([*range(12)]), SampleReader("image", "label", NoisyCorner(), 3), replace_bad_images=True
    )
    with pytest.raises(ImageDecodeError, match=r"^5\.jpg \(sample 5\): is not an image"):
        dataset[(0, 5)]


# WebDataset


def write_tar(path, labels, prefix=""):
    """An image and its label for each sample, as WebDataset stores them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for number, label in enumerate(labels):
            for ending, data in (("jpg", picture(number)), ("cls", str(label).encode())):
                entry = tarfile.TarInfo(f"{prefix}{number:04d}.{ending}")
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))


@pytest.fixture
def tar_folder(tmp_path):
    write_tar(tmp_path / "tars/train-0.tar", [0, 1, 2, 0])
    write_tar(tmp_path / "tars/train-1.tar", [1, 2, 0], prefix="./photos.2024/")
    write_tar(tmp_path / "tars/validation-0.tar", [2, 1])
    return str(tmp_path / "tars"), class_list(tmp_path)


@pytest.mark.parametrize("streaming", [False, True])
def test_tar_files_are_read_and_counted(tar_folder, streaming):
    folder, names = tar_folder
    splits = load_splits(folder, class_names=names, streaming=streaming)
    assert splits.class_names == ["ant", "bee", "cat"]
    assert (num_samples(splits.train), num_samples(splits.validation)) == (7, 2)
    assert sorted(row[splits.label_column] for row in splits.train) == [0, 0, 0, 1, 1, 2, 2]
    assert decode_rgb(next(iter(splits.train))[splits.image_column]).shape == (3, 10, 12)


@pytest.mark.fault("25 hostile archive")
@pytest.mark.parametrize("streaming", [False, True])
def test_nothing_of_a_tar_file_is_written_elsewhere(tmp_path, streaming):
    root = tmp_path / "data"
    for split in ("train", "validation"):
        write_tar(root / f"{split}-0.tar", [0, 1, 2], prefix="../../escaped/")
        write_tar(root / f"{split}-1.tar", [0, 1, 2], prefix=f"{tmp_path}/escaped/")
    splits = load_splits(
        str(root), streaming=streaming, **({"class_names": class_list(tmp_path)} if streaming else {})
    )
    assert len([*splits.train]) == 6
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "names.txt") == ["data"]
    assert not [*tmp_path.parent.glob("**/escaped")]


def class_list(folder):
    (folder / "names.txt").write_text("ant\nbee\ncat\n")
    return str(folder / "names.txt")


def test_class_names_fit_the_labels_or_are_refused(tar_folder, tmp_path):
    folder, names = tar_folder
    assert load_splits(folder).class_names == ["0", "1", "2"]
    two, twice = tmp_path / "two.txt", tmp_path / "twice.txt"
    two.write_text("ant\nbee\n")
    twice.write_text("ant\nbee\nant\n")
    refuses("label 2 of sample 2 of split 'train' of {} is not one of the 2 classes", folder, class_names=str(two))
    with pytest.raises(DataError, match=r"line 3 of .*twice\.txt must be the name of another class, got 'ant'"):
        load_splits(folder, class_names=str(twice))
    with pytest.raises(DataError, match=r"class_names missing\.txt cannot be read: No such file"):
        load_splits(folder, class_names="missing.txt")
    pictures = write_folder(tmp_path / "folder", "ant/1.jpg", "ant/2.jpg", "bee/1.jpg", "bee/2.jpg")
    refuses("split 'train' of {} has class names of its own: leave out class_names", pictures, class_names=names)


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


# The photographs other tests train on


def test_photographs_make_a_folder_that_can_be_trained_on(tmp_path):
    names = write_photo_folder(tmp_path, crops_per_class=2, val_crops_per_class=1)
    assert names == sorted(PHOTOS)
    assert len(names) >= 8
    splits = load_splits(str(tmp_path))
    assert splits.class_names == names
    assert (len(splits.train), len(splits.validation)) == (2 * len(names), len(names))
    longer_sides = [
        max(decode_rgb(image).shape) for split in (splits.train, splits.validation) for image in split["image"]
    ]
    assert 300 <= min(longer_sides) < max(longer_sides) <= 500


def test_photographs_do_not_depend_on_the_classes_asked_for(tmp_path):
    write_photo_folder(tmp_path / "a", crops_per_class=2, val_crops_per_class=1, classes=["moon", "coffee"])
    write_photo_folder(tmp_path / "b", crops_per_class=3, val_crops_per_class=2, classes=["coffee"])
    write_photo_folder(tmp_path / "c", crops_per_class=2, val_crops_per_class=1, classes=["coffee"], seed=1)
    for file in ("train/coffee/0000.jpg", "train/coffee/0001.jpg", "val/coffee/0000.jpg"):
        a, b, c = ((tmp_path / folder / file).read_bytes() for folder in "abc")
        assert a == b != c
