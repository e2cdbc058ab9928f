"""The photographs that other tests train on."""

from tests.photos import PHOTOS, write_photo_folder
from training.data.decoding import decode_rgb
from training.data.sources import load_splits


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
