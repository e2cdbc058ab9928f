"""The usual names of splits, in any case: `train`, `Training`, `VAL`, `dev`, `test`, ..."""

import re
from collections.abc import Iterable

TRAIN_NAMES = ("train", "training")
VALIDATION_NAMES = ("validation", "val", "valid", "dev")
# Evaluated on where there is none of the others. Such a split often has no labels: competitions keep them.
TEST_NAMES = ("eval", "evaluation", "test", "testing")

# Words in names of folders that say nothing about what is in the images.
EMPTY_WORDS = {"all", "data", "dataset", "images", "image", "imgs", "img", "input", "jpeg", "jpegs", "jpg", "media"}
EMPTY_WORDS |= {"photos", "pics", "png", "set", "static", "assets", "docs", "figures", "jpegimages"}


def is_split_name(name: str) -> bool:
    return name.lower() in (*TRAIN_NAMES, *VALIDATION_NAMES, *TEST_NAMES)


def names_no_class(name: str) -> bool:
    """Whether a folder is called by what it is for: `images`, `train_images`, `Test Set`."""
    words = [word for word in re.split(r"[\W_]+", name.lower()) if word]
    return all(word in EMPTY_WORDS or is_split_name(word) for word in words)


def may_lack_labels(name: str) -> bool:
    return name.lower() in TEST_NAMES


def find_train_split(names: Iterable[str], wanted: str) -> str | None:
    """The split called `wanted`; where that is `train`, the first one with a usual name."""
    found = [name for name in names if name == wanted]
    if not found and wanted == TRAIN_NAMES[0]:
        found = _in_order(names, TRAIN_NAMES)
    return found[0] if found else None


def validation_candidates(names: Iterable[str], train_split: str) -> list[str]:
    """Splits with a usual name for evaluation, the most usual first."""
    return [name for name in _in_order(names, (*VALIDATION_NAMES, *TEST_NAMES)) if name != train_split]


def _in_order(names: Iterable[str], usual_names: tuple[str, ...]) -> list[str]:
    """Those of `names` that are usual, in the order of `usual_names`; of several spellings the lower-case first."""
    found = [name for name in names if name.lower() in usual_names]
    return sorted(found, key=lambda name: (usual_names.index(name.lower()), name != name.lower(), name))
