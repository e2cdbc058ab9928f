import random
import shutil
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from training.fingerprint import data_fingerprint
from training.sources import load_splits


def write_folder(root: Path) -> Path:
    rng = random.Random(0)
    for split, count in (("train", 4), ("val", 2)):
        for name in ("ant", "bee"):
            (root / split / name).mkdir(parents=True)
            for index in range(count):
                Image.new("RGB", (8, 8), rng.randrange(2**24)).save(root / split / name / f"{index}.png")
    return root


def fingerprint(folder: Path) -> str:
    splits = load_splits(str(folder))
    return data_fingerprint(splits.train, splits.image_column, splits.label_column)


def test_a_moved_folder_is_the_same_data(tmp_path):
    before = fingerprint(write_folder(tmp_path / "one"))
    shutil.move(tmp_path / "one", tmp_path / "other" / "place")
    assert fingerprint(tmp_path / "other" / "place") == before


def renamed(folder):
    (folder / "ant" / "1.png").rename(folder / "ant" / "10.png")


def removed(folder):
    (folder / "ant" / "1.png").unlink()


def added(folder):
    shutil.copy(folder / "ant" / "1.png", folder / "ant" / "5.png")


def relabelled(folder):
    (folder / "ant" / "1.png").rename(folder / "bee" / "11.png")


@pytest.mark.parametrize("change", [renamed, removed, added, relabelled])
def test_another_picture_or_label_is_other_data(tmp_path, change):
    folder = write_folder(tmp_path / "one")
    before = fingerprint(folder)
    change(folder / "train")
    assert fingerprint(folder) != before


def parquet_split(sizes: list[int], labels: list[int], paths: pa.Array) -> datasets.Dataset:
    images = pa.StructArray.from_arrays([pa.array([b"x" * size for size in sizes]), paths], names=["bytes", "path"])
    features = datasets.Features(
        {"image": datasets.Image(decode=False), "label": datasets.ClassLabel(names=["a", "b"])}
    )
    table = pa.table({"image": images, "label": pa.array(labels, pa.int64())})
    return datasets.Dataset(table, info=datasets.DatasetInfo(features=features))


def test_pictures_in_parquet_are_told_apart_by_size_and_order():
    def of(sizes, labels, paths=None):
        paths = pa.array(paths or [None] * len(sizes), pa.string())
        return data_fingerprint(parquet_split(sizes, labels, paths), "image", "label")

    one = of([3, 4], [0, 1])
    others = [of([4, 3], [0, 1]), of([3, 4], [1, 0]), of([3, 4, 4], [0, 1, 1]), of([3, 4], [0, 1], ["p", "q"])]
    assert one == of([3, 4], [0, 1])
    assert len({one, *others}) == 5


def test_a_selection_is_what_it_holds():
    split = parquet_split([1, 2, 3, 4], [0, 1, 0, 1], pa.nulls(4, pa.string()))
    chosen = split.select(np.array([3, 0]))
    same = parquet_split([4, 1], [1, 0], pa.nulls(2, pa.string()))
    assert data_fingerprint(chosen, "image", "label") == data_fingerprint(same, "image", "label")
