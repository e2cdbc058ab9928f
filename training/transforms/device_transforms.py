"""Color jitter, normalization, mixup, CutMix and random erasing of a whole uint8 batch, on the batch's device.

Until `normalize`, images are in 8-bit units: 0 to 255. Each sample's parameters are a function of (seed, epoch, index)
alone, drawn on the host for the whole batch at once: they depend neither on the batch a sample is in nor on the
process that draws it. mixup and CutMix tie a batch together: theirs are a function of (seed, step, rank).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

BRIGHTNESS, CONTRAST, SATURATION = range(3)
LUMA_WEIGHTS = (0.2989, 0.587, 0.114)  # torchvision's rgb_to_grayscale

ERASING_TRIES = 10
ERASING_SCALE = (0.02, 1 / 3)
ERASING_RATIO = (0.3, 3.3)

# Columns of `sample_uniforms`. Each transform has its own, so that switching one on leaves the others as they were.
_JITTER_COLUMNS = slice(0, 6)
_ERASING_COLUMNS = slice(6, 6 + 3 + 2 * ERASING_TRIES)

# Numbers (4 MB) that a core works on at a time: few calls for each image, and still in a cache.
CPU_CACHE = 2**20

_GOLDEN_GAMMA = np.uint64(0x9E3779B97F4A7C15)


def _mix(z: np.ndarray) -> np.ndarray:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def split_mix(state: np.ndarray, count: int) -> np.ndarray:
    """The first `count` outputs of SplitMix64 (Steele et al., OOPSLA 2014) from each state: uint64 (B,) -> (B, count).

    Its n-th output is a hash of state + n * gamma, so that a whole batch of generators runs in a few array operations.
    """
    return _mix(state[:, None] + _GOLDEN_GAMMA * np.arange(1, count + 1, dtype=np.uint64))


def sample_uniforms(seed: int, epoch: int, indices: Sequence[int] | Tensor, count: int) -> np.ndarray:
    """Numbers in [0, 1), float64 (B, count): row i is a function of (seed, epoch, indices[i]) alone."""
    state = np.zeros(1, dtype=np.uint64)
    for part in ([seed], [epoch], indices):
        state = split_mix(state ^ np.asarray(part, dtype=np.int64).view(np.uint64), 1)[:, 0]
    return (split_mix(state, count) >> np.uint64(11)) * 2.0**-53


def jitter_parameters(uniforms: np.ndarray, strength: float) -> tuple[Tensor, Tensor]:
    """Factors and order of torchvision's ColorJitter(strength, strength, strength), from uniform numbers (B, 6).

    Returns:
        Factors of brightness, contrast and saturation, float32 (B, 3), uniform in [max(0, 1 - strength),
        1 + strength], and the order in which they are applied, int64 (B, 3), all six permutations being as likely.
    """
    low, high = max(0.0, 1 - strength), 1 + strength
    factors = low + (high - low) * uniforms[:, :3]
    return torch.from_numpy(factors).float(), torch.from_numpy(uniforms[:, 3:].argsort(axis=1))


def color_jitter(images: Tensor, factors: Tensor, order: Tensor) -> Tensor:
    """Brightness, contrast and saturation of each sample, by its own factors and in its own order.

    As torchvision's `adjust_*` on 8-bit images, which, like Pillow's, round down after each: without that, images
    are a step brighter on average, and up to three where the roundings add up.

    Args:
        images: uint8 (B, 3, H, W).
        factors: float (B, 3): columns BRIGHTNESS, CONTRAST, SATURATION. On the host, like `order`.
        order: int64 (B, 3): a permutation of these three for each sample.

    Returns:
        float32 (B, 3, H, W), whole numbers from 0 to 255.
    """
    if images.device.type == "cpu":
        jittered = torch.empty(images.shape)
        for members, chosen in _jittered_on_cpu(images, factors, order):
            jittered[members] = chosen
        return jittered
    # All three blend the image with something: black, its mean gray, its gray version. So one expression does any of
    # them, and no sample has to be moved into a group of its like. Grays are whole numbers, so that their float32 sum,
    # and with it the mean, is exact for up to 256 x 256 pixels, in whatever order a device adds them.
    factors = factors.gather(1, order)
    blend_weights = (1 - factors) * (order != BRIGHTNESS)
    weights = torch.stack([factors, blend_weights, order == SATURATION]).to(images.device, non_blocking=True)

    images = images.to(torch.float32)
    for factor, blend_weight, is_saturation in weights[..., None, None, None].unbind(2):
        gray = _gray(*images.split(1, dim=1))
        other = torch.where(is_saturation > 0, gray, gray.mean(dim=(2, 3), keepdim=True))
        # addcmul_ rounds as torchvision's add_(alpha=...) does: with anything else, whole numbers fall a step apart.
        images.mul_(factor).addcmul_(other, blend_weight).clamp_(0, 255).floor_()
    return images


def _jittered_on_cpu(images: Tensor, factors: Tensor, order: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """`color_jitter`, bit for bit, of some samples at a time: (their numbers, images in contiguous planes).

    They have one order in common, so that no step computes what it does not need."""
    count = max(1, CPU_CACHE // images[0].numel())
    kinds, kind_of_sample = order.unique(dim=0, return_inverse=True)
    for number, kind in enumerate(kinds.tolist()):
        for members in (kind_of_sample == number).nonzero()[:, 0].split(count):
            chosen = torch.empty(len(members), *images.shape[1:])
            for image, member in zip(chosen, members.tolist(), strict=True):
                image.copy_(images[member])
            for step in kind:
                factor = factors[members, step][:, None, None, None]
                if step == BRIGHTNESS:
                    chosen.mul_(factor)
                else:
                    gray = _gray(*chosen.split(1, dim=1))
                    if step == CONTRAST:
                        gray.copy_(gray.mean(dim=(2, 3), keepdim=True))
                    chosen.mul_(factor).addcmul_(gray, 1 - factor)
                chosen.clamp_(0, 255).floor_()
            yield members, chosen


def _gray(red: Tensor, green: Tensor, blue: Tensor) -> Tensor:
    return (red * LUMA_WEIGHTS[0]).add_(green, alpha=LUMA_WEIGHTS[1]).add_(blue, alpha=LUMA_WEIGHTS[2]).floor_()


def normalize(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(images / 255 - mean) / std per channel, in place, of float images (B, 3, H, W) in 8-bit units."""
    offset, scale = (255 * torch.tensor([mean, std])).to(images.device, non_blocking=True)
    if images.device.type == "cpu" and images.is_contiguous(memory_format=torch.channels_last):
        # A row of pixels at once: three channels alone are too short for a processor's vector units.
        offset, scale = offset.repeat(images.shape[3]), scale.repeat(images.shape[3])
        for rows in images.permute(0, 2, 3, 1).flatten(2):
            rows.sub_(offset).div_(scale)
        return images
    return images.sub_(offset[:, None, None]).div_(scale[:, None, None])


def _rolled(batch: Tensor) -> Tensor:
    """Each sample's predecessor, the first one's being the last; `Tensor.roll` would lose channels-last on CUDA."""
    return torch.cat((batch[-1:], batch[:-1]))


def mixup(images: Tensor, targets: Tensor, alpha: float, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Blends each sample with its predecessor: share l ~ Beta(alpha, alpha), one for the batch, 1 - l of the other.

    Args:
        images: float (B, 3, H, W), changed in place.
        targets: Soft targets, float (B, K).

    Source: torchvision's v2.MixUp; arXiv 1710.09412.
    """
    own = rng.beta(alpha, alpha)
    other_images, other_targets = _rolled(images), _rolled(targets)
    return images.mul_(own).add_(other_images, alpha=1 - own), targets * own + other_targets * (1 - own)


def cutmix_box(height: int, width: int, own: float, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """(top, bottom, left, right) of a box of the image's shape and of 1 - `own` of its area, centred on a random pixel
    and cut off at the borders: there its area is smaller."""
    column, row = int(rng.integers(width)), int(rng.integers(height))
    half = 0.5 * (1 - own) ** 0.5
    half_height, half_width = int(half * height), int(half * width)
    return (
        max(row - half_height, 0),
        min(row + half_height, height),
        max(column - half_width, 0),
        min(column + half_width, width),
    )


def cutmix(images: Tensor, targets: Tensor, alpha: float, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Pastes one box of each sample's predecessor into it; the targets follow the pasted area.

    Args:
        images: float (B, 3, H, W), changed in place.
        targets: Soft targets, float (B, K).

    Source: torchvision's v2.CutMix; arXiv 1905.04899.
    """
    height, width = images.shape[-2:]
    top, bottom, left, right = cutmix_box(height, width, rng.beta(alpha, alpha), rng)
    box = images[..., top:bottom, left:right]
    box.copy_(_rolled(box))
    other = (bottom - top) * (right - left) / (height * width)
    return images, targets * (1 - other) + _rolled(targets) * other


def erasing_boxes(uniforms: np.ndarray, probability: float, height: int, width: int) -> Tensor:
    """The boxes that torchvision's RandomErasing(probability, (0.02, 1/3), (0.3, 3.3)) erases.

    Args:
        uniforms: Uniform numbers, (B, 3 + 2 * ERASING_TRIES).

    Returns:
        int64 (B, 4): top, bottom, left, right; all zero where a sample is left alone, which is also the case after
        ten boxes that do not fit.
    """
    chosen, row, column = uniforms[:, :3].T
    area_draws, ratio_draws = uniforms[:, 3:].reshape(len(uniforms), 2, ERASING_TRIES).transpose(1, 0, 2)
    areas = height * width * (ERASING_SCALE[0] + (ERASING_SCALE[1] - ERASING_SCALE[0]) * area_draws)
    low, high = np.log(ERASING_RATIO)
    ratios = np.exp(low + (high - low) * ratio_draws)
    heights, widths = np.rint(np.sqrt(areas * ratios)), np.rint(np.sqrt(areas / ratios))

    fits = (heights < height) & (widths < width)
    first = fits.argmax(axis=1)[:, None]
    box_heights, box_widths = (np.take_along_axis(sides, first, axis=1)[:, 0] for sides in (heights, widths))
    tops, lefts = np.floor(row * (height - box_heights + 1)), np.floor(column * (width - box_widths + 1))
    boxes = np.stack([tops, tops + box_heights, lefts, lefts + box_widths], axis=1)
    boxes[~fits.any(axis=1) | (chosen >= probability)] = 0
    return torch.from_numpy(boxes.astype(np.int64))


def erase(images: Tensor, boxes: Tensor) -> Tensor:
    """Sets each sample's box (int64 (B, 4) on the host: top, bottom, left, right) to 0, in place: the mean color of
    normalized images (B, 3, H, W)."""
    height, width = images.shape[-2:]
    top, bottom, left, right = boxes.to(images.device, non_blocking=True).T[..., None]
    rows, columns = torch.arange(height, device=images.device), torch.arange(width, device=images.device)
    in_rows = (rows >= top) & (rows < bottom)
    in_columns = (columns >= left) & (columns < right)
    return images.masked_fill_((in_rows[:, :, None] & in_columns[:, None, :])[:, None], 0)


@dataclass(frozen=True)
class DeviceTransform:
    """uint8 batches to the network's input: color jitter, normalization, mixup or CutMix, random erasing.

    Args:
        mean, std: Per channel, of pixels in [0, 1].
        color_jitter: Strength for brightness, contrast and saturation; 0.4 in the published recipe.
        random_erasing: Probability that a sample loses a box.
        mixup_alpha, cutmix_alpha: Of the Beta distribution, 0 for none. With both, a coin decides for each step.

    Raises:
        ValueError: A strength, probability or alpha out of bounds.
    """

    mean: Sequence[float]
    std: Sequence[float]
    color_jitter: float = 0.0
    random_erasing: float = 0.0
    mixup_alpha: float = 0.0
    cutmix_alpha: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("color_jitter", "mixup_alpha", "cutmix_alpha", "seed"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if not 0 <= self.random_erasing <= 1:
            raise ValueError(f"random_erasing must be a probability from 0 to 1, got {self.random_erasing}")

    def __call__(
        self,
        images: Tensor,
        targets: Tensor,
        *,
        epoch: int,
        indices: Sequence[int] | Tensor,
        step: int,
        rank: int,
    ) -> tuple[Tensor, Tensor]:
        """The network's input for one batch.

        Args:
            images: uint8 (B, 3, H, W), on any device.
            targets: Soft targets, float (B, K), on the same device. Labels will do without mixup and CutMix.
            epoch, indices: Decide about color jitter and random erasing; `indices` (B,) lie on the host.
            step, rank: Decide about mixup and CutMix: the micro-batches of one step and rank share the mixing share
                and the box, and which two samples meet depends on the batch.

        Returns:
            Normalized float32 (B, 3, H, W) in channels-last memory, and the targets.

        Raises:
            ValueError: Images that are not uint8, another number of indices than images, or labels where mixup or
                CutMix needs soft targets.
        """
        _check_batch(images)
        if len(indices) != len(images):
            raise ValueError(f"each image needs its index, got {len(indices)} indices for {len(images)} images")
        uniforms = sample_uniforms(self.seed, epoch, indices, _ERASING_COLUMNS.stop)
        jitter = jitter_parameters(uniforms[:, _JITTER_COLUMNS], self.color_jitter) if self.color_jitter else None
        pixels = self._normalized(images, jitter)
        pixels, targets = self._mixed(pixels, targets, step, rank)
        if self.random_erasing:
            erase(pixels, erasing_boxes(uniforms[:, _ERASING_COLUMNS], self.random_erasing, *pixels.shape[-2:]))
        return pixels, targets

    def normalize_only(self, images: Tensor) -> Tensor:
        """For evaluation: uint8 (B, 3, H, W) to normalized float32 in channels-last memory, nothing random."""
        _check_batch(images)
        return self._normalized(images, None)

    def _normalized(self, images: Tensor, jitter: tuple[Tensor, Tensor] | None) -> Tensor:
        pixels = torch.empty(
            images.shape, dtype=torch.float32, device=images.device, memory_format=torch.channels_last
        )
        if jitter is not None and images.device.type == "cpu":
            for members, chosen in _jittered_on_cpu(images, *jitter):
                normalize(chosen, self.mean, self.std)
                for member, image in zip(members.tolist(), chosen, strict=True):
                    pixels[member] = image
            return pixels
        pixels.copy_(images if jitter is None else color_jitter(images, *jitter))
        return normalize(pixels, self.mean, self.std)

    def _mixed(self, pixels: Tensor, targets: Tensor, step: int, rank: int) -> tuple[Tensor, Tensor]:
        if not (self.mixup_alpha or self.cutmix_alpha):
            return pixels, targets
        if targets.ndim != 2 or not targets.is_floating_point():
            raise ValueError(
                "mixup and CutMix need soft targets, float of shape (batch, classes),"
                f" got {targets.dtype} of shape {tuple(targets.shape)}"
            )
        rng = np.random.Generator(np.random.Philox([self.seed, step, rank]))
        if self.mixup_alpha and (not self.cutmix_alpha or rng.random() < 0.5):
            return mixup(pixels, targets, self.mixup_alpha, rng)
        return cutmix(pixels, targets, self.cutmix_alpha, rng)


def _check_batch(images: Tensor) -> None:
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(
            f"a batch must be uint8 of shape (batch, 3, height, width), got {images.dtype} of shape"
            f" {tuple(images.shape)}"
        )
