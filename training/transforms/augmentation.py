"""Random crop, flip and evaluation crop of one decoded image, in the loader's workers: uint8 in, uint8 out.

What a sample becomes is a function of its key (seed, epoch, index) alone, never of the worker, the batch or the
process that makes it. What a whole batch can have at once (color jitter, normalization, mixup) is in
`device_transforms`.
"""

import math
import random

import torch
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import RandAugment

from modeling_tinynet.image_processing_tinynet import resize_and_center_crop

CROP_TRIES = 10


def sample_random(seed: int, epoch: int, index: int) -> random.Random:
    """The random numbers of one sample in one epoch."""
    # Python hashes a text with SHA-512, so that neighboring keys give unrelated streams.
    return random.Random(f"{seed}/{epoch}/{index}")


def crop_box(
    height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float], rng: random.Random
) -> tuple[int, int, int, int]:
    """A random box inside an image, distributed as in torchvision's RandomResizedCrop.

    Args:
        height, width: The image's, in pixels.
        scale: Range of the box's area as a share of the image's, drawn uniformly.
        ratio: Range of the box's width / height, drawn log-uniformly.

    Returns:
        (top, left, height, width) in pixels. After ten boxes that do not fit into the image: the largest central one
        whose shape is within `ratio`.
    """
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(CROP_TRIES):
        area = height * width * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(low, high))
        box_height, box_width = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
        if 0 < box_height <= height and 0 < box_width <= width:
            return rng.randrange(height - box_height + 1), rng.randrange(width - box_width + 1), box_height, box_width

    aspect = min(max(width / height, ratio[0]), ratio[1])
    box_height, box_width = min(height, round(width / aspect)), min(width, round(height * aspect))
    return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width


class TrainTransform:
    """RandomResizedCrop (bicubic, antialiased), horizontal flip and, where asked for, RandAugment.

    Args:
        image_size: Side of the square result, in pixels.
        scale, ratio: Of the random box, see `crop_box`.
        horizontal_flip: Probability of mirroring left and right.
        rand_augment: (operations, magnitude from 0 to 30) of torchvision's RandAugment; the published recipe has none.

    Raises:
        ValueError: A size, range or probability out of bounds.
    """

    def __init__(
        self,
        image_size: int,
        scale: tuple[float, float] = (0.08, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        horizontal_flip: float = 0.5,
        rand_augment: tuple[int, int] | None = None,
    ) -> None:
        if image_size < 1:
            raise ValueError(f"image_size must be at least 1 pixel, got {image_size}")
        if not 0 < scale[0] <= scale[1] <= 1:
            raise ValueError(f"scale must be (smallest, largest) share of the area within (0, 1], got {scale}")
        if not 0 < ratio[0] <= ratio[1]:
            raise ValueError(f"ratio must be (smallest, largest) width / height above 0, got {ratio}")
        if not 0 <= horizontal_flip <= 1:
            raise ValueError(f"horizontal_flip must be a probability from 0 to 1, got {horizontal_flip}")
        if rand_augment and not (rand_augment[0] >= 0 and 0 <= rand_augment[1] <= 30):
            raise ValueError(f"rand_augment must be (operations, magnitude from 0 to 30), got {rand_augment}")
        self.image_size = image_size
        self.scale = scale
        self.ratio = ratio
        self.horizontal_flip = horizontal_flip
        self.rand_augment = (
            RandAugment(*rand_augment, interpolation=InterpolationMode.BILINEAR) if rand_augment else None
        )

    def __call__(self, image: Tensor, key: tuple[int, int, int]) -> Tensor:
        """The training view of `image` under `key`.

        Args:
            image: uint8, (3, height, width), in any memory layout; `hwc.permute(2, 0, 1)` as decoders give it is the
                fastest.
            key: (seed, epoch, index), which alone decides what comes out.

        Returns:
            uint8, (3, image_size, image_size), in channels-last memory.
        """
        _check_image(image)
        rng = sample_random(*key)
        top, left, height, width = crop_box(image.shape[1], image.shape[2], self.scale, self.ratio, rng)
        # One call in place of several slices. By the first stride torch sees channels-last memory, and stays in it.
        _, down, right = image.stride()
        start = image.storage_offset() + top * down + left * right
        box = image.as_strided((1, 3, height, width), (image.numel(), *image.stride()), start)
        # torch's 8-bit kernel: several times faster than its float one, and Pillow's pixels but for single steps.
        view = interpolate(box, size=(self.image_size, self.image_size), mode="bicubic", antialias=True)[0]
        if rng.random() < self.horizontal_flip:
            view = view.flip(-1)
        if self.rand_augment is not None:
            # torchvision draws from torch's global CPU generator. `torch.manual_seed` would reseed the GPU's as well.
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(rng.getrandbits(63))
                view = self.rand_augment(view)
        return channels_last(view)


class EvalTransform:
    """The published evaluation crop: shorter side to `resize_size`, then the central `image_size` square.

    It is `TinyNetImageProcessor`'s own geometry, so that a trainer's accuracy is the one that users of the model get.

    Raises:
        ValueError: A size below one pixel.
    """

    def __init__(self, image_size: int, resize_size: int) -> None:
        if image_size < 1 or resize_size < 1:
            raise ValueError(f"both sizes must be at least 1 pixel, got {image_size=} and {resize_size=}")
        self.image_size = image_size
        self.resize_size = resize_size

    def __call__(self, image: Tensor, key: tuple[int, int, int] | None = None) -> Tensor:
        """uint8 (3, height, width) to uint8 (3, image_size, image_size), in channels-last memory, whatever the key."""
        _check_image(image)
        return channels_last(resize_and_center_crop(image, self.resize_size, self.image_size))


def channels_last(image: Tensor) -> Tensor:
    """(3, height, width) in the memory of a contiguous (height, width, 3): copied only where it is not there yet."""
    return image.permute(1, 2, 0).contiguous().permute(2, 0, 1)


def _check_image(image: Tensor) -> None:
    if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3:
        raise ValueError(
            f"an image must be uint8 of shape (3, height, width), got {image.dtype} of shape {tuple(image.shape)};"
            " decode it to RGB first"
        )
