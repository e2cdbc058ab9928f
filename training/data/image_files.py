"""Which files are images: by their ending, and where that tells nothing by their first bytes.

What Pillow reads counts, whatever its ending. HEIC and JPEG XL need a package of the extra "formats"; images of a kind
that cannot be read here are told apart from files that are no images.
"""

import contextlib
import os
from dataclasses import dataclass

import PIL.Image

from training.errors import DataError

# Each adds its format to Pillow, in loader workers too: the extra "formats".
with contextlib.suppress(ImportError):
    import pillow_heif

    pillow_heif.register_heif_opener()
with contextlib.suppress(ImportError):
    import pillow_jxl  # noqa: F401  registers itself

# Formats that Pillow names, but that hold no pixels it could give: weather data, video, vector drawings.
NO_PIXELS = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "PDF", "WMF"}
IMAGE_ENDINGS = frozenset(
    {
        ending
        for ending, kind in PIL.Image.registered_extensions().items()
        if kind in PIL.Image.OPEN and kind not in NO_PIXELS
    }
    | {".mpo"}  # a JPEG with more after it, which Pillow knows as two formats
)
# Opening each of a million such files would take minutes.
OTHER = (
    "7z avi bak bin cfg csv db doc docx eps gz h5 hdf5 html htm ini ipynb json jsonl lnk log m4v mat md mkv mov mp3 "
    "mp4 mpeg mpg npy npz parquet pdf pkl ps pt pth py rar rst sh sqlite tar tfrecord tgz toml tsv txt url wav webm "
    "wmf xls xlsx xml xmp yaml yml zip"
)
OTHER_ENDINGS = frozenset(f".{ending}" for ending in OTHER.split())
# Images that Pillow cannot read by itself, and what helps.
HEIC, AVIF, JPEG_XL, RAW = "HEIC", "AVIF", "JPEG XL", "camera raw"
REMEDIES = {
    HEIC: "pip install pillow-heif",
    AVIF: 'pip install "pillow>=11.3"',
    JPEG_XL: "pip install pillow-jxl-plugin",
}
UNREAD_ENDINGS = {
    ending: kind
    for kind, endings in {
        HEIC: ".heic .heif .hif .heics .heifs",
        AVIF: ".avif .avifs",
        JPEG_XL: ".jxl",
        RAW: ".3fr .arw .cr2 .cr3 .dng .erf .kdc .mrw .nef .nrw .orf .pef .raf .raw .rw2 .sr2 .srf .srw .x3f",
        "JPEG XR": ".jxr .wdp .hdp",
        "OpenEXR": ".exr",
        "SVG": ".svg .svgz",
        "XCF": ".xcf",
    }.items()
    for ending in endings.split()
    if ending not in IMAGE_ENDINGS
}
FIRST_BYTES = 18  # of a file, which tell its kind
MAGIC = (
    b"\xff\xd8\xff",  # JPEG
    b"\x89PNG\r\n\x1a\n",
    b"GIF87a",
    b"GIF89a",
    b"II*\0",  # TIFF
    b"MM\0*",
    b"\0\0\0\x0cjP  \r\n\x87\n",  # JPEG 2000
    b"\xff\x4f\xff\x51",
    b"8BPS",  # PSD
    b"qoif",
)
HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}
BMP_HEADERS = {12, 40, 52, 56, 64, 108, 124}  # sizes of the header that follows the first 14 bytes


@dataclass(frozen=True)
class FolderFiles:
    """The names of a folder's files, sorted as they came."""

    images: list[str]
    unread: list[tuple[str, str]]  # images that cannot be read here: (name, kind)
    others: list[str]


def sort_files(folder: str | os.PathLike[str], names: list[str]) -> FolderFiles:
    """Tell images from other files. Only those whose ending tells nothing are opened.

    Args:
        folder: where the files are.
        names: of the files.

    Raises:
        DataError: a file whose ending tells nothing cannot be opened.
    """
    images, unread, others = [], [], []
    for name in names:
        ending = os.path.splitext(name)[1].lower()
        if ending in IMAGE_ENDINGS:
            images.append(name)
        elif ending in OTHER_ENDINGS:
            others.append(name)
        elif kind := UNREAD_ENDINGS.get(ending):
            unread.append((name, kind))
        else:
            start = _first_bytes(os.path.join(folder, name))
            if kind := unread_kind(start):
                unread.append((name, kind))
            elif starts_like_image(start):
                images.append(name)
            else:
                others.append(name)
    return FolderFiles(images, unread, others)


def starts_like_image(start: bytes) -> bool:
    """Whether a file with these first bytes is an image that can be read here."""
    if start.startswith(MAGIC) or (start[:4] == b"RIFF" and start[8:12] == b"WEBP"):
        return True
    if start[:2] == b"BM" and int.from_bytes(start[14:18], "little") in BMP_HEADERS:
        return True
    return _kind_by_package(start) is not None and unread_kind(start) is None


def unread_kind(start: bytes) -> str | None:
    """HEIC, AVIF or JPEG XL where the first bytes of a file are of that kind and it cannot be read here."""
    kind = _kind_by_package(start)
    if kind is None:
        return None
    ending = {HEIC: ".heic", AVIF: ".avif", JPEG_XL: ".jxl"}[kind]
    return kind if ending in UNREAD_ENDINGS else None


def remedy(kind: str) -> str:
    """What to do about an image of a kind that cannot be read, as a part of a sentence."""
    return f"{REMEDIES[kind]}, or convert to JPEG" if kind in REMEDIES else "convert to JPEG"


def _kind_by_package(start: bytes) -> str | None:
    if start[4:8] == b"ftyp":
        brand = start[8:12]
        return HEIC if brand in HEIC_BRANDS else AVIF if brand in (b"avif", b"avis") else None
    is_jpeg_xl = start.startswith((b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n"))
    return JPEG_XL if is_jpeg_xl else None


def _first_bytes(path: str) -> bytes:
    if not os.path.isfile(path):  # a pipe would be waited for; a link to nothing is no image
        return b""
    try:
        with open(path, "rb") as file:
            return file.read(FIRST_BYTES)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
