"""Witnesses: torchvision's ColorJitter, RandomErasing, MixUp, CutMix and adjust_* functions, on photographs."""

import itertools
import math

import numpy as np
import pytest
import skimage.data
import sklearn.datasets
import torch
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv

from training.transforms.augmentation import TrainTransform
from training.transforms.device_transforms import (
    BRIGHTNESS,
    CONTRAST,
    ERASING_RATIO,
    ERASING_SCALE,
    SATURATION,
    DeviceTransform,
    color_jitter,
    cutmix,
    cutmix_box,
    erase,
    erasing_boxes,
    jitter_parameters,
    mixup,
    normalize,
    sample_uniforms,
    split_mix,
)

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
DRAWS = 4000
ORDERS = torch.tensor(list(itertools.permutations(range(3))))
ADJUST = {BRIGHTNESS: tv.adjust_brightness, CONTRAST: tv.adjust_contrast, SATURATION: tv.adjust_saturation}

PHOTOS = [
    skimage.data.astronaut(),
    skimage.data.chelsea(),
    skimage.data.coffee(),
    skimage.data.rocket(),
    sklearn.datasets.load_sample_image("china.jpg"),
    sklearn.datasets.load_sample_image("flower.jpg"),
]


def photo_batch(size: int = 200) -> torch.Tensor:
    """uint8 (6, 3, size, size), the middle of each photograph."""
    return torch.stack([tv.center_crop(torch.from_numpy(photo.copy()).permute(2, 0, 1), size) for photo in PHOTOS])


def soft_targets(batch: int, classes: int = 5) -> torch.Tensor:
    return torch.rand(batch, classes, generator=torch.Generator().manual_seed(0)).softmax(dim=1)


def adjusted(image: torch.Tensor, factors: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """torchvision's functions on one image, one after the other."""
    for operation in order.tolist():
        image = ADJUST[operation](image, factors[operation].item())
    return image


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


def test_split_mix_gives_its_published_numbers() -> None:
    # The reference implementation's output for seed 1234567.
    expected = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    states = np.array([5, 1234567], dtype=np.uint64)
    assert split_mix(states, 5)[1].tolist() == expected


def test_uniform_numbers_are_uniform_and_uncorrelated_across_keys() -> None:
    indices = torch.arange(DRAWS)
    numbers = sample_uniforms(0, 0, indices, 6)
    assert numbers.min() >= 0 and numbers.max() < 1
    for column in numbers.T:
        assert_same_distribution(column, (np.arange(DRAWS) + 0.5) / DRAWS)
    others = [
        sample_uniforms(0, 0, indices + 1, 6),
        sample_uniforms(0, 1, indices, 6),
        sample_uniforms(1, 0, indices, 6),
    ]
    correlations = np.corrcoef(np.concatenate([numbers, *others], axis=1).T)[np.triu_indices(24, 1)]
    assert np.abs(correlations).max() <= 4.5 / math.sqrt(DRAWS)  # 4.5 standard errors, for the largest of 276


def test_uniform_numbers_of_a_sample_do_not_depend_on_its_batch() -> None:
    whole = sample_uniforms(3, 7, range(50), 8)
    assert np.array_equal(sample_uniforms(3, 7, [49, 0, 17], 8), whole[[49, 0, 17]])
    assert np.array_equal(sample_uniforms(3, 7, torch.tensor([17]), 8), whole[17:18])
    assert np.array_equal(sample_uniforms(3, 7, [17], 3), whole[17:18, :3])
    assert not np.isin(sample_uniforms(3, 8, range(50), 8), whole).any()
    assert not np.isin(sample_uniforms(7, 3, range(50), 8), whole).any()


@pytest.mark.parametrize("strength", [0.4, 1.5])
def test_jitter_factors_are_distributed_as_torchvisions(strength: float) -> None:
    torch.manual_seed(0)
    jitter = v2.ColorJitter(strength, strength, strength)
    theirs = [jitter.make_params([]) for _ in range(DRAWS)]
    factors, order = jitter_parameters(sample_uniforms(0, 0, range(DRAWS), 6), strength)
    for column, name in enumerate(["brightness_factor", "contrast_factor", "saturation_factor"]):
        assert_same_distribution(factors[:, column].numpy(), np.array([params[name] for params in theirs]))
    assert factors.min() >= max(0, 1 - strength) and factors.max() <= 1 + strength

    # torchvision permutes four operations; without hue, its number 3, six orders are left, all as likely.
    their_order = torch.stack([params["fn_idx"][params["fn_idx"] != 3] for params in theirs])
    for orders in (order, their_order):
        shares = [(orders == each).all(dim=1).float().mean().item() for each in ORDERS]
        assert max(abs(share - 1 / 6) for share in shares) <= 4 * math.sqrt(1 / 6 * 5 / 6 / DRAWS)


def assert_same_jitter(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    """Equal, wherever both fuse a multiplication and an addition alike. Else a value that is whole but for float32's
    rounding may be rounded down to the number below: one step for few pixels, two where a later factor enlarges it."""
    steps = (ours - theirs).abs()
    assert (steps > 0).float().mean() < 1e-2
    assert (steps > 1).float().mean() < 1e-3


@pytest.mark.parametrize("order", ORDERS, ids=str)
def test_color_jitter_matches_torchvisions_functions(order: torch.Tensor) -> None:
    images = photo_batch()
    factors, _ = jitter_parameters(sample_uniforms(1, 0, range(6), 6), 0.4)
    ours = color_jitter(images, factors, order.expand(6, 3))
    for image, factor, result in zip(images, factors, ours, strict=True):
        assert_same_jitter(result, adjusted(image, factor, order))


@pytest.mark.parametrize("operation", ADJUST)
@pytest.mark.parametrize("factor", [0.0, 0.6, 0.9, 1.0, 1.1, 1.4, 3.0])
def test_each_adjustment_alone_matches_torchvisions_to_one_step(operation: int, factor: float) -> None:
    images, factors = photo_batch(), torch.ones(6, 3)
    factors[:, operation] = factor
    ours = color_jitter(images, factors, torch.tensor([operation, *{0, 1, 2} - {operation}]).expand(6, 3))
    theirs = torch.stack([ADJUST[operation](image, factor) for image in images])
    # The two others, with factor 1, have nothing to round.
    assert (ours - theirs).abs().max() <= 1


def test_samples_in_one_batch_have_their_own_factors_and_order() -> None:
    images = photo_batch()
    factors, _ = jitter_parameters(sample_uniforms(2, 0, range(6), 6), 0.4)
    together = color_jitter(images, factors, ORDERS)
    for image, factor, order, result in zip(images, factors, ORDERS, together, strict=True):
        assert torch.equal(color_jitter(image[None], factor[None], order[None])[0], result)
        assert_same_jitter(result, adjusted(image, factor, order))


def test_color_jitter_takes_channels_last_and_leaves_its_input_alone() -> None:
    images = photo_batch()
    factors, order = jitter_parameters(sample_uniforms(0, 0, range(6), 6), 0.4)
    channels_last = images.contiguous(memory_format=torch.channels_last)
    assert_same_jitter(color_jitter(channels_last, factors, order), color_jitter(images, factors, order))
    assert torch.equal(images, photo_batch()) and torch.equal(channels_last, images)


def test_normalize_matches_torchvision() -> None:
    images = photo_batch()
    expected = tv.normalize(tv.to_dtype(images, torch.float32, scale=True), list(MEAN), list(STD))
    torch.testing.assert_close(normalize(images.float(), MEAN, STD), expected, rtol=1e-6, atol=1e-6)


def test_mixup_matches_torchvisions_with_its_share() -> None:
    images, targets = normalize(photo_batch().float(), MEAN, STD), soft_targets(6)
    for seed in range(5):
        own = np.random.default_rng(seed).beta(0.2, 0.2)
        theirs = v2.MixUp(num_classes=5)
        parameters = {"lam": own, "labels": targets, "batch_size": 6}
        ours = mixup(images.clone(), targets, 0.2, np.random.default_rng(seed))
        torch.testing.assert_close(ours[0], theirs.transform(images, parameters))
        torch.testing.assert_close(ours[1], theirs.transform(targets, parameters))


def test_cutmix_matches_torchvisions_with_its_box() -> None:
    images, targets = normalize(photo_batch().float(), MEAN, STD)[..., :150], soft_targets(6)
    for seed in range(5):
        rng = np.random.default_rng(seed)
        top, bottom, left, right = cutmix_box(200, 150, rng.beta(1.0, 1.0), rng)
        theirs = v2.CutMix(num_classes=5)
        own = 1 - (bottom - top) * (right - left) / (200 * 150)
        box = (left, top, right, bottom)
        parameters = {"box": box, "lam_adjusted": own, "labels": targets, "batch_size": 6}
        ours = cutmix(images.clone(), targets, 1.0, np.random.default_rng(seed))
        assert torch.equal(ours[0], theirs.transform(images, parameters))
        torch.testing.assert_close(ours[1], theirs.transform(targets, parameters))


def test_mixing_is_distributed_as_torchvisions() -> None:
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    batch = [torch.empty(2, 3, 90, 120)]
    cut, mix = v2.CutMix(alpha=0.7, num_classes=2), v2.MixUp(alpha=0.2, num_classes=2)
    their_boxes = np.array([cut.make_params(batch)["box"] for _ in range(DRAWS)])[:, [1, 3, 0, 2]]
    our_boxes = np.array([cutmix_box(90, 120, rng.beta(0.7, 0.7), rng) for _ in range(DRAWS)])
    for column in range(4):
        assert_same_distribution(our_boxes[:, column], their_boxes[:, column])

    their_shares = np.array([mix.make_params(batch)["lam"] for _ in range(DRAWS)])
    images, targets = torch.zeros(2, 3, 1, 1), torch.eye(2)
    our_shares = np.array([mixup(images, targets, 0.2, rng)[1][0, 0].item() for _ in range(DRAWS)])
    assert_same_distribution(our_shares, their_shares)


@pytest.mark.parametrize(("height", "width"), [(106, 106), (60, 200)])
def test_erased_boxes_are_distributed_as_torchvisions(height: int, width: int) -> None:
    torch.manual_seed(0)
    erasing = v2.RandomErasing(scale=ERASING_SCALE, ratio=ERASING_RATIO)
    image = [torch.empty(3, height, width)]
    theirs = [erasing.make_params(image) for _ in range(DRAWS)]
    theirs = np.array([[p["i"], p["i"] + p["h"], p["j"], p["j"] + p["w"]] for p in theirs if p["v"] is not None])
    ours = erasing_boxes(sample_uniforms(0, 0, range(DRAWS), 23), 1.0, height, width).numpy()
    ours = ours[ours.any(axis=1)]
    assert len(ours) == len(theirs) == DRAWS  # ten tries fail hardly ever
    for column in range(4):
        assert_same_distribution(ours[:, column], theirs[:, column])
    for first, last in [(0, 1), (2, 3)]:
        assert_same_distribution(ours[:, last] - ours[:, first], theirs[:, last] - theirs[:, first])


def test_the_share_of_erased_samples_is_the_probability() -> None:
    for probability in (0.0, 0.25, 1.0):
        boxes = erasing_boxes(sample_uniforms(0, 1, range(DRAWS), 23), probability, 64, 64)
        share = boxes.any(dim=1).float().mean().item()
        assert abs(share - probability) <= 4 * math.sqrt(probability * (1 - probability) / DRAWS)


def test_erase_matches_torchvisions() -> None:
    images = normalize(photo_batch().float(), MEAN, STD)[..., :150]
    boxes = erasing_boxes(sample_uniforms(0, 0, range(6), 23), 0.7, 200, 150)
    assert 0 < boxes.any(dim=1).sum() < 6
    expected = [
        tv.erase(image, top, left, bottom - top, right - left, torch.zeros(3, 1, 1))
        for image, (top, bottom, left, right) in zip(images, boxes.tolist(), strict=True)
    ]
    assert torch.equal(erase(images.clone(), boxes), torch.stack(expected))


def test_augmented_photographs_have_torchvisions_channel_means_and_deviations() -> None:
    """Crop, flip and jitter together, over 400 views of one photograph; tolerance: see assert_same_distribution."""
    views, size = 400, 48
    image = torch.from_numpy(PHOTOS[2].copy()).permute(2, 0, 1)
    torch.manual_seed(0)
    reference = v2.Compose(
        [
            v2.RandomResizedCrop(size, interpolation=v2.InterpolationMode.BICUBIC, antialias=True),
            v2.RandomHorizontalFlip(),
            v2.ColorJitter(0.4, 0.4, 0.4),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )
    theirs = torch.stack([reference(image) for _ in range(views)])
    crop = TrainTransform(size)
    batch = torch.stack([crop(image, (0, 0, index)) for index in range(views)])
    transform = DeviceTransform(MEAN, STD, color_jitter=0.4)
    ours, _ = transform(batch, torch.zeros(views), epoch=0, indices=range(views), step=0, rank=0)
    for channel in range(3):
        for statistic in (torch.mean, torch.std):
            assert_same_distribution(
                statistic(ours[:, channel].flatten(1), dim=1).numpy(),
                statistic(theirs[:, channel].flatten(1), dim=1).numpy(),
            )


def test_pixels_depend_on_seed_epoch_and_index_but_not_on_the_batch_step_or_rank() -> None:
    images, targets = photo_batch(), torch.arange(6)
    transform = DeviceTransform(MEAN, STD, color_jitter=0.4, random_erasing=0.5, seed=1)
    whole, labels = transform(images, targets, epoch=2, indices=range(10, 16), step=3, rank=0)
    assert torch.equal(labels, targets)
    again, _ = transform(images, targets, epoch=2, indices=range(10, 16), step=3, rank=0)
    assert torch.equal(again, whole)

    rows = [4, 1, 3]
    part, _ = transform(images[rows], targets[rows], epoch=2, indices=[14, 11, 13], step=9, rank=5)
    assert torch.equal(part, whole[rows])
    alone, _ = transform(images[5:], targets[5:], epoch=2, indices=[15], step=0, rank=1)
    assert torch.equal(alone, whole[5:])

    for other in [
        transform(images, targets, epoch=3, indices=range(10, 16), step=3, rank=0)[0],
        transform(images, targets, epoch=2, indices=range(20, 26), step=3, rank=0)[0],
        DeviceTransform(MEAN, STD, color_jitter=0.4, random_erasing=0.5, seed=0)(
            images, targets, epoch=2, indices=range(10, 16), step=3, rank=0
        )[0],
    ]:
        assert all((ours - theirs).abs().mean() > 0.01 for ours, theirs in zip(other, whole, strict=True))


def test_erasing_leaves_the_jitter_of_a_sample_as_it_was() -> None:
    images, key = photo_batch(), {"epoch": 0, "indices": range(6), "step": 0, "rank": 0}
    plain, _ = DeviceTransform(MEAN, STD, color_jitter=0.4)(images, torch.zeros(6), **key)
    erased, _ = DeviceTransform(MEAN, STD, color_jitter=0.4, random_erasing=1.0)(images, torch.zeros(6), **key)
    kept = erased != 0
    assert torch.equal(erased[kept], plain[kept]) and 0.4 < kept.float().mean() < 0.98


def test_mixing_depends_on_seed_step_and_rank() -> None:
    images, targets = photo_batch(), torch.eye(6)

    def mixed(step: int, rank: int, epoch: int = 0, seed: int = 0, **alphas: float) -> torch.Tensor:
        transform = DeviceTransform(MEAN, STD, seed=seed, **alphas)
        return transform(images, targets, epoch=epoch, indices=range(6), step=step, rank=rank)[1]

    for alphas in ({"mixup_alpha": 0.8}, {"cutmix_alpha": 1.0}, {"mixup_alpha": 0.8, "cutmix_alpha": 1.0}):
        first = mixed(1, 2, **alphas)
        assert torch.equal(mixed(1, 2, epoch=9, **alphas), first)
        for other in (mixed(2, 2, **alphas), mixed(1, 1, **alphas), mixed(1, 2, seed=1, **alphas)):
            assert not torch.equal(other, first)
        torch.testing.assert_close(first.sum(dim=1), torch.ones(6))


def test_with_both_alphas_a_coin_decides_between_mixup_and_cutmix() -> None:
    # A batch of one black and one white image: after CutMix there are still no other values.
    images = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).repeat(1, 3, 8, 8)
    transform = DeviceTransform((0.0,) * 3, (1.0,) * 3, mixup_alpha=1.0, cutmix_alpha=1.0)
    steps = 400
    cut = 0
    for step in range(steps):
        pixels, _ = transform(images, torch.eye(2), epoch=0, indices=[0, 1], step=step, rank=0)
        cut += set(pixels.unique().tolist()) == {0.0, 1.0}
    assert abs(cut / steps - 0.5) <= 4 * 0.5 / math.sqrt(steps)  # 4 standard errors of a fair coin


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"color_jitter": 0.4},
        {"mixup_alpha": 0.2},
        {"cutmix_alpha": 1.0},
        {"color_jitter": 0.4, "random_erasing": 0.5, "mixup_alpha": 0.2, "cutmix_alpha": 1.0},
    ],
    ids=str,
)
def test_batches_are_float32_in_channels_last_memory_and_the_input_is_untouched(arguments: dict) -> None:
    images, targets = photo_batch(), soft_targets(6)
    transform = DeviceTransform(MEAN, STD, **arguments)
    for batch in (images, images.contiguous(memory_format=torch.channels_last)):
        pixels, mixed = transform(batch, targets, epoch=0, indices=torch.arange(6), step=0, rank=0)
        assert pixels.dtype == mixed.dtype == torch.float32
        assert pixels.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(batch, photo_batch()) and torch.equal(targets, soft_targets(6))


def test_normalize_only_is_the_transform_with_everything_off() -> None:
    images = photo_batch()
    busy = DeviceTransform(MEAN, STD, color_jitter=0.4, random_erasing=1.0, mixup_alpha=0.2)
    evaluated = busy.normalize_only(images)
    plain, _ = DeviceTransform(MEAN, STD)(images, torch.arange(6), epoch=0, indices=range(6), step=0, rank=0)
    assert torch.equal(evaluated, plain)
    assert evaluated.is_contiguous(memory_format=torch.channels_last)
    expected = tv.normalize(images / 255, list(MEAN), list(STD))
    torch.testing.assert_close(evaluated, expected, rtol=1e-6, atol=1e-6)


def test_a_last_batch_of_one_sample_passes() -> None:
    transform = DeviceTransform(MEAN, STD, color_jitter=0.4, random_erasing=0.5, mixup_alpha=0.2, cutmix_alpha=1.0)
    pixels, targets = transform(photo_batch()[:1], torch.eye(5)[:1], epoch=0, indices=[7], step=0, rank=0)
    assert pixels.shape == (1, 3, 200, 200) and torch.isfinite(pixels).all()
    torch.testing.assert_close(targets, torch.eye(5)[:1])


def test_wrong_batches_are_refused_in_words() -> None:
    key = {"epoch": 0, "step": 0, "rank": 0}
    transform = DeviceTransform(MEAN, STD, mixup_alpha=0.2)
    with pytest.raises(ValueError, match=r"uint8 of shape \(batch, 3, height, width\), got torch.float32"):
        transform(photo_batch().float(), soft_targets(6), indices=range(6), **key)
    with pytest.raises(ValueError, match=r"uint8 of shape .*got torch.uint8 of shape \(3, 200, 200\)"):
        transform.normalize_only(photo_batch()[0])
    with pytest.raises(ValueError, match="got 5 indices for 6 images"):
        transform(photo_batch(), soft_targets(6), indices=range(5), **key)
    with pytest.raises(ValueError, match=r"need soft targets.*got torch.int64 of shape \(6,\)"):
        transform(photo_batch(), torch.arange(6), indices=range(6), **key)


@pytest.mark.parametrize(
    ("name", "value"),
    [("color_jitter", -0.1), ("random_erasing", 1.5), ("mixup_alpha", -1.0), ("cutmix_alpha", -1.0), ("seed", -1)],
)
def test_arguments_out_of_bounds_are_named(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} must .*got {value}"):
        DeviceTransform(MEAN, STD, **{name: value})


@pytest.mark.gpu
def test_a_gpu_gives_the_same_pixels_as_the_host() -> None:
    images, targets, key = photo_batch(), soft_targets(6), {"epoch": 1, "indices": range(6), "step": 2, "rank": 0}
    transform = DeviceTransform((0.0,) * 3, (1.0,) * 3, color_jitter=0.4, random_erasing=0.5, cutmix_alpha=1.0)
    host, device = transform(images, targets, **key), transform(images.cuda(), targets.cuda(), **key)
    assert device[0].is_contiguous(memory_format=torch.channels_last)
    assert_same_jitter(device[0].cpu() * 255, host[0] * 255)
    torch.testing.assert_close(device[1].cpu(), host[1])
    mixup_only = DeviceTransform(MEAN, STD, random_erasing=0.5, mixup_alpha=0.8)
    host, device = mixup_only(images, targets, **key), mixup_only(images.cuda(), targets.cuda(), **key)
    assert device[0].is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(device[0].cpu(), host[0])
    torch.testing.assert_close(device[1].cpu(), host[1])
