"""What a model's image processor does to an image, for the loaders: geometry in the workers, numbers on the device.

`Preprocessing` follows every setting of a `TinyNetImageProcessor`, for evaluation. Training follows what
`TinyNetConfig` can state, as `config_fields` gives it: the published geometry, with any numbers.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from PIL.Image import Resampling
from torchvision.transforms.v2 import functional as tvF
from transformers.image_utils import pil_torch_interpolation_mapping

from modeling_tinynet import TinyNetConfig, TinyNetImageProcessor
from training.errors import ModelError
from training.transforms.augmentation import channels_last

CHANNELS = 3


def read_processor(source: str) -> TinyNetImageProcessor:
    """The image processor of a saved folder, a timm-format folder or a Hub id, as transformers' pipelines take it.

    Where there is no preprocessor_config.json, it is the one that config.json implies.

    Raises:
        OSError: there is neither file.
        ModelError: it is another class of processor, or has a setting that cannot be followed.
    """
    try:
        settings, _ = TinyNetImageProcessor.get_image_processor_dict(source)
    except UnicodeDecodeError as error:
        raise ModelError(f"its preprocessor_config.json is not UTF-8 text: {error}") from error
    if not isinstance(settings, dict):
        raise ModelError(f"its preprocessor_config.json must hold an object of settings, got {settings!r}")
    kind = settings.get("image_processor_type") or settings.get("feature_extractor_type")
    if kind and kind != TinyNetImageProcessor.__name__:
        raise ModelError(f"its image processor is a {kind}, and only TinyNetImageProcessor is known here")
    for key, fact in (("do_pad", "images are not padded here"), ("do_grayscale", "images are read as RGB here")):
        if settings.get(key):
            raise ModelError(f"its image processor has {key} true, and {fact}")
    processor = TinyNetImageProcessor.from_dict(settings)
    for key in ("image_mean", "image_std"):
        value = getattr(processor, key)
        if processor.do_normalize and isinstance(value, (list, tuple)) and len(value) not in (1, CHANNELS):
            raise ModelError(f"its image processor has {key} {list(value)}, and images are read as RGB here")
    return processor


def normalization(processor: TinyNetImageProcessor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(mean, std) by channel, of pixels in [0, 1], that do what the processor does: (pixels - mean) / std.

    Its rescaling is folded in, whatever the factor, and so is the lack of either step.
    """
    scale = 255 * processor.rescale_factor if processor.do_rescale else 255.0
    mean, std = (processor.image_mean, processor.image_std) if processor.do_normalize else (0.0, 1.0)
    return _by_channel(mean, scale), _by_channel(std, scale)


def _by_channel(value: float | tuple[float, ...], scale: float) -> tuple[float, ...]:
    numbers = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    return tuple(number / scale for number in (numbers if len(numbers) == CHANNELS else numbers * CHANNELS))


@dataclass(frozen=True)
class Preprocessing:
    """From a decoded image to a network's input, as an image processor states it. Models with equal ones can share a
    pass over the images.

    Called with an image, uint8 (3, height, width), it gives the geometry's result, uint8 in channels-last memory; the
    pixels then become (pixels / 255 - mean) / std. The published resize is torch's, see `resize_and_center_crop` for
    how near to Pillow's it comes; every other one is Pillow's.
    """

    resize: tuple[int, ...] | None  # the shorter side, or (height, width), in pixels; None leaves the image's size
    resample: Resampling
    crop: tuple[int, int] | None  # (height, width) in pixels
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, processor: TinyNetImageProcessor) -> "Preprocessing":
        size, crop_size = processor.size, processor.crop_size
        sides = (size.shortest_edge,) if processor.do_resize and size.shortest_edge else (size.height, size.width)
        mean, std = normalization(processor)
        return cls(
            resize=sides if processor.do_resize else None,
            resample=Resampling(processor.resample),
            crop=(crop_size.height, crop_size.width) if processor.do_center_crop else None,
            mean=mean,
            std=std,
        )

    @property
    def output_size(self) -> tuple[int, int] | None:
        """(height, width) in pixels of every result; None where it is the image's own or has its aspect ratio."""
        return self.crop or (self.resize if self.resize and len(self.resize) == 2 else None)

    def __call__(self, image: torch.Tensor, key: tuple[int, int, int] | None = None) -> torch.Tensor:
        """uint8 (3, height, width) to uint8 (3, *output_size), whatever the key."""
        if self.resize:
            image = self._resized(image, list(self.resize))
        if self.crop:
            image = tvF.center_crop(image, list(self.crop))
        return channels_last(image)

    def _resized(self, image: torch.Tensor, size: list[int]) -> torch.Tensor:
        interpolation = pil_torch_interpolation_mapping[self.resample]
        if self.resample == Resampling.BICUBIC and len(size) == 1:
            return tvF.resize(image, size, interpolation, antialias=True)
        return tvF.pil_to_tensor(tvF.resize(tvF.to_pil_image(image), size, interpolation, antialias=True))


def config_fields(processor: TinyNetImageProcessor, config: TinyNetConfig) -> dict[str, Any]:
    """Those of `image_size`, `crop_pct`, `image_mean` and `image_std` in which `processor` differs from `config`.

    Raises:
        ModelError: the geometry is not the published one, and no other can be stated by a configuration.
    """
    _require_published_geometry(processor)
    shorter_side, image_size = processor.size.shortest_edge, processor.crop_size.height
    stated: dict[str, Any] = {"image_size": image_size}
    if math.floor(image_size / config.crop_pct) != shorter_side:
        stated["crop_pct"] = image_size / shorter_side
        if math.floor(image_size / stated["crop_pct"]) != shorter_side:  # both divisions round
            stated["crop_pct"] = math.nextafter(stated["crop_pct"], 0)
    stated["image_mean"], stated["image_std"] = map(list, normalization(processor))
    return {name: value for name, value in stated.items() if value != getattr(config, name)}


def _require_published_geometry(processor: TinyNetImageProcessor) -> None:
    size, crop_size = processor.size, processor.crop_size
    if not (processor.do_resize and processor.do_center_crop):
        key = "do_center_crop" if processor.do_resize else "do_resize"
        wrong = f"{key} false"
    elif processor.resample != Resampling.BICUBIC:
        wrong = f"resample {int(processor.resample)}"
    elif not size.shortest_edge:
        wrong = f"size {dict(size)}"
    elif not crop_size.height == crop_size.width <= size.shortest_edge:
        wrong = f"crop_size {dict(crop_size)} for size {dict(size)}"
    else:
        return
    raise ModelError(
        f"its image processor has {wrong}, and training knows the published geometry only: shorter side resized by "
        "bicubic (resample 3), central square cut out"
    )
