"""Witnesses: torchvision's RandomResizedCrop, and Pillow's resize alone and in torchvision, on real photographs."""

import math
import random

import numpy as np
import pytest
import skimage.data
import sklearn.datasets
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import CenterCrop, InterpolationMode, RandomResizedCrop, Resize
from torchvision.transforms.functional import pil_to_tensor

from training.transforms.augmentation import EvalTransform, TrainTransform, crop_box, sample_random

SCALE = (0.08, 1.0)
RATIO = (3 / 4, 4 / 3)
DRAWS = 4000

PHOTOS = {
    "astronaut": skimage.data.astronaut(),
    "chelsea": skimage.data.chelsea(),
    "coffee": skimage.data.coffee(),
    "china": sklearn.datasets.load_sample_image("china.jpg"),
    "flower": sklearn.datasets.load_sample_image("flower.jpg"),
}
PUBLISHED_SIZES = [(192, 219), (188, 214), (184, 210), (152, 173), (106, 121)]


def as_decoded(photo: np.ndarray) -> torch.Tensor:
    """(H, W, 3) memory seen as (3, H, W), which is what a JPEG decoder gives."""
    return torch.from_numpy(photo.copy()).permute(2, 0, 1)


def assert_same_pixels(ours: torch.Tensor, theirs: Image.Image) -> None:
    """To one 8-bit step in each of the two passes, across and down, after each of which both round. Steps of the first
    enter the second with weights of up to 1.25 in all: two steps are possible, but only where several of them meet."""
    assert ours.dtype == torch.uint8
    steps = (ours.int() - pil_to_tensor(theirs).int()).abs()
    assert steps.max() <= 2
    assert (steps > 1).float().mean() < 1e-4


def resized_box(picture: Image.Image, box: tuple[int, int, int, int], size: int) -> Image.Image:
    """Pillow's bicubic resize of (top, left, height, width). Across, then down, as Pillow always did in one call until
    version 13, which takes boxes that shrink more in height the other way round: 13 steps apart at hard edges."""
    top, left, height, width = box
    crop = picture.crop((left, top, left + width, top + height))
    return crop.resize((size, height), Image.Resampling.BICUBIC).resize((size, size), Image.Resampling.BICUBIC)


def assert_same_distribution(ours: np.ndarray, theirs: np.ndarray) -> None:
    """Means within 4 standard errors of their difference (1 in 16,000 by chance), and the Kolmogorov-Smirnov distance,
    the largest difference of any quantile's rank, below its 0.01 % critical value."""
    ours, theirs = np.sort(ours), np.sort(theirs)
    standard_error = math.sqrt(ours.var() / len(ours) + theirs.var() / len(theirs))
    assert abs(ours.mean() - theirs.mean()) <= 4 * standard_error
    points = np.concatenate([ours, theirs])
    ranks = [np.searchsorted(draws, points, "right") / len(draws) for draws in (ours, theirs)]
    critical = math.sqrt(-math.log(0.0001 / 2) / 2 * (1 / len(ours) + 1 / len(theirs)))
    assert np.abs(ranks[0] - ranks[1]).max() < critical


@pytest.mark.parametrize(("height", "width"), [(375, 500), (500, 333), (64, 64), (100, 250), (60, 600), (600, 60)])
def test_crop_boxes_are_distributed_as_torchvisions(height: int, width: int) -> None:
    torch.manual_seed(0)
    image = torch.empty(3, height, width)
    theirs = np.array([RandomResizedCrop.get_params(image, list(SCALE), list(RATIO)) for _ in range(DRAWS)])
    ours = np.array([crop_box(height, width, SCALE, RATIO, sample_random(0, 0, index)) for index in range(DRAWS)])
    for column in range(4):
        assert_same_distribution(ours[:, column], theirs[:, column])
    assert_same_distribution(ours[:, 2] * ours[:, 3], theirs[:, 2] * theirs[:, 3])
    assert_same_distribution(ours[:, 3] / ours[:, 2], theirs[:, 3] / theirs[:, 2])
    assert (ours[:, :2] >= 0).all() and (ours[:, 2:] >= 1).all()
    assert (ours[:, 0] + ours[:, 2] <= height).all() and (ours[:, 1] + ours[:, 3] <= width).all()


@pytest.mark.parametrize(("height", "width"), [(60, 600), (601, 60), (7, 1000), (1000, 3), (1, 1), (1, 9), (9, 1)])
def test_boxes_that_never_fit_become_torchvisions_central_one(height: int, width: int) -> None:
    # Ten times the image's area fits nowhere, so both fall back, which leaves nothing to chance.
    expected = RandomResizedCrop.get_params(torch.empty(3, height, width), [10.0, 10.0], list(RATIO))
    assert crop_box(height, width, (10.0, 10.0), RATIO, random.Random(0)) == expected


@pytest.mark.parametrize("photo", PHOTOS)
def test_train_crop_matches_pillows(photo: str) -> None:
    picture, image = Image.fromarray(PHOTOS[photo]), as_decoded(PHOTOS[photo])
    for index, image_size in enumerate([192, 188, 184, 152, 106, 32, 500]):
        key = (3, 5, index)
        box = crop_box(picture.height, picture.width, SCALE, RATIO, sample_random(*key))
        expected = resized_box(picture, box, image_size)
        assert_same_pixels(TrainTransform(image_size, horizontal_flip=0.0)(image, key), expected)
        mirrored = expected.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        assert_same_pixels(TrainTransform(image_size, horizontal_flip=1.0)(image, key), mirrored)


def test_memory_layout_does_not_change_a_pixel() -> None:
    decoded = as_decoded(PHOTOS["coffee"])
    for index in range(5):
        key = (0, 0, index)
        view = TrainTransform(106)(decoded, key)
        assert view.permute(1, 2, 0).is_contiguous() and view.dtype == torch.uint8 and view.shape == (3, 106, 106)
        assert torch.equal(view, TrainTransform(106)(decoded.contiguous(), key))


def test_half_of_the_samples_are_mirrored() -> None:
    image = as_decoded(PHOTOS["chelsea"])[:, 100:164, 100:164]
    always, sometimes = TrainTransform(8, horizontal_flip=1.0), TrainTransform(8)
    mirrored = sum(torch.equal(always(image, (0, 0, i)), sometimes(image, (0, 0, i))) for i in range(DRAWS))
    assert abs(mirrored / DRAWS - 0.5) <= 4 * 0.5 / math.sqrt(DRAWS)  # 4 standard errors of a fair coin


def test_each_part_of_the_key_changes_the_crop_and_nothing_else_does() -> None:
    image = as_decoded(PHOTOS["astronaut"])
    transform = TrainTransform(64)
    view = transform(image, (1, 2, 3))
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    assert torch.equal(view, transform(image, (1, 2, 3)))
    for other in [(0, 2, 3), (1, 0, 3), (1, 2, 0), (2, 1, 3), (1, 3, 2), (12, 3, 0), (1, 23, 0)]:
        assert not torch.equal(view, transform(image, other))


def test_neighbouring_keys_are_uncorrelated() -> None:
    def draws(of_key: list[tuple[int, int, int]]) -> np.ndarray:
        return np.array([sample_random(*key).random() for key in of_key])

    rows = [
        draws([(0, 0, index) for index in range(DRAWS)]),
        draws([(0, 0, index + 1) for index in range(DRAWS)]),
        draws([(0, 1, index) for index in range(DRAWS)]),
        draws([(1, 0, index) for index in range(DRAWS)]),
    ]
    correlations = np.corrcoef(rows)[np.triu_indices(len(rows), 1)]
    assert np.abs(correlations).max() <= 4 / math.sqrt(DRAWS)  # 4 standard errors of uncorrelated numbers


class Crops(Dataset):
    """The same photograph under the keys of one epoch."""

    def __init__(self) -> None:
        self.image = as_decoded(PHOTOS["flower"])
        self.transform = TrainTransform(48, rand_augment=(2, 9))

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.transform(self.image, (0, 0, index))


def test_loader_workers_and_batch_size_do_not_change_a_pixel() -> None:
    expected = torch.stack([Crops()[index] for index in range(12)])
    for workers, batch_size in [(0, 4), (1, 12), (2, 5)]:
        loader = DataLoader(Crops(), batch_size=batch_size, num_workers=workers)
        assert torch.equal(torch.cat(list(loader)), expected)


def test_rand_augment_depends_on_the_key_and_leaves_the_global_generator_alone() -> None:
    image = as_decoded(PHOTOS["china"])
    plain, augmented = TrainTransform(64), TrainTransform(64, rand_augment=(2, 15))
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = [augmented(image, (0, 0, index)) for index in range(20)]
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert all(torch.equal(augmented(image, (0, 0, index)), view) for index, view in enumerate(first))
    # Switching it on keeps the crop; of 14 x 14 pairs of operations only Identity twice changes nothing for sure.
    assert torch.equal(TrainTransform(64, rand_augment=(0, 15))(image, (0, 0, 0)), plain(image, (0, 0, 0)))
    assert sum(torch.equal(plain(image, (0, 0, index)), view) for index, view in enumerate(first)) < 5


@pytest.mark.parametrize("photo", PHOTOS)
@pytest.mark.parametrize(("image_size", "resize_size"), PUBLISHED_SIZES)
def test_eval_transform_matches_torchvision_on_pillow(photo: str, image_size: int, resize_size: int) -> None:
    assert_matches_torchvision(PHOTOS[photo], image_size, resize_size)


@pytest.mark.parametrize("height", [5, 37, 105, 121, 122, 219, 220, 255])
@pytest.mark.parametrize("width", [6, 106, 120, 121, 219, 221, 333, 400])
def test_eval_transform_matches_torchvision_at_odd_sizes(height: int, width: int) -> None:
    photo = PHOTOS["coffee"][20 : 20 + height, 30 : 30 + width]
    for image_size, resize_size in [(192, 219), (106, 121), (33, 38), (64, 64)]:
        assert_matches_torchvision(photo, image_size, resize_size)


@pytest.mark.parametrize(("image_size", "resize_size"), [(64, 48), (64, 63), (63, 40), (300, 121)])
def test_eval_transform_pads_with_black_where_the_crop_is_larger(image_size: int, resize_size: int) -> None:
    for photo in (PHOTOS["coffee"], PHOTOS["astronaut"], PHOTOS["chelsea"][:, :140]):
        assert_matches_torchvision(photo, image_size, resize_size)


def assert_matches_torchvision(photo: np.ndarray, image_size: int, resize_size: int) -> None:
    resized = Resize(resize_size, InterpolationMode.BICUBIC)(Image.fromarray(photo))
    expected = CenterCrop(image_size)(resized)
    view = EvalTransform(image_size, resize_size)(as_decoded(photo))
    assert view.permute(1, 2, 0).is_contiguous() and view.shape == (3, image_size, image_size)
    assert torch.equal(view, EvalTransform(image_size, resize_size)(as_decoded(photo), (1, 2, 3)))
    assert_same_pixels(view, expected)


@pytest.mark.parametrize("image", [torch.zeros(3, 8, 8), torch.zeros(1, 8, 8).byte(), torch.zeros(8, 8).byte()])
def test_what_is_not_rgb_uint8_is_refused(image: torch.Tensor) -> None:
    for apply in (EvalTransform(4, 5), lambda image: TrainTransform(4)(image, (0, 0, 0))):
        with pytest.raises(ValueError, match=r"uint8 of shape \(3, height, width\).*decode it to RGB"):
            apply(image)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_size": 0}, "image_size must be at least 1 pixel, got 0"),
        ({"scale": (0.0, 1.0)}, r"scale must be .*got \(0.0, 1.0\)"),
        ({"scale": (0.5, 1.5)}, r"scale must be .*got \(0.5, 1.5\)"),
        ({"ratio": (2.0, 1.0)}, r"ratio must be .*got \(2.0, 1.0\)"),
        ({"horizontal_flip": 1.1}, "horizontal_flip must be a probability from 0 to 1, got 1.1"),
        ({"rand_augment": (2, 31)}, r"rand_augment must be .*got \(2, 31\)"),
    ],
)
def test_arguments_out_of_bounds_are_named(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainTransform(**{"image_size": 8, **arguments})
    with pytest.raises(ValueError, match="image_size=8 and resize_size=0"):
        EvalTransform(8, 0)
