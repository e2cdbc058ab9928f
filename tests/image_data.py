"""Images and datasets that tests write, and what they ask of them in one line."""

import io

import datasets
import numpy as np
import PIL.Image
import PIL.ImageOps
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import skimage.data
import torch

from training.data.sources import load_splits
from training.errors import DataError

CLASS_LABEL = datasets.ClassLabel(names=["ant", "bee", "cat"])


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


def refuses(sentence, dataset, **options):
    """`load_splits` must fail with this one sentence, in which {} stands for the dataset."""
    with pytest.raises(DataError) as error:
        load_splits(dataset, **options)
    assert str(error.value) == sentence.replace("{}", dataset)


class NoisyCorner:
    """Stands in for a transform: the upper left corner, with noise that the key decides."""

    def __call__(self, image, key):
        noise = np.random.default_rng(key).integers(0, 16, (3, 8, 8), dtype=np.uint8)
        return image[:, :8, :8] // 2 + torch.from_numpy(noise)


def batches(loader):
    """Copies: a worker's shared memory is freed with its batch."""
    return [{name: value.clone() for name, value in batch.items()} for batch in loader]
