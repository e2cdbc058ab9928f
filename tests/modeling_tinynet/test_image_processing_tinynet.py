"""The image processor against timm's evaluation transform, on photos shipped with scikit-image and scikit-learn; and
against the pixels of training, on files of every kind."""

import json
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import timm
import torch
from PIL import Image, ImageOps
from sklearn.datasets import load_sample_image
from torch import nn
from torchvision import transforms
from transformers import AutoImageProcessor, ImageClassificationPipeline, ViTImageProcessor, pipeline

from modeling_tinynet import TINYNET_VARIANTS, TinyNetConfig, TinyNetForImageClassification, TinyNetImageProcessor
from modeling_tinynet.image_processing_tinynet import resize_and_center_crop
from training.data.decoding import decode_rgb
from training.transforms.augmentation import EvalTransform
from training.transforms.device_transforms import DeviceTransform

SAME = 1e-3  # of one 8-bit step: the same pixels, normalised in another order of operations
MEAN, STD = np.array([[[0.485]], [[0.456]], [[0.406]]]), np.array([[[0.229]], [[0.224]], [[0.225]]])


@pytest.fixture(scope="module")
def china() -> Image.Image:
    return Image.fromarray(load_sample_image("china.jpg"))


@pytest.fixture(scope="module")
def photos(china: Image.Image) -> list[Image.Image]:
    """Of 3 to 2000 pixels a side: landscape, portrait, square, slim, and smaller than any variant's crop."""
    flower = Image.fromarray(load_sample_image("flower.jpg"))
    chelsea, coffee, rocket, retina, hubble = (
        Image.fromarray(getattr(skimage.data, name)())
        for name in ("chelsea", "coffee", "rocket", "retina", "hubble_deep_field")
    )
    return [
        china,
        flower.transpose(Image.Transpose.ROTATE_90),
        chelsea,
        coffee.crop((0, 0, 333, 400)),
        rocket.transpose(Image.Transpose.ROTATE_90),
        retina,
        hubble.resize((2000, 1501)),
        Image.fromarray(skimage.data.astronaut()).resize((219, 219)),
        china.crop((0, 100, 640, 140)),
        china.crop((300, 0, 311, 427)),
        chelsea.resize((97, 64)),
        coffee.crop((200, 100, 231, 123)),
        flower.crop((300, 200, 305, 203)),
    ]


def timm_transform(variant: str) -> transforms.Compose:
    return timm.data.create_transform(**timm.data.resolve_data_config({}, model=timm.create_model(variant)))


def steps_apart(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """The largest difference between two normalised images in units of one 8-bit step."""
    assert ours.shape == theirs.shape and ours.dtype == theirs.dtype == torch.float32
    return float(np.abs((ours.numpy() - theirs.numpy()) * STD * 255).max())


@pytest.mark.parametrize("variant", TINYNET_VARIANTS)
def test_photos_of_all_sizes_match_timm(variant, photos):
    transform = timm_transform(variant)
    pixel_values = TinyNetImageProcessor.from_config(TinyNetConfig.from_variant(variant))(photos, return_tensors="pt")[
        "pixel_values"
    ]

    for photo, ours in zip(photos, pixel_values, strict=True):
        assert steps_apart(ours, transform(photo)) < SAME, photo.size


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGBA", "CMYK", "YCbCr", "HSV"])
def test_photos_of_all_modes_match_timm(mode, china):
    rgba = china.copy()
    rgba.putalpha(china.convert("L").rotate(180))
    photo = (rgba if "A" in mode else china).convert(mode)
    assert photo.mode == mode

    ours = TinyNetImageProcessor()(photo, return_tensors="pt")["pixel_values"][0]

    assert steps_apart(ours, timm_transform("tinynet_a")(photo.convert("RGB"))) < SAME


def test_a_palette_with_transparency_matches_timm(china):
    photo = china.convert("P")
    photo.info["transparency"] = 7

    ours = TinyNetImageProcessor()(photo, return_tensors="pt")["pixel_values"][0]

    assert steps_apart(ours, timm_transform("tinynet_a")(photo.convert("RGB"))) < SAME


def test_the_comparison_notices_a_shift_by_one_pixel(china):
    """What a floored crop offset would do; else the tests above would prove little."""
    photo = china.resize((219, 219))
    transform = timm_transform("tinynet_a")

    ours = TinyNetImageProcessor()(photo, return_tensors="pt")["pixel_values"][0]
    floored = TinyNetImageProcessor(do_center_crop=False)(photo, return_tensors="pt")["pixel_values"][0][
        :, 13:205, 13:205
    ]

    assert steps_apart(ours, transform(photo)) < SAME
    assert steps_apart(floored, transform(photo)) > 10


@pytest.mark.parametrize("variant", TINYNET_VARIANTS)
def test_sizes_are_those_of_timms_transform(variant):
    resize, crop, *_ = timm_transform(variant).transforms
    processor = TinyNetImageProcessor.from_config(TinyNetConfig.from_variant(variant))

    assert dict(processor.size) == {"shortest_edge": resize.size}
    assert dict(processor.crop_size) == dict(zip(("height", "width"), crop.size, strict=True))


def test_the_default_is_the_default_configurations():
    assert TinyNetImageProcessor().to_dict() == TinyNetImageProcessor.from_config(TinyNetConfig()).to_dict()


def test_from_config_takes_every_number_of_the_transform():
    config = TinyNetConfig(image_size=64, crop_pct=0.9, image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6])

    processor = TinyNetImageProcessor.from_config(config)

    assert dict(processor.size) == {"shortest_edge": 71}
    assert dict(processor.crop_size) == {"height": 64, "width": 64}
    assert (tuple(processor.image_mean), tuple(processor.image_std)) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


@pytest.mark.parametrize("variant", TINYNET_VARIANTS)
def test_photos_as_tensors_match_timm_to_one_step(variant, photos):
    transform = timm_transform(variant)
    photos = [photo for photo in photos if min(photo.size) >= 219]
    tensors = [torch.tensor(np.asarray(photo)) for photo in photos]
    processor = TinyNetImageProcessor.from_config(TinyNetConfig.from_variant(variant))

    for photo, ours in zip(photos, processor(tensors, return_tensors="pt")["pixel_values"], strict=True):
        assert steps_apart(ours, transform(photo)) < 1 + SAME, photo.size


def test_images_hard_for_torchs_kernel_match_pillow_to_two_steps(photos, china):
    """Dithered, slim or enlarged many times: more than one step in fewer than 1 of 10,000 values."""
    for photo in [*photos, china.convert("P").convert("RGB"), china.convert("1").convert("RGB")]:
        resized = transforms.Resize(219, transforms.InterpolationMode.BICUBIC)(photo)
        theirs = transforms.PILToTensor()(transforms.CenterCrop(192)(resized))
        ours = resize_and_center_crop(torch.tensor(np.asarray(photo)).permute(2, 0, 1), 219, 192)

        steps = (ours.int() - theirs.int()).abs()
        assert steps.max() <= 2 and (steps > 1).float().mean() < 1e-4, photo.size


def test_arrays_and_tensors_of_any_layout_give_the_same(china):
    processor = TinyNetImageProcessor()
    hwc = np.asarray(china)
    expected = processor(hwc, return_tensors="pt")["pixel_values"]
    alpha = np.full_like(hwc[..., :1], 9)
    assert not hwc.flags.writeable

    for image in [
        hwc,
        hwc.transpose(2, 0, 1),
        np.ascontiguousarray(hwc.transpose(2, 0, 1)),
        hwc[:, ::-1].copy()[:, ::-1],
        np.concatenate([hwc, alpha], axis=2),
        torch.tensor(hwc),
        torch.tensor(hwc).permute(2, 0, 1),
        torch.tensor(hwc).permute(2, 0, 1).contiguous(),
        torch.tensor(hwc).permute(2, 0, 1)[None],
        hwc[None],
    ]:
        assert torch.equal(processor(image, return_tensors="pt")["pixel_values"], expected)


def test_a_grey_array_gives_what_its_rgb_gives(china):
    grey = np.array(china.convert("L"))
    processor = TinyNetImageProcessor()
    expected = processor(np.stack([grey, grey, grey]), return_tensors="pt")["pixel_values"]

    for image in [grey[..., None], grey[None], torch.tensor(grey)[None]]:
        assert torch.equal(processor(image, return_tensors="pt")["pixel_values"], expected)


def test_floats_match_timms_transform_of_the_same_tensor(china):
    scaled = transforms.ToTensor()(china)
    processor = TinyNetImageProcessor()
    theirs = timm_transform("tinynet_a")(scaled)

    from_unit_range = processor(scaled, do_rescale=False, return_tensors="pt")["pixel_values"][0]
    from_byte_range = processor(np.asarray(china, dtype=np.float32), return_tensors="pt")["pixel_values"][0]

    assert steps_apart(from_unit_range, theirs) < SAME
    assert steps_apart(from_byte_range, theirs) < SAME


def test_rescaled_floats_are_not_rescaled_again(china):
    scaled = np.asarray(china, dtype=np.float32) / 255

    with pytest.raises(ValueError, match=r"this torch.float32 image ends at 1; pass do_rescale=False"):
        TinyNetImageProcessor()(scaled, return_tensors="pt")


def test_a_black_image_is_black_in_every_type():
    expected = np.broadcast_to(-MEAN / STD, (3, 192, 192))
    black = np.zeros((200, 300, 3), np.uint8)

    for image in [Image.fromarray(black), black, black.astype(np.float32)]:
        ours = TinyNetImageProcessor()(image, return_tensors="pt")["pixel_values"][0]
        np.testing.assert_allclose(ours.numpy(), expected, rtol=1e-5)


@pytest.mark.parametrize("dtype", ["uint16", "int64", "bool"])
def test_other_data_types_are_refused(dtype, china):
    with pytest.raises(ValueError, match=f"must be uint8 or floating point, got torch.{dtype}; convert it to uint8"):
        TinyNetImageProcessor()(np.asarray(china).astype(dtype), return_tensors="pt")


def test_two_channels_are_refused():
    with pytest.raises(ValueError, match=r"must have 1, 3 or 4 channels, got 2 in shape \(2, 50, 40\)"):
        TinyNetImageProcessor()(np.zeros((50, 40, 2), np.uint8), input_data_format="channels_last")


def test_a_batch_gives_what_its_images_give_alone(photos):
    processor = TinyNetImageProcessor()
    mixed = [photos[0], np.asarray(photos[1]), torch.tensor(np.asarray(photos[2])).permute(2, 0, 1), *photos[3:]]
    alone = torch.cat([processor(image, return_tensors="pt")["pixel_values"] for image in mixed])

    batch = processor(mixed, return_tensors="pt")["pixel_values"]
    doubled = processor(mixed + mixed, disable_grouping=False, return_tensors="pt")["pixel_values"]

    assert torch.equal(batch, alone)
    assert torch.equal(doubled, torch.cat([alone, alone]))


@pytest.mark.parametrize("as_type", [Image.fromarray, np.array, torch.tensor])
def test_size_takes_two_sides_as_well(as_type, china):
    processor = TinyNetImageProcessor(size={"height": 70, "width": 90}, do_center_crop=False)

    pixel_values = processor(as_type(np.asarray(china)), return_tensors="pt")["pixel_values"]

    assert pixel_values.shape == (1, 3, 70, 90)


def test_another_size_is_refused(china):
    with pytest.raises(ValueError, match="size must have the key 'shortest_edge', or 'height' and 'width', got"):
        TinyNetImageProcessor(size={"shortest_edge": 219, "longest_edge": 300})(china)


def test_without_return_tensors_the_images_come_as_a_list(china):
    pixel_values = TinyNetImageProcessor()([china, china])["pixel_values"]

    assert [image.shape for image in pixel_values] == [(3, 192, 192)] * 2


def test_size_and_crop_size_can_be_overridden_for_one_call(china):
    pixel_values = TinyNetImageProcessor()(china, size=256, crop_size=224, return_tensors="pt")["pixel_values"][0]
    expected = transforms.Compose(
        [
            transforms.Resize(256, transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )(china)

    assert steps_apart(pixel_values, expected) < SAME


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


# Their shorter side is what the default processor resizes to: the kernels of Pillow and torch differ by single steps.
PHOTO = Image.fromarray(load_sample_image("china.jpg")).resize((250, 219))
TRANSLUCENT = PHOTO.copy()
TRANSLUCENT.putalpha(PHOTO.convert("L").rotate(180))
DEEP = np.arange(250 * 219).reshape(219, 250) * 65535 // (250 * 219 - 1)  # from 0 to 65535

# Name: the image, its format, how it is saved, the mode in which Pillow opens it.
FILES = {
    **{f"jpeg of orientation {n}": (PHOTO, "JPEG", {"exif": exif(n)}, "RGB") for n in range(1, 9)},
    "turned png": (PHOTO, "PNG", {"exif": exif(6)}, "RGB"),
    "turned tiff": (PHOTO, "TIFF", {"exif": exif(6)}, "RGB"),
    "cmyk jpeg": (PHOTO.convert("CMYK"), "JPEG", {}, "CMYK"),
    "1-bit png": (PHOTO.convert("1"), "PNG", {}, "1"),
    "palette png with transparency": (PHOTO.quantize(16), "PNG", {"transparency": bytes(range(16))}, "P"),
    "gray png with alpha": (TRANSLUCENT.convert("LA"), "PNG", {}, "LA"),
    "png with alpha": (TRANSLUCENT, "PNG", {}, "RGBA"),
    "animated gif": (PHOTO.quantize(256), "GIF", {"save_all": True, "append_images": [PHOTO.rotate(180)]}, "P"),
}
FILES_OF_16_BIT = {
    "16-bit png": (Image.fromarray(DEEP.astype(np.uint16)), "PNG", {}, "I;16"),
    "turned 16-bit png": (Image.fromarray(DEEP.astype(np.uint16)), "PNG", {"exif": exif(6)}, "I;16"),
    "big-endian tiff": (Image.frombytes("I;16B", (250, 219), DEEP.astype(">u2").tobytes()), "TIFF", {}, "I;16B"),
    "32-bit tiff": (Image.fromarray(DEEP.astype(np.int32)), "TIFF", {}, "I"),
}


def save(path: Path, image: Image.Image, image_format: str, options: dict, mode: str) -> None:
    image.save(path, image_format, **options)
    with Image.open(path) as opened:
        assert opened.mode == mode


def pixels_of_training(path: Path) -> torch.Tensor:
    """What a default model is validated on."""
    config = TinyNetConfig()
    image = EvalTransform(config.image_size, config.resize_size)(decode_rgb(path.read_bytes()))
    return DeviceTransform(config.image_mean, config.image_std).normalize_only(image[None])


@pytest.fixture(scope="module")
def classify(tmp_path_factory) -> ImageClassificationPipeline:
    """Of a default model whose five classes score differently."""
    folder = tmp_path_factory.mktemp("saved")
    torch.manual_seed(0)
    model = TinyNetForImageClassification(TinyNetConfig(num_labels=5))
    nn.init.normal_(model.classifier.weight)
    model.save_pretrained(folder)
    TinyNetImageProcessor().save_pretrained(folder)
    return pipeline("image-classification", model=str(folder))


@pytest.mark.filterwarnings("ignore:Palette images with Transparency:UserWarning")
@pytest.mark.parametrize("kind", FILES | FILES_OF_16_BIT)
def test_an_opened_file_has_the_pixels_of_training(kind, tmp_path):
    path = tmp_path / "picture"
    save(path, *(FILES | FILES_OF_16_BIT)[kind])

    ours = TinyNetImageProcessor()(Image.open(path), return_tensors="pt")["pixel_values"]

    assert torch.equal(ours, pixels_of_training(path))


@pytest.mark.filterwarnings("ignore:Palette images with Transparency:UserWarning")
@pytest.mark.parametrize("kind", FILES)
def test_the_pipeline_classifies_a_file_by_the_pixels_of_training(kind, classify, tmp_path):
    path = tmp_path / "picture"
    save(path, *FILES[kind])
    pixel_values = pixels_of_training(path)
    with torch.inference_mode():
        scores = classify.model(pixel_values).logits.softmax(-1)[0]

    found = {best["label"]: best["score"] for best in classify(str(path))}

    assert torch.equal(classify.preprocess(str(path))["pixel_values"], pixel_values)
    assert [found[label] for label in classify.model.config.id2label.values()] == pytest.approx(
        scores.tolist(), abs=1e-5
    )


def test_an_image_is_turned_once_however_it_is_passed(china, tmp_path):
    path = tmp_path / "turned.jpg"
    china.save(path, exif=exif(6))
    upright = ImageOps.exif_transpose(Image.open(path))
    expected = timm_transform("tinynet_a")(upright)

    for image in [Image.open(path), Image.open(path).convert("RGB"), upright, str(path)]:
        ours = TinyNetImageProcessor()(image, return_tensors="pt")["pixel_values"][0]
        assert steps_apart(ours, expected) < SAME


@pytest.mark.parametrize(
    "info", [{"exif": b"Exif\0\0garbage"}, {"exif": b"Exif\0\0MM\0*\0"}, {"Raw profile type exif": "\nexif\n 8\nzz\n"}]
)
def test_exif_that_cannot_be_read_counts_as_none(info):
    photo = PHOTO.copy()
    photo.info.update(info)
    processor = TinyNetImageProcessor()

    ours = processor(photo, return_tensors="pt")["pixel_values"]

    assert torch.equal(ours, processor(PHOTO, return_tensors="pt")["pixel_values"])


@pytest.mark.parametrize(
    ("pixels", "problem"),
    [
        (DEEP.astype(np.float32), "floating-point pixels have no known range; convert them to 8 or 16 bit"),
        (DEEP.astype(np.int32) + 1, "pixels of mode I must lie in 0 to 65535, got 1 to 65536; convert them to .*"),
        (DEEP.astype(np.int32) - 1, "pixels of mode I must lie in 0 to 65535, got -1 to 65534; convert them to .*"),
    ],
)
def test_pixels_of_unknown_range_are_refused(pixels, problem):
    with pytest.raises(ValueError, match=f"^{problem}$"):
        TinyNetImageProcessor()(Image.fromarray(pixels))


def test_resize_and_center_crop_is_the_processors_geometry(photos):
    processor = TinyNetImageProcessor(do_rescale=False, do_normalize=False)

    for photo in photos:
        image = torch.tensor(np.asarray(photo)).permute(2, 0, 1)
        ours = resize_and_center_crop(image, 219, 192)
        assert ours.dtype == torch.uint8
        assert torch.equal(ours, processor(image, return_tensors="pt")["pixel_values"][0])


def test_resize_and_center_crop_keeps_memory_format_and_leading_dimensions(china):
    view = torch.tensor(np.asarray(china)).permute(2, 0, 1)

    cropped = resize_and_center_crop(view, 219, 192)
    stacked = resize_and_center_crop(view.contiguous().expand(2, 4, -1, -1, -1), 219, 192)

    assert cropped.stride(0) == 1  # channels innermost, as the image came
    assert stacked.shape == (2, 4, 3, 192, 192)
    assert all(torch.equal(image, cropped) for image in stacked.flatten(0, 1))


@pytest.mark.parametrize("height, width", [(20, 20), (20, 27), (20, 51), (63, 20)])
def test_what_a_small_image_lacks_is_zero_as_in_torchvision(height, width, china):
    photo = china.resize((width, height))
    expected = transforms.PILToTensor()(transforms.CenterCrop(33)(photo))

    assert torch.equal(resize_and_center_crop(transforms.PILToTensor()(photo), 20, 33), expected)


def test_save_and_load_keep_every_setting(tmp_path, china):
    processor = TinyNetImageProcessor.from_config(TinyNetConfig.from_variant("tinynet_e", image_mean=[0.1, 0.2, 0.3]))
    processor.save_pretrained(tmp_path)

    for loaded in [TinyNetImageProcessor.from_pretrained(tmp_path), AutoImageProcessor.from_pretrained(tmp_path)]:
        assert type(loaded) is TinyNetImageProcessor
        assert loaded.to_dict() == processor.to_dict()
        assert torch.equal(
            loaded(china, return_tensors="pt")["pixel_values"], processor(china, return_tensors="pt")["pixel_values"]
        )


def test_a_folder_with_only_a_config_gives_its_models_processor(tmp_path):
    config = TinyNetConfig.from_variant("tinynet_d", crop_pct=0.9)
    config.save_pretrained(tmp_path)
    expected = TinyNetImageProcessor.from_config(config).to_dict()

    assert TinyNetImageProcessor.from_pretrained(tmp_path).to_dict() == expected
    auto = AutoImageProcessor.from_pretrained(tmp_path, image_processor_filename="config.json")
    assert auto.to_dict() == expected


@pytest.mark.parametrize("with_model_args", [True, False])
def test_a_folder_in_timms_format_gives_timms_transform(with_model_args, tmp_path, china):
    model = timm.create_model("tinynet_e", num_classes=10)
    model.pretrained_cfg.update(crop_pct=0.95, mean=(0.5, 0.4, 0.3))
    transform = timm.data.create_transform(**timm.data.resolve_data_config({}, model=model))
    timm.models.save_for_hf(model, tmp_path, model_args={"num_classes": 10})
    config = json.loads((tmp_path / "config.json").read_text())
    if not with_model_args:  # as earlier releases of timm wrote it
        del config["model_args"]
        (tmp_path / "config.json").write_text(json.dumps(config))

    ours = TinyNetImageProcessor.from_pretrained(tmp_path)(china, return_tensors="pt")["pixel_values"][0]

    assert steps_apart(ours, transform(china)) < SAME


@pytest.mark.parametrize("form", ["pretrained_cfg", "flat"])
@pytest.mark.parametrize(
    "settings",
    [{"interpolation": name} for name in ("nearest", "bilinear", "lanczos", "box", "hamming")]
    + [{"crop_mode": "squash"}, {"crop_mode": "squash", "crop_pct": 1.0, "interpolation": "bilinear"}],
    ids=str,
)
def test_timms_filter_and_crop_mode_are_followed(settings, form, tmp_path, china):
    model = timm.create_model("tinynet_e", num_classes=10)
    model.pretrained_cfg.update(settings)
    transform = timm.data.create_transform(**timm.data.resolve_data_config({}, model=model))
    pretrained_cfg = {**timm.data.resolve_data_config({}, model=model), "num_classes": 10}
    config = {"architecture": "tinynet_e", "num_classes": 10}
    config |= pretrained_cfg if form == "flat" else {"pretrained_cfg": pretrained_cfg}
    (tmp_path / "config.json").write_text(json.dumps(config))

    for photo in (china, china.rotate(90, expand=True)):
        ours = TinyNetImageProcessor.from_pretrained(tmp_path)(photo, return_tensors="pt")["pixel_values"][0]
        assert steps_apart(ours, transform(photo)) < SAME


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"interpolation": "random"}, "interpolation 'random'"),
        ({"crop_mode": "border"}, "crop_mode 'border'"),
        ({"input_size": [3, 106, 128]}, r"input_size \[3, 106, 128\]"),
    ],
    ids=str,
)
def test_another_transform_of_timms_is_refused(settings, problem, tmp_path, china):
    config = {"architecture": "tinynet_e", "num_classes": 10, "pretrained_cfg": settings}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=f"{problem} of timm's config.json has no counterpart here, only "):
        TinyNetImageProcessor.from_pretrained(tmp_path)
    TinyNetImageProcessor().save_pretrained(tmp_path)
    assert TinyNetImageProcessor.from_pretrained(tmp_path).size.shortest_edge == 219


@pytest.mark.parametrize(
    "settings",
    [{"image_std": [0.0, 0.0, 0.0]}, {"size": -3}, {"resample": 9}, {"image_mean": [0.5] * 3, "do_grayscale": True}],
    ids=str,
)
def test_settings_that_cannot_be_followed_are_refused_when_they_are_made_or_passed(settings, china):
    for make in (TinyNetImageProcessor, lambda **settings: TinyNetImageProcessor()(china, **settings)):
        with pytest.raises(ValueError, match=next(iter(settings))):
            make(**settings)


def test_overrides_reach_a_processor_made_from_a_config(tmp_path):
    TinyNetConfig().save_pretrained(tmp_path)

    processor, unused = TinyNetImageProcessor.from_pretrained(
        tmp_path, do_normalize=False, colour="blue", return_unused_kwargs=True
    )

    assert processor.do_normalize is False
    assert unused == {"do_normalize": False, "colour": "blue"}  # transformers returns the used ones too


@pytest.mark.parametrize("folder", ["missing", "empty", "of_another_model", "damaged"])
def test_where_there_is_no_processor_transformers_own_error_is_raised(folder, tmp_path):
    if folder != "missing":
        (tmp_path / folder).mkdir()
    if folder == "of_another_model":
        (tmp_path / folder / "config.json").write_text('{"model_type": "vit", "image_size": 224}')
    if folder == "damaged":
        TinyNetConfig().save_pretrained(tmp_path / folder)
        (tmp_path / folder / "preprocessor_config.json").write_text('{"size": ')
    with pytest.raises(OSError) as theirs:
        ViTImageProcessor.from_pretrained(tmp_path / folder)

    with pytest.raises(OSError) as ours:
        TinyNetImageProcessor.from_pretrained(tmp_path / folder)

    assert str(ours.value) == str(theirs.value)


def test_the_pipeline_uses_the_processor(classify, china):
    pixel_values = classify.preprocess(china)["pixel_values"]

    assert type(classify.image_processor) is TinyNetImageProcessor
    assert steps_apart(pixel_values[0], timm_transform("tinynet_a")(china)) < SAME
