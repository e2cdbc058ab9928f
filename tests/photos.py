"""Image folders of real photographs, cut from those that ship inside scikit-image and scikit-learn: no download."""

import zlib
from pathlib import Path

import numpy as np
import skimage.data
from PIL import Image
from sklearn.datasets import load_sample_image

# One class for each photograph whose right-hand side can be told by its left-hand side.
PHOTOS = {
    "brick": skimage.data.brick,
    "cat": skimage.data.chelsea,
    "coffee": skimage.data.coffee,
    "coins": skimage.data.coins,
    "flower": lambda: load_sample_image("flower.jpg"),
    "galaxies": skimage.data.hubble_deep_field,
    "grass": skimage.data.grass,
    "gravel": skimage.data.gravel,
    "moon": skimage.data.moon,
    "motorcycle": lambda: skimage.data.stereo_motorcycle()[0],
    "pagoda": lambda: load_sample_image("china.jpg"),
    "retina": skimage.data.retina,
    "rocket": skimage.data.rocket,
    "tissue": skimage.data.immunohistochemistry,
}
TRAIN_SHARE = 0.6  # of a photograph's width; the rest is for validation


def write_photo_folder(
    root: Path,
    *,
    crops_per_class: int,
    val_crops_per_class: int,
    size: tuple[int, int] = (300, 500),
    seed: int = 0,
    classes: list[str] | None = None,
) -> list[str]:
    """Write `root/{train,val}/<class>/*.jpg` and return the class names, sorted.

    Training crops come from the left 60 % of a photograph and validation crops from the right 40 %: no pixel is in
    both. A crop is a random window, scaled to a longer side of `size[0]` to `size[1]` pixels and stored as JPEG at
    quality 90. The same arguments give the same files, and a class has the same ones whichever others are asked for.
    """
    classes = sorted(PHOTOS if classes is None else classes)
    for name in classes:
        photo = Image.fromarray(PHOTOS[name]()).convert("RGB")
        middle = round(photo.width * TRAIN_SHARE)
        regions = {
            "train": (photo.crop((0, 0, middle, photo.height)), crops_per_class),
            "val": (photo.crop((middle, 0, photo.width, photo.height)), val_crops_per_class),
        }
        for split, (region, count) in regions.items():
            folder = Path(root, split, name)
            folder.mkdir(parents=True)
            random = np.random.default_rng([seed, zlib.crc32(f"{split}/{name}".encode())])
            for number in range(count):
                random_crop(region, size, random).save(folder / f"{number:04}.jpg", quality=90)
    return classes


def random_crop(region: Image.Image, size: tuple[int, int], random: np.random.Generator) -> Image.Image:
    """A window of 60 to 100 % of the region's shorter side and an aspect ratio of 3/4 to 4/3, scaled."""
    side = min(region.size) * random.uniform(0.6, 1.0)
    stretch = random.uniform(0.75, 4 / 3) ** 0.5
    width, height = min(region.width, round(side * stretch)), min(region.height, round(side / stretch))
    left, top = random.integers(region.width - width + 1), random.integers(region.height - height + 1)
    scale = random.integers(size[0], size[1] + 1) / max(width, height)
    window = (left, top, left + width, top + height)
    return region.resize((round(width * scale), round(height * scale)), Image.Resampling.BICUBIC, box=window)
