"""What a run's preprocessor_config.json does to an image, in the words of the card."""

from typing import Any

from hub_card.run_files import PublishError
from modeling_tinynet import TinyNetImageProcessor

FILE = "best/preprocessor_config.json"
FILTERS = {0: "nearest", 1: "Lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "Hamming"}  # by Pillow's numbers


def load_processor(config: dict[str, Any]) -> TinyNetImageProcessor:
    """The image processor of this configuration, with the defaults of what it leaves out.

    Raises:
        PublishError: it is another processor's, or has a value that none can be built from.
    """
    kind = config.get("image_processor_type", TinyNetImageProcessor.__name__)
    if kind != TinyNetImageProcessor.__name__:
        raise PublishError(f"{FILE}: image_processor_type must be the published TinyNetImageProcessor, got {kind!r}")
    try:
        return TinyNetImageProcessor.from_dict(dict(config))
    except (ValueError, TypeError) as error:
        raise PublishError(f"{FILE} describes no image processor: {' '.join(str(error).split())}") from error


def input_sentence(processor: TinyNetImageProcessor) -> str:
    """From a photo to the network's input.

    Raises:
        PublishError: the processor does what no word here stands for.
    """
    if getattr(processor, "do_pad", None):
        raise PublishError(f"{FILE}: do_pad must be false, for the card cannot say how images are padded")
    color = "An upright RGB image" if processor.do_convert_rgb else "An upright image, which has to be RGB"
    if processor.do_grayscale:
        color = "An upright gray image"
    return ", ".join([color, *_geometry(processor), *_values(processor)]) + "."


def _geometry(processor: TinyNetImageProcessor) -> list[str]:
    steps = []
    if processor.do_resize:
        size, number = processor.size, int(processor.resample)
        how = FILTERS[number] + (", antialiased" if number else "") + ", on 8-bit pixels"
        if size.shortest_edge:
            steps.append(f"its shorter side resized to {size.shortest_edge} pixels ({how})")
        else:
            steps.append(f"resized to {size.height} × {size.width} pixels, height × width, whatever its shape ({how})")
    if processor.do_center_crop:
        steps.append(f"the central {processor.crop_size.height} × {processor.crop_size.width} cut out")
    return steps


def _values(processor: TinyNetImageProcessor) -> list[str]:
    steps = []
    if processor.do_rescale:
        factor = processor.rescale_factor
        steps.append("divided by 255" if abs(255 * factor - 1) < 1e-6 else f"multiplied by {factor:g}")
    if processor.do_normalize:
        mean, std = map(_numbers, (processor.image_mean, processor.image_std))
        steps.append(f"mean {mean} subtracted and divided by {std}")
    return steps or ["its values left at 0 to 255"]


def _numbers(value: float | list[float]) -> str:
    """A number for all channels, or one for each in parentheses."""
    if isinstance(value, (list, tuple)):
        return f"({', '.join(f'{number:g}' for number in value)})"
    return f"{value:g}"
