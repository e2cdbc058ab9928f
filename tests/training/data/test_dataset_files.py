"""Parquet and tar files as `datasets` and other tools write them."""

import io
import re
import tarfile

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from tests.image_data import CLASS_LABEL, picture, pictures, refuses, write_folder, write_parquet, write_plain_parquet
from training.data.decoding import decode_rgb
from training.data.sources import load_splits, num_samples
from training.errors import DataError

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
