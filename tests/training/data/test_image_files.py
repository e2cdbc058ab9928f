import io
import os
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from tests import launcher
from training.data.decoding import ImageDecodeError, decode_rgb
from training.data.image_files import IMAGE_ENDINGS, OTHER_ENDINGS, UNREAD_ENDINGS, sort_files
from training.data.sources import load_splits
from training.errors import DataError

ROOT = Path(__file__).parents[3]
HEIC_START = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"
JPEG_XL_START = b"\0\0\0\x0cJXL \r\n\x87\n\0\0\0\x14ftypjxl "


def encoded(kind, **options):
    pixels = np.random.default_rng(7).integers(0, 256, (12, 16, 3), np.uint8)
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def write(root, **files):
    root.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (root / name).write_bytes(data)
    return sorted(files)


def test_pillows_endings_are_images():
    """The witness is Pillow: what it writes and reads by one of its endings."""
    usual = {
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".png",
        ".webp",
        ".bmp",
        ".gif",
        ".tif",
        ".tiff",
        ".ppm",
        ".pgm",
        ".pbm",
    }
    assert usual <= IMAGE_ENDINGS
    assert {".mpo", ".jp2", ".tga", ".ico", ".psd"} <= IMAGE_ENDINGS
    assert not IMAGE_ENDINGS & OTHER_ENDINGS and not IMAGE_ENDINGS & UNREAD_ENDINGS.keys()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "JPEG2000"])
def test_an_image_without_a_telling_ending_is_found_by_its_content(tmp_path, kind):
    data = encoded(kind)
    names = write(tmp_path, **{"n01440764_1": data, "a.jpg_640": data, "b.jpeg~": data, "c.jpg!d": data})
    found = sort_files(tmp_path, names)
    assert (found.images, found.unread, found.others) == (names, [], [])


def test_text_and_system_files_are_no_images(tmp_path):
    files = {
        "Thumbs.db": b"\xd0\xcf\x11\xe0",
        "notes.txt": b"six legs",
        "README": b"BMW and II* and GIF",
        "empty": b"",
    }
    names = write(tmp_path, **files)
    assert sort_files(tmp_path, names).others == names


def test_only_files_without_a_telling_ending_are_opened(tmp_path, monkeypatch):
    """A million files: names must do."""
    names = [f"1{ending}" for ending in (".jpg", ".JFIF", ".txt", ".xml", ".heic", ".nef")]
    sort_files(tmp_path / "not there", names)  # nothing to open
    with pytest.raises(DataError, match=r"/n01440764 cannot be read: Permission denied$"):
        write(tmp_path, n01440764=b"")
        monkeypatch.setattr(
            "builtins.open", lambda *_: (_ for _ in ()).throw(PermissionError(13, "Permission denied"))
        )
        sort_files(tmp_path, ["n01440764"])


def test_a_pipe_and_a_link_to_nothing_are_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    assert sort_files(tmp_path, ["link", "pipe"]).others == ["link", "pipe"]


@pytest.mark.parametrize(
    ("name", "start", "kind"),
    [
        ("1.heic", b"", "HEIC"),
        ("1.HEIF", b"", "HEIC"),
        ("1", HEIC_START, "HEIC"),
        ("1.jxl", b"", "JPEG XL"),
        ("1.unknown", JPEG_XL_START, "JPEG XL"),
        ("1.nef", b"II*\0", "camera raw"),  # a TIFF to Pillow, which gives a thumbnail of it
        ("1.svg", b"<svg>", "SVG"),
    ],
)
def test_images_that_cannot_be_read_are_told_from_other_files(tmp_path, name, start, kind):
    found = sort_files(tmp_path, write(tmp_path, **{name: start}))
    assert (found.images, found.unread, found.others) == ([], [(name, kind)], [])


def test_images_of_a_telephone_are_refused_with_what_helps(tmp_path):
    for number in range(3):
        write(tmp_path / "train" / "ant", **{f"{number}.jpg": encoded("JPEG")})
        write(tmp_path / "train" / "bee", **{f"IMG_{number}.HEIC": HEIC_START})
    with pytest.raises(DataError) as error:
        load_splits(str(tmp_path))
    assert str(error.value) == (
        f"3 of the 6 images in {tmp_path}/train are HEIC, such as {tmp_path}/train/bee/IMG_0.HEIC, and cannot be read "
        "here: pip install pillow-heif, or convert to JPEG, or move them away"
    )


@pytest.mark.parametrize(
    ("start", "sentence"), [(HEIC_START, "is HEIC: pip install pillow-heif"), (b"?", "is not an")]
)
def test_an_undecodable_image_says_what_it_is(start, sentence):
    """A telephone's image that was renamed to .jpg, or stands in Parquet."""
    with pytest.raises(ImageDecodeError, match=f"^image: {sentence}"):
        decode_rgb(start + bytes(100))


def test_a_package_for_heic_is_used_where_it_is_installed(tmp_path):
    """A stand-in for pillow-heif, which knows one kind of file with HEIC's first bytes and gives a red image."""
    (tmp_path / "pillow_heif.py").write_text(
        "import PIL.Image, PIL.ImageFile\n"
        "class Red(PIL.ImageFile.ImageFile):\n"
        "    format = 'HEIF'\n"
        "    def _open(self):\n"
        "        self._mode, self._size, self.tile = 'RGB', (4, 3), []\n"
        "    def load(self):\n"
        "        self.im = PIL.Image.new('RGB', (4, 3), (255, 0, 0)).im\n"
        "        return PIL.Image.Image.load(self)\n"
        "def register_heif_opener():\n"
        "    PIL.Image.register_open('HEIF', Red, lambda start: start[4:12] == b'ftypheic')\n"
        "    PIL.Image.register_extension('HEIF', '.heic')\n"
    )
    code = (
        "import sys; from training.data.sources import load_splits; from training.data.decoding import decode_rgb\n"
        "splits = load_splits(sys.argv[1])\n"
        "print(len(splits.train), decode_rgb(splits.train[0]['image'])[:, 0, 0].tolist())"
    )
    for name in ("ant", "bee"):
        write(tmp_path / "data" / "train" / name, **{"1.heic": HEIC_START + bytes(50), "2": HEIC_START + bytes(50)})
        write(tmp_path / "data" / "val" / name, **{"1.heic": HEIC_START + bytes(50)})
    answer = launcher.run(["-c", code, tmp_path / "data"], env=os.environ | {"PYTHONPATH": str(tmp_path)})
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout == "4 [255, 0, 0]\n"
