"""What lies in folders of images, without hidden files and what systems leave behind."""

import os
from itertools import islice
from pathlib import Path

from training.data.image_files import IMAGE_ENDINGS, UNREAD_ENDINGS, sort_files
from training.data.split_names import names_no_class
from training.errors import DataError

# What systems leave behind when they unpack, index or share folders; none of it is the user's.
SYSTEM_FOLDERS = {"__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found"}
NUM_SNIFFED = 8  # files without a telling ending, to see whether a folder holds images


def list_folder(folder: Path) -> tuple[list[str], list[str], list[str]]:
    """(names of sub-folders, names of files, names of hidden files), sorted, without hidden folders and the system's.

    Raises:
        DataError: the folder cannot be read.
    """
    try:
        with os.scandir(folder) as scan:
            entries = sorted((entry.name, entry.is_dir()) for entry in scan)
    except OSError as error:
        raise DataError(f"folder {folder} cannot be read: {error.strerror}") from error
    folders = [name for name, is_dir in entries if is_dir and name[0] != "." and name not in SYSTEM_FOLDERS]
    files = [name for name, is_dir in entries if not is_dir and name[0] != "."]
    return folders, files, [name for name, is_dir in entries if not is_dir and name[0] == "."]


def holds_images(folder: Path, depth: int = 1) -> bool:
    """Whether there are images in a folder, or in folders as deep in it; the first one ends the search."""
    folders, files, _ = list_folder(folder)
    endings = IMAGE_ENDINGS | UNREAD_ENDINGS.keys()
    if any(os.path.splitext(name)[1].lower() in endings for name in files):
        return True
    if sort_files(folder, list(islice(files, NUM_SNIFFED))).images:
        return True
    return depth > 0 and any(holds_images(folder / name, depth - 1) for name in folders)


def count_images(folder: Path) -> int:
    """The number of images in a folder and all folders in it."""
    folders, names, _ = list_folder(folder)
    files = sort_files(folder, names)
    return len(files.images) + len(files.unread) + sum(count_images(folder / name) for name in folders)


def find_class_folders(root: Path) -> list[Path]:
    """Two class folders with images, in the folder itself or in one of its folders; an empty list without such.

    At the top, folders called like `train_images` or `assets` are no classes.
    """
    folders = list_folder(root)[0]
    candidates = [root / name for name in folders if not names_no_class(name)]
    for group in (
        candidates,
        *([folder / name for name in list_folder(folder)[0]] for folder in map(root.joinpath, folders)),
    ):
        found = list(islice((folder for folder in group if holds_images(folder, depth=0)), 2))
        if len(found) == 2:
            return found
    return []
