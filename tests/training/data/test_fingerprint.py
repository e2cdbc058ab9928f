import random
import re
import shutil
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from training.data.fingerprint import data_fingerprint, file_sizes
from training.data.sources import load_splits


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
def test_another_image_or_label_is_other_data(tmp_path, change):
    folder = write_folder(tmp_path / "one")
    before = fingerprint(folder)
    change(folder / "train")
    assert fingerprint(folder) != before


def sizes(folder: Path) -> str | None:
    splits = load_splits(str(folder))
    return file_sizes(splits.train, splits.image_column)


def test_an_image_replaced_under_its_name_shows_in_the_sizes_alone(tmp_path):
    folder = write_folder(tmp_path / "one")
    names, before = fingerprint(folder), sizes(folder)
    Image.new("RGB", (9, 8)).save(folder / "train" / "bee" / "2.png", compress_level=0)
    assert fingerprint(folder) == names
    assert sizes(folder) != before


def test_a_copy_made_at_another_time_has_the_same_sizes(tmp_path):
    before = sizes(write_folder(tmp_path / "one"))
    assert re.fullmatch("[0-9a-f]{64}", before)
    shutil.copytree(tmp_path / "one", tmp_path / "two", copy_function=shutil.copyfile)
    assert sizes(tmp_path / "two") == before


def test_sizes_are_those_of_the_selection_in_its_order(tmp_path):
    files = []
    for size in (5, 6, 7):
        files.append(str(tmp_path / f"{size}.png"))
        Path(files[-1]).write_bytes(b"x" * size)
    paths, nothing = pa.array([*files, "missing.png", "hf://a/b.png"]), pa.nulls(5, pa.binary())
    images = pa.StructArray.from_arrays([nothing, paths], names=["bytes", "path"])
    features = datasets.Features({"image": datasets.Image(decode=False)})
    split = datasets.Dataset(pa.table({"image": images}), info=datasets.DatasetInfo(features=features))

    def of(*indices):
        return file_sizes(split.select(indices), "image")

    assert len({of(0, 1), of(1, 0), of(0, 2), of(0, 1, 3), of(0, 3, 1)}) == 5
    assert of(3, 4) is None
    assert file_sizes(split, "image") == of(*range(5))


def test_embedded_images_have_no_files(tmp_path):
    """Their names may be those of files that lie here by chance."""
    (tmp_path / "a.png").write_bytes(b"x")
    split = parquet_split([3], [0], pa.array([str(tmp_path / "a.png")]))
    assert file_sizes(split, "image") is None


def parquet_split(sizes: list[int], labels: list[int], paths: pa.Array) -> datasets.Dataset:
    images = pa.StructArray.from_arrays([pa.array([b"x" * size for size in sizes]), paths], names=["bytes", "path"])
    features = datasets.Features(
        {"image": datasets.Image(decode=False), "label": datasets.ClassLabel(names=["a", "b"])}
    )
    table = pa.table({"image": images, "label": pa.array(labels, pa.int64())})
    return datasets.Dataset(table, info=datasets.DatasetInfo(features=features))


def test_images_in_parquet_are_told_apart_by_size_and_order():
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
