"""A folder of Parquet, tar or metadata files as `datasets` reads it, once that is what the names of the files say.

`datasets` knows `train`, `val`, `test`, ... in lower case only. It puts `Train/` and `Val/` into one split, leaves out
what is called otherwise, and drops a metadata file beside the folders of the splits, all without a word.
"""

import os
import re
from pathlib import Path

import datasets

from training.data.split_names import TRAIN_NAMES, VALIDATION_NAMES, is_split_name
from training.errors import DataError, listed

Splits = dict[str, datasets.Dataset | datasets.IterableDataset]


def read_folder(
    root: Path, files: list[Path], *, is_metadata: bool, name: str | None, streaming: bool
) -> tuple[Splits, list[str]]:
    """The splits of a folder, and notes on what is not used.

    Args:
        root: the folder.
        files: the Parquet, tar or metadata files in it, sorted.
        is_metadata: they are metadata files.
        name: of the configuration, where the folder states several.

    Raises:
        DataError: names of files say something else than what `datasets` would make of them.
        OSError, ValueError, ...: the errors of `datasets`.
    """
    builder = datasets.load_dataset_builder(os.path.abspath(root), name=name)
    real_root = Path(os.path.realpath(root))  # as `datasets` names files: links above the root are followed, not in it
    in_split = {str(split): set(map(Path, paths)) for split, paths in builder.config.data_files.items()}
    found = {
        split: [file for file in files if real_root / file.relative_to(root) in paths]
        for split, paths in in_split.items()
    }
    _require_splits_by_name(root, files, found)
    unused = [file for file in files if not any(file in of_split for of_split in found.values())]
    if is_metadata and (beside := [file for file in unused if file.parent == root]):
        raise DataError(
            f"{beside[0]} is not read, for the images lie in splits of their own ({listed(found)}): write such a file "
            "into the folder of each split"
        )
    notes = [f"not used: {listed((str(file.relative_to(root)) for file in unused), 3)}"] if unused else []
    chosen = list(found)
    if is_metadata:
        for split in (split for split in found if not found[split]):
            if split != "test":
                raise DataError(
                    f"split {split!r} of {root} has no {files[0].name}, as {files[0]} has it: write one, or move its "
                    "images away"
                )
            chosen.remove(split)
            notes.append(f"{split} has no labels and is not used")
    if streaming:
        return {split: builder.as_streaming_dataset(split=split) for split in chosen}, notes
    builder.download_and_prepare()
    return {split: builder.as_dataset(split=split) for split in chosen}, notes


def _require_splits_by_name(root: Path, files: list[Path], found: dict[str, list[Path]]) -> None:
    """Refuse files of several splits by their names, some of which are not in lower case and so not understood."""
    meant = {file: _split_word(file.relative_to(root)) for file in files}
    is_by_name = found.keys() <= {"train", "validation", "test"}  # a README may state splits of other names
    if not is_by_name or len({_canonical(word) for word in meant.values()}) < 2:
        return
    for file, word in meant.items():
        if word and word != word.lower() and file not in found.get(_canonical(word), ()):
            raise DataError(
                f"{file} would not be read as a split of its own, for only names in lower case are: rename {word} to "
                f"{word.lower()}"
            )


def _split_word(path: Path) -> str | None:
    """The first word in a file's path that is the name of a split, in any case."""
    return next((word for word in re.split(r"[\W_\d]+", str(path)) if is_split_name(word)), None)


def _canonical(word: str | None) -> str:
    """What `datasets` calls the split; files without such a word are training data."""
    if word is None or word.lower() in TRAIN_NAMES:
        return "train"
    return "validation" if word.lower() in VALIDATION_NAMES else "test"
