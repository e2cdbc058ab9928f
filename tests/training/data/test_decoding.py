"""Whatever the file, decoded pixels are Pillow's, or the image is named."""

import io
import re
import warnings

import datasets
import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest
import skimage.data
import torch

from tests.image_data import (
    encode,
)
from training.data import decoding
from training.data.decoding import ImageDecodeError, decode_rgb

# Decoding

PHOTO = PIL.Image.fromarray(skimage.data.chelsea()).resize((64, 48))
GRADIENT_16 = np.linspace(0, 65535, 64 * 48).astype(np.uint16).reshape(48, 64)
RULE_16 = np.rint(GRADIENT_16.astype(np.float64) / 257).astype(np.uint8)
ORIENTATION = 0x0112


def rotated(orientation):
    exif = PIL.Image.Exif()
    exif[ORIENTATION] = orientation
    return exif


def transparent_palette():
    image = PHOTO.quantize(16)
    image.info["transparency"] = bytes(range(16))
    return image


ODD_BUT_GOOD = {
    "jpeg": encode(PHOTO, "JPEG", quality=90),
    "jpeg without chroma subsampling": encode(PHOTO, "JPEG", subsampling=0),
    "progressive jpeg": encode(PHOTO, "JPEG", progressive=True),
    "jpeg stored as RGB": encode(PHOTO, "JPEG", keep_rgb=True),
    "gray jpeg": encode(PHOTO.convert("L"), "JPEG"),
    "cmyk jpeg": encode(PHOTO.convert("CMYK"), "JPEG"),
    "png": encode(PHOTO),
    "gray png": encode(PHOTO.convert("L")),
    "1-bit png": encode(PHOTO.convert("1")),
    "gray png with alpha": encode(PHOTO.convert("LA")),
    "png with alpha": encode(PHOTO.convert("RGBA")),
    "palette png": encode(PHOTO.quantize(16)),
    "palette png with transparency": encode(transparent_palette()),
    "animated gif": encode(PHOTO, "GIF", save_all=True, append_images=[PHOTO.rotate(180)]),
    "webp": encode(PHOTO, "WEBP", lossless=True),
    "bmp": encode(PHOTO, "BMP"),
    "tiff": encode(PHOTO, "TIFF"),
    "lab tiff": encode(PHOTO.convert("LAB"), "TIFF"),
}


@pytest.mark.fault("14 odd images decode to documented pixels")
@pytest.mark.filterwarnings("ignore:Palette images with Transparency:UserWarning")  # the witness's, not ours
@pytest.mark.parametrize("kind", ODD_BUT_GOOD)
def test_pixels_are_pillows(kind):
    data = ODD_BUT_GOOD[kind]
    expected = torch.from_numpy(np.array(PIL.Image.open(io.BytesIO(data)).convert("RGB"))).permute(2, 0, 1)
    with warnings.catch_warnings(action="error"):
        found = decode_rgb(data)
    assert (found.dtype, found.shape) == (torch.uint8, (3, 48, 64))
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("kind", [kind for kind in ODD_BUT_GOOD if "jpeg" in kind])
def test_pixels_do_not_depend_on_the_fast_decoder(kind, monkeypatch):
    assert decoding.simplejpeg is not None
    fast = decode_rgb(ODD_BUT_GOOD[kind])
    monkeypatch.setattr(decoding, "simplejpeg", None)
    torch.testing.assert_close(fast, decode_rgb(ODD_BUT_GOOD[kind]), rtol=0, atol=0)


def test_fast_decoder_is_used_for_plain_jpegs_only(monkeypatch):
    decoded = []

    simplejpeg = decoding.simplejpeg

    class Counting:
        decode_jpeg_header = staticmethod(simplejpeg.decode_jpeg_header)

        @staticmethod
        def decode_jpeg(data, colorspace):
            decoded.append(data)
            return simplejpeg.decode_jpeg(data, colorspace)

    monkeypatch.setattr(decoding, "simplejpeg", Counting)
    upright = encode(PHOTO, "JPEG", exif=rotated(1))
    for data in [*ODD_BUT_GOOD.values(), encode(PHOTO, "JPEG", exif=rotated(6)), upright]:
        decode_rgb(data)
    plain = ["jpeg", "jpeg without chroma subsampling", "progressive jpeg", "jpeg stored as RGB", "gray jpeg"]
    assert decoded == [*(ODD_BUT_GOOD[kind] for kind in plain), upright]


@pytest.mark.fault("14 odd images decode to documented pixels")
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_as_pillow_does(kind, orientation):
    data = encode(PHOTO, kind, exif=rotated(orientation))
    expected = PIL.ImageOps.exif_transpose(PIL.Image.open(io.BytesIO(data))).convert("RGB")
    assert expected.size == ((64, 48) if orientation < 5 else (48, 64))
    assert (decode_rgb(data).permute(1, 2, 0).numpy() == np.array(expected)).all()


@pytest.mark.parametrize("fill", [b"", b"\xff\xff"], ids=["", "after fill bytes"])
@pytest.mark.parametrize("kind", ["EXIF", "XMP"])
def test_orientation_is_found_wherever_pillow_finds_it(kind, fill):
    """Behind other segments, in XMP too, and after the bytes that may fill the space between two segments."""
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    stored = {"exif": rotated(6)} if kind == "EXIF" else {"xmp": xmp}
    data = encode(PHOTO, "JPEG", comment=b"\xff\xda is no scan here", **stored)
    marker = data.index(b"\xff\xe1")
    data = data[:marker] + fill + data[marker:]
    expected = PIL.ImageOps.exif_transpose(PIL.Image.open(io.BytesIO(data)))
    assert expected.size == (48, 64)
    assert (decode_rgb(data).permute(1, 2, 0).numpy() == np.array(expected)).all()


def test_datasets_decodes_the_same_pixels(tmp_path):
    """Its `Image` feature is what other users of the same data see."""
    for data in (encode(PHOTO, "JPEG", exif=rotated(8)), ODD_BUT_GOOD["cmyk jpeg"], ODD_BUT_GOOD["jpeg"]):
        theirs = datasets.Image().decode_example({"bytes": data, "path": None}).convert("RGB")
        assert (decode_rgb(data).permute(1, 2, 0).numpy() == np.array(theirs)).all()


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data:UserWarning")
@pytest.mark.parametrize("exif", [b"Exif\0\0", b"Exif\0\0garbage", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"])
def test_unreadable_exif_counts_as_none(exif):
    assert (decode_rgb(encode(PHOTO, "JPEG", exif=exif)) == decode_rgb(encode(PHOTO, "JPEG"))).all()


@pytest.mark.fault("14 odd images decode to documented pixels")
@pytest.mark.parametrize(
    "data",
    [
        encode(GRADIENT_16),
        encode(GRADIENT_16, "TIFF"),
        encode(PIL.Image.frombytes("I;16B", (64, 48), GRADIENT_16.astype(">u2").tobytes()), "TIFF"),
        encode(GRADIENT_16.astype(np.int32), "TIFF"),
        encode(GRADIENT_16, "PPM"),
    ],
)
def test_16_bit_gray_is_scaled_to_8_bit(data):
    assert PIL.Image.open(io.BytesIO(data)).mode.startswith("I")
    assert (decode_rgb(data).numpy() == RULE_16).all()


def test_opened_image_and_path_and_bytes_give_the_same_pixels(tmp_path):
    path = tmp_path / "image.jpg"
    path.write_bytes(ODD_BUT_GOOD["jpeg"])
    expected = decode_rgb(ODD_BUT_GOOD["jpeg"])
    ways = [PIL.Image.open(path), {"bytes": None, "path": str(path)}, {"bytes": path.read_bytes(), "path": "gone.jpg"}]
    for way in [*ways, {"bytes": None, "path": path.as_uri()}]:
        assert (decode_rgb(way) == expected).all()


def test_decoded_image_lies_in_channels_last_memory():
    for kind in ("jpeg", "png"):
        assert decode_rgb(ODD_BUT_GOOD[kind]).unsqueeze(0).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.fault("13 bad images are named, or replaced on request")
@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "the file is empty"),
        (b"\0" * 1000, "is not an image, or its format is unknown to Pillow"),
        (b"<!DOCTYPE html><title>404</title>", "is not an image, or its format is unknown to Pillow"),
        (
            ODD_BUT_GOOD["jpeg"][: len(ODD_BUT_GOOD["jpeg"]) // 2],
            "the image is damaged or in an unusual format: .*truncated.*",
        ),
        (ODD_BUT_GOOD["png"][: len(ODD_BUT_GOOD["png"]) // 2], "the image is damaged or in an unusual format: .*"),
        (ODD_BUT_GOOD["gray jpeg"][:30], ".*"),
        (ODD_BUT_GOOD["webp"][:60], ".*"),
        (encode(GRADIENT_16.astype(np.float32), "TIFF"), ".*floating-point pixels have no known range; .*"),
        (
            encode(np.full((4, 4), 70_000, np.int32), "TIFF"),
            ".*pixels of mode I must lie in 0 to 65535, got 70000 to 70000; .*",
        ),
        (encode(PIL.Image.new("1", (10_000, 10_000))), "10000 x 10000 pixels are more than 89,478,485"),
    ],
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_image_that_cannot_be_used_is_named(tmp_path, data, problem):
    with pytest.raises(ImageDecodeError, match=rf"^sample 7: {problem}$"):
        decode_rgb(data, name="sample 7")
    path = tmp_path / "image.jpg"
    path.write_bytes(data)
    with pytest.raises(ImageDecodeError, match=rf"^{re.escape(str(path))} \(sample 7\): {problem}$"):
        decode_rgb({"bytes": None, "path": str(path)}, name="sample 7")


def test_missing_image_is_named(tmp_path):
    with pytest.raises(ImageDecodeError, match=r"gone\.jpg \(sample 3\): No such file or directory$"):
        decode_rgb({"bytes": None, "path": str(tmp_path / "gone.jpg")}, name="sample 3")
    for nothing in (None, {"bytes": None, "path": None}):
        with pytest.raises(ImageDecodeError, match=r"^sample 3: holds no image$"):
            decode_rgb(nothing, name="sample 3")
