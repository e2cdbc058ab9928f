# Copyright 2026 The modeling-tinynet contributors.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""TinyNet's evaluation transform: the one under which the published accuracies were measured."""

import json
import math
import os
import struct
from numbers import Real
from typing import Any

import torch
from torchvision.transforms.v2 import functional as tvF
from transformers.configuration_utils import PreTrainedConfig
from transformers.image_processing_backends import TorchvisionBackend
from transformers.image_processing_utils import BaseImageProcessor
from transformers.image_utils import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    ChannelDimension,
    ImageInput,
    PILImageResampling,
    SizeDict,
    infer_channel_dimension_format,
    is_numpy_array,
    is_pil_image,
    pil_torch_interpolation_mapping,
)
from transformers.processing_utils import ImagesKwargs
from transformers.utils import logging

from .configuration_tinynet import TinyNetConfig

logger = logging.get_logger(__name__)

_HUB_ARGUMENTS = (
    "cache_dir",
    "force_download",
    "proxies",
    "token",
    "local_files_only",
    "revision",
    "subfolder",
    "_from_auto",
    "_from_pipeline",
)

_EXIF_ORIENTATION = 0x0112
# By the numbers of `PIL.Image.Transpose`: this package depends on Pillow through torchvision only.
_TRANSPOSITIONS = {
    2: 0,  # FLIP_LEFT_RIGHT
    3: 3,  # ROTATE_180
    4: 1,  # FLIP_TOP_BOTTOM
    5: 5,  # TRANSPOSE
    6: 4,  # ROTATE_270
    7: 6,  # TRANSVERSE
    8: 2,  # ROTATE_90
}

_SWITCHES = ("do_convert_rgb", "do_grayscale", "do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_pad")
# How many numbers a mean or a standard deviation may hold; an image that is not converted has the channels it has.
_GRAY, _RGB, _ANY = (1,), (1, 3), tuple(range(1, 1000))
_LARGEST_SIDE = 16_384  # pixels; beyond, an image would not fit into memory

# timm's names of the filters, to Pillow's.
_TIMM_INTERPOLATIONS = {
    "nearest": PILImageResampling.NEAREST,
    "lanczos": PILImageResampling.LANCZOS,
    "bilinear": PILImageResampling.BILINEAR,
    "bicubic": PILImageResampling.BICUBIC,
    "box": PILImageResampling.BOX,
    "hamming": PILImageResampling.HAMMING,
}


def exif_transposition(image: ImageInput) -> int | None:
    """
    What `image.transpose` takes to turn a PIL image upright, None where it stands upright or its EXIF is unreadable.

    `PIL.ImageOps.exif_transpose` would raise there, and where the EXIF cannot be written again.
    """
    try:
        return _TRANSPOSITIONS.get(image.getexif().get(_EXIF_ORIENTATION))
    except (OSError, SyntaxError, ValueError, TypeError, EOFError, LookupError, ArithmeticError, struct.error):
        return None


def upright(image: ImageInput) -> ImageInput:
    """A PIL image as its EXIF orientation says."""
    image.load()  # turns a TIFF already; and of a PNG, the EXIF may be stored behind the pixels
    transposition = exif_transposition(image)
    return image if transposition is None else image.transpose(transposition)


def pil_to_rgb(image: ImageInput) -> ImageInput:
    """
    A PIL image as RGB: alpha dropped, 16-bit greyscale, which Pillow also holds in 32-bit integers, scaled.

    Raises:
        ValueError: An image of mode F, whose range is unknown, or of mode I with values beyond 0 to 65535.
    """
    if image.mode == "F":
        raise ValueError("floating-point pixels have no known range; convert them to 8 or 16 bit")
    if image.mode.startswith("I"):
        values = tvF.pil_to_tensor(image.convert("I"))
        low, high = values.aminmax()
        if low < 0 or high > 65535:
            raise ValueError(
                f"pixels of mode {image.mode} must lie in 0 to 65535, got {low} to {high}; convert them to 8 or 16 bit"
            )
        image = tvF.to_pil_image(((values * 255 + 32767) // 65535).to(torch.uint8))
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # the same colors; on the straight way Pillow warns
    return image.convert("RGB")


def rgb_to_gray(image: torch.Tensor) -> torch.Tensor:
    """
    The brightness of RGB pixels, (..., 3, height, width) to (..., 1, height, width), in the same data type; of uint8
    to the bit as Pillow's `convert("L")` has it.
    """
    red, green, blue = image.unbind(-3)
    if image.dtype == torch.uint8:
        red, green, blue = red.int(), green.int(), blue.int()
        gray = ((19595 * red + 38470 * green + 7471 * blue + 32768) >> 16).to(torch.uint8)
    else:
        gray = (19595 * red + 38470 * green + 7471 * blue) / 65536
    return gray.unsqueeze(-3)


def resize_and_center_crop(image: torch.Tensor, resize_size: int, image_size: int) -> torch.Tensor:
    """
    The geometry of the evaluation transform on a decoded image, in 8-bit arithmetic.

    The shorter side is resized to `resize_size` (bicubic, antialiased, the longer side rounded down), then the center
    is cut out; an offset of half a pixel is rounded half to even, and what the image lacks is zero. An image in
    channels-last memory (`hwc.permute(2, 0, 1)`) is resized fastest, and stays in it.

    Torch's 8-bit kernel has coarser weights than Pillow's: a few values of a photo differ by one step of 255, and of
    images that are dithered, slim or enlarged many times, very few by two.

    Args:
        image (`torch.Tensor`): uint8, (..., channels, height, width).
        resize_size (`int`): Shorter side after resizing, in pixels.
        image_size (`int`): Side of the square crop, in pixels.

    Returns:
        `torch.Tensor`: uint8, (..., channels, image_size, image_size); a view where nothing had to be padded.

    Source: `Resize` and `CenterCrop` of torchvision, which timm's `create_transform` composes for these models.
    """
    image = tvF.resize(image, [resize_size], interpolation=tvF.InterpolationMode.BICUBIC, antialias=True)
    return tvF.center_crop(image, [image_size, image_size])


class TinyNetImageProcessorKwargs(ImagesKwargs, total=False):  # type: ignore[call-arg]
    r"""
    do_grayscale (`bool`, *optional*, defaults to `self.do_grayscale`):
        Whether to make images of one channel, their brightness, for networks with `num_channels=1`.
    """

    do_grayscale: bool


def _check_sides(name: str, size: SizeDict | None, keys: str, *choices: set[str]) -> None:
    """Raises a `ValueError` unless `size` has the keys of one of the choices, `keys` in words, and sides in range."""
    sides = dict(size or {})
    if set(sides) not in choices:
        raise ValueError(f"{name} must have the {keys}, got {sides}")
    if not all(type(side) is int and 1 <= side <= _LARGEST_SIDE for side in sides.values()):
        raise ValueError(f"{name} must hold whole numbers of pixels from 1 to {_LARGEST_SIDE:,}, got {sides}")


def _check_numbers(name: str, value: Any, *, positive: bool, counts: tuple[int, ...] = ()) -> None:
    """Raises a `ValueError` unless `value` is a finite number, or a list of as many as one of the `counts`."""
    numbers = value if counts and isinstance(value, (list, tuple)) else [value]
    is_valid = len(numbers) in (counts or (1,)) and all(
        not isinstance(number, bool) and isinstance(number, Real) and math.isfinite(number) for number in numbers
    )
    if not is_valid or (positive and min(numbers) <= 0):
        kind = "a positive number" if positive else "a number"
        more = {(): "", _GRAY: " for gray images", _RGB: ", or one for each of 3 channels"}
        raise ValueError(f"{name} must be {kind}{more.get(counts, ', or one for each channel')}, got {value!r}")


def _timm_settings(pretrained_cfg: dict[str, Any], config: TinyNetConfig) -> dict[str, Any]:
    """
    What `config` cannot say of timm's evaluation transform: the filter, and whether both sides are resized.

    Raises:
        ValueError: The transform is none that the image processor has.
    """
    interpolation = pretrained_cfg.get("interpolation", "bicubic")
    crop_mode = pretrained_cfg.get("crop_mode", "center")
    _, *sides = pretrained_cfg.get("input_size", (3, config.image_size, config.image_size))
    for name, value, choices in (
        ("interpolation", interpolation, list(_TIMM_INTERPOLATIONS)),
        ("crop_mode", crop_mode, ["center", "squash"]),
        ("input_size", pretrained_cfg.get("input_size"), None if len(set(sides)) == 1 else ["a square"]),
    ):
        if choices and value not in choices:
            raise ValueError(
                f"{name} {value!r} of timm's config.json has no counterpart here, only {', '.join(choices)}; "
                "save a TinyNetImageProcessor beside it, which goes first"
            )
    settings: dict[str, Any] = {"resample": _TIMM_INTERPOLATIONS[interpolation]}
    if crop_mode == "squash":
        settings["size"] = {"height": config.resize_size, "width": config.resize_size}
    return settings


class TinyNetImageProcessor(TorchvisionBackend):
    r"""
    The published evaluation transform of TinyNet: resize the shorter side to `floor(image_size / crop_pct)` pixels
    (bicubic, antialiased, on 8-bit pixels), cut out the central `image_size` square, divide by 255, normalize. The
    pixels of an upright RGB image of Pillow come out as from timm's `create_transform` for the same model;
    transformers' own processors floor the crop's offset, which shifts the images for TinyNet-A and E by one pixel.
    The defaults are TinyNet-A's; [`TinyNetImageProcessor.from_config`] gives any other model's.

    Takes one image or a list of images of any sizes, and returns `pixel_values`: float32, (batch, 3, image_size,
    image_size), one tensor with `return_tensors="pt"`, else a list. With `do_grayscale` it makes one channel of what
    would be RGB, the brightness as `image.convert("L")` has it. An image is

    - a PIL image of any mode but F, resized by Pillow. It is decoded as in training: its EXIF orientation is applied,
      alpha is dropped (transformers' own processors blend onto white), 16-bit greyscale (modes I;16 and I) becomes
      v * 255 / 65535, rounded, and everything else is RGB as `image.convert("RGB")` has it.
    - a NumPy array or torch tensor, (height, width, channels) or (channels, height, width), with 3 channels, 1 (grey)
      or 4 (alpha, dropped), resized by torch: the fast path, see [`resize_and_center_crop`] for how near it comes.
      uint8 holds 0 to 255. Floating point holds 0 to 1 together with `do_rescale=False`, or 0 to 255 with
      `do_rescale=True` (the default); it is resized without rounding or clipping.
    - a path or URL, which transformers decodes as in its pipelines: upright, and RGB as `image.convert("RGB")` has it.

    From paths and in pipelines, 16-bit greyscale comes out near white: open it with Pillow and call the processor.

    Raises:
        ValueError: A setting that cannot be followed, such as a standard deviation of 0, when the processor is made
            or called. An image with another number of channels, with another data type, or in floating point from 0
            to 1 although `do_rescale` is set, so that it would be divided by 255 a second time. A PIL image of mode
            F, or of mode I with values beyond 0 to 65535.

    Example:

    ```python
    >>> from modeling_tinynet import TinyNetConfig, TinyNetImageProcessor

    >>> image_processor = TinyNetImageProcessor.from_config(TinyNetConfig.from_variant("tinynet_e"))
    >>> image_processor(image, return_tensors="pt")["pixel_values"].shape
    torch.Size([1, 3, 106, 106])
    ```
    """

    valid_kwargs = TinyNetImageProcessorKwargs
    resample = PILImageResampling.BICUBIC
    image_mean = IMAGENET_DEFAULT_MEAN
    image_std = IMAGENET_DEFAULT_STD
    size: SizeDict = {"shortest_edge": 219}  # which the constructor turns into a SizeDict
    crop_size: SizeDict = {"height": 192, "width": 192}
    default_to_square = False
    do_convert_rgb = True
    do_grayscale = False
    do_resize = True
    do_center_crop = True
    do_rescale = True
    do_normalize = True

    # The torchvision backend decodes paths with torchvision.io, which is deprecated and reads fewer formats.
    fetch_images = BaseImageProcessor.fetch_images

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        # Called here too: what a file says is refused when it is read, not at the first image.
        self._validate_preprocess_kwargs(**{name: getattr(self, name) for name in self._valid_kwargs_names})

    @classmethod
    def from_config(cls, config: TinyNetConfig) -> "TinyNetImageProcessor":
        """
        The evaluation transform of `config`: its `image_size`, `crop_pct`, `image_mean` and `image_std`, and gray
        images for a network with one channel.

        Raises:
            ValueError: the network takes neither RGB nor gray images.
        """
        if config.num_channels not in (1, 3):
            raise ValueError(
                "the image processor makes RGB images, or gray ones;"
                f" num_channels must be 3 or 1, got {config.num_channels}"
            )
        return cls(
            size={"shortest_edge": config.resize_size},
            crop_size={"height": config.image_size, "width": config.image_size},
            image_mean=list(config.image_mean),
            image_std=list(config.image_std),
            do_grayscale=config.num_channels == 1,
        )

    @classmethod
    def get_image_processor_dict(
        cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """
        As in transformers; and where there is no preprocessor_config.json, what the model's config.json implies, be
        it in our format or in timm's.

        Raises:
            OSError: transformers' own, where there is no TinyNet's config.json either, or the file is not JSON.
        """
        try:
            return super().get_image_processor_dict(pretrained_model_name_or_path, **kwargs)
        except OSError as error:
            hub_arguments = {name: kwargs.pop(name) for name in _HUB_ARGUMENTS if name in kwargs}
            kwargs.pop("image_processor_filename", None)
            try:
                in_file, _ = PreTrainedConfig.get_config_dict(pretrained_model_name_or_path, **hub_arguments)
                fields, _ = TinyNetConfig.get_config_dict(pretrained_model_name_or_path, **hub_arguments)
            except OSError:
                raise error from None
            is_damaged = isinstance(error.__context__, json.JSONDecodeError)
            if is_damaged or fields.get("model_type") != TinyNetConfig.model_type:
                raise
        logger.info(f"{pretrained_model_name_or_path} has no image processor; taking the transform its model implies")
        config = TinyNetConfig.from_dict(fields)
        settings = cls.from_config(config).to_dict()
        if "architecture" in in_file:
            settings |= _timm_settings(in_file.get("pretrained_cfg", in_file), config)
        return settings, kwargs

    def _standardize_kwargs(self, **kwargs: Any) -> dict[str, Any]:
        for name in ("size", "crop_size", "pad_size"):
            sides = kwargs.get(name)
            if isinstance(sides, (list, tuple)) and len(sides) != 2:  # a third would be dropped
                raise ValueError(f"{name} must be (height, width) where it is a list, got {sides}")
        return super()._standardize_kwargs(**kwargs)

    def _validate_preprocess_kwargs(self, **kwargs: Any) -> None:
        super()._validate_preprocess_kwargs(**kwargs)
        for name in _SWITCHES:
            if not isinstance(kwargs.get(name), bool | None):
                raise ValueError(f"{name} must be true or false, got {kwargs[name]!r}")
        if kwargs["do_resize"]:
            keys = "key 'shortest_edge', or 'height' and 'width'"
            _check_sides("size", kwargs["size"], keys, {"shortest_edge"}, {"height", "width"})
            filters = [*pil_torch_interpolation_mapping, *tvF.InterpolationMode]
            if isinstance(kwargs["resample"], bool | str) or kwargs["resample"] not in filters:
                raise ValueError(
                    f"resample must be a filter of Pillow by its number, 0 to 5, got {kwargs['resample']!r}"
                )
        if kwargs["do_center_crop"]:
            _check_sides("crop_size", kwargs["crop_size"], "keys 'height' and 'width'", {"height", "width"})
        if kwargs["do_rescale"]:
            _check_numbers("rescale_factor", kwargs["rescale_factor"], positive=True)
        if kwargs["do_normalize"]:
            counts = _GRAY if kwargs["do_grayscale"] else _RGB if kwargs["do_convert_rgb"] else _ANY
            _check_numbers("image_mean", kwargs["image_mean"], positive=False, counts=counts)
            _check_numbers("image_std", kwargs["image_std"], positive=True, counts=counts)

    def process_image(
        self,
        image: ImageInput,
        do_convert_rgb: bool | None = None,
        do_grayscale: bool | None = None,
        do_resize: bool | None = None,
        size: SizeDict | None = None,
        resample: PILImageResampling | tvF.InterpolationMode | int | None = None,
        do_rescale: bool | None = None,
        input_data_format: str | ChannelDimension | None = None,
        device: str | torch.device | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """
        One image as (channels, height, width), in the memory format it came in: see `resize_and_center_crop`. A PIL
        image is resized here already, while it is one; the resizing of the batch then leaves it as it is.
        """
        if is_pil_image(image):
            image = upright(image)
            image = pil_to_rgb(image) if do_convert_rgb or do_grayscale else image
            image = image.convert("L") if do_grayscale else image
            image = self.resize(image, size, resample) if do_resize else image
            image = tvF.pil_to_tensor(image)
            input_data_format = ChannelDimension.FIRST
        elif is_numpy_array(image):
            # Torch refuses arrays that are flipped, and warns of read-only ones.
            image = torch.from_numpy(image.copy(order="K"))

        if input_data_format is None:
            input_data_format = infer_channel_dimension_format(image, num_channels=(1, 3, 4))
        if input_data_format == ChannelDimension.LAST:
            image = image.permute(2, 0, 1)

        if image.dtype != torch.uint8 and not image.is_floating_point():
            raise ValueError(f"an image must be uint8 or floating point, got {image.dtype}; convert it to uint8")
        if do_rescale and image.is_floating_point() and 0 < image.max() <= 1:
            raise ValueError(
                f"do_rescale=True divides by 255, but this {image.dtype} image ends at {image.max():.3g};"
                " pass do_rescale=False for images from 0 to 1"
            )
        if do_grayscale:
            image = image if image.shape[0] == 1 else rgb_to_gray(self.convert_to_rgb(image))
        elif do_convert_rgb:
            image = self.convert_to_rgb(image)
        return image.to(device)

    def convert_to_rgb(
        self, image: torch.Tensor, input_data_format: str | ChannelDimension | None = None
    ) -> torch.Tensor:
        """(1, 3 or 4 channels, height, width) to (3, height, width): grey is repeated, alpha dropped."""
        channels = image.shape[0]
        if channels not in (1, 3, 4):
            raise ValueError(f"an image must have 1, 3 or 4 channels, got {channels} in shape {tuple(image.shape)}")
        return image.expand(3, -1, -1) if channels == 1 else image[:3]

    def resize(
        self,
        image: ImageInput,
        size: SizeDict,
        resample: PILImageResampling | tvF.InterpolationMode | int | None = None,
        **kwargs: Any,
    ) -> ImageInput:
        """A PIL image by Pillow, or a tensor (..., channels, height, width) by torch, to `size` with antialiasing."""
        target = [size.shortest_edge] if size.shortest_edge else [size.height, size.width]
        return tvF.resize(image, target, interpolation=resample, antialias=True)

    def center_crop(self, image: torch.Tensor, size: SizeDict, **kwargs: Any) -> torch.Tensor:
        """(..., channels, height, width) to its central (..., channels, *size), rounded as torchvision rounds."""
        return tvF.center_crop(image, [size.height, size.width])


__all__ = ["TinyNetImageProcessor", "resize_and_center_crop"]
