"""Reads every picture of a data set before a long run, and reports what training would meet.

python -m training.audit --dataset pictures [--report audit.json]

Pictures are decoded by the trainer's own rule, in parallel. Exit code 0: nothing stops training, though there may be
warnings; 1: some pictures cannot be decoded, and each of them would end a run; 2: the command or the data set as a
whole is wrong.
"""

import argparse
import hashlib
import io
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import fsspec
import numpy as np
import PIL.Image
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from training.config import FIELDS, TrainConfig, default_num_workers, short_text
from training.decoding import DECODING_ERRORS, EXIF_ORIENTATION, TRANSPOSITIONS, ImageDecodeError, decode_rgb
from training.records import write_summary
from training.sources import DataError, load_splits

DATA_FLAGS = (
    "dataset",
    "dataset_name",
    "train_split",
    "validation_split",
    "image_column",
    "label_column",
    "validation_fraction",
)
ODDITIES = {  # what a good picture may be, and what training makes of it
    "EXIF-rotated": "turned upright",
    "several frames": "the first one is taken",
    "transparency": "dropped: the colours underneath show",
    "16 bit": "brought to 8 bit",
}
SMALL = 64  # pixels; a shorter side below it is counted
BATCH = 64  # pictures that a worker reads at once
MAX_CLASSES, CLASSES_AT_EACH_END = 20, 5  # in the text: all of so many, or else the largest and the smallest

# What is kept of each picture, so that a million of them take 50 MB. Kind 0 is an undecodable one.
PICTURE = np.dtype(
    [("digest", "S32"), ("width", "i4"), ("height", "i4"), ("kind", "u2"), *((name, "?") for name in ODDITIES)]
)


# Facts of one picture


@dataclass(frozen=True)
class Facts:
    """What is known of a picture that training can use."""

    digest: bytes  # SHA-256 of the encoded bytes
    width: int  # pixels, as training sees it: upright
    height: int
    kind: str  # format and mode, such as "JPEG RGB"
    oddities: frozenset[str]  # of ODDITIES


def read_facts(image: dict[str, Any] | None, name: str) -> Facts:
    """Decode a picture as training does, and look at how it is stored.

    Args:
        image: `{"bytes": ..., "path": ...}` as `datasets.Image(decode=False)` gives it.
        name: of the sample, for the error message.

    Raises:
        ImageDecodeError: see `training.decoding.decode_rgb`.
    """
    image = image or {"bytes": None, "path": None}
    data = _encoded(image)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's: what counts is whether the picture is refused
        _, height, width = decode_rgb({"bytes": data, "path": image["path"]}, name).shape
        picture = PIL.Image.open(io.BytesIO(data))
        oddities = set()
        # 16-bit colour, unlike gray, has no mode of its own; the raw mode tells, until the pixels are loaded.
        if picture.mode.startswith("I") or any(";16" in str(tile) for tile in picture.tile):
            oddities.add("16 bit")
        if picture.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in picture.info:
            oddities.add("transparency")
        with suppress(*DECODING_ERRORS):  # the first frame is good
            if getattr(picture, "is_animated", False):
                oddities.add("several frames")
        with suppress(*DECODING_ERRORS):  # EXIF that cannot be read counts as none
            if picture.getexif().get(EXIF_ORIENTATION) in TRANSPOSITIONS:
                oddities.add("EXIF-rotated")
    kind = f"{picture.format} {picture.mode}"
    return Facts(hashlib.sha256(data).digest(), width, height, kind, frozenset(oddities))


def _encoded(image: dict[str, Any]) -> bytes | None:
    """None where nothing can be read; `decode_rgb`, given the same path, says why."""
    path = image["path"]
    if image["bytes"] is not None or not path:
        return image["bytes"]
    with suppress(OSError), fsspec.open(path, "rb") if "://" in path else open(path, "rb") as file:
        return file.read()
    return None


class PictureFacts(Dataset):
    """A split as `Facts`, or a sentence for a picture that cannot be decoded: pixels do not leave the worker.

    Args:
        split: stored, with a column of encoded pictures, `Image(decode=False)`.
        image_column: its name.
        name: of the split, for people to read.
    """

    def __init__(self, split: datasets.Dataset, image_column: str, name: str) -> None:
        self.split = split.select_columns([image_column])
        self.image_column = image_column
        self.name = name

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> Facts | str:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[Facts | str]:
        """Called by `DataLoader` with a batch of indices: reading rows together takes a fraction of the time."""
        images = self.split[indices][self.image_column]
        return [
            _facts_or_reason(image, f"sample {index} of {self.name}")
            for image, index in zip(images, indices, strict=True)
        ]

    def place(self, index: int) -> str:
        """The sample's name, as it stands in the sentences."""
        return _with_path(self.split[index][self.image_column], f"sample {index} of {self.name}")


def _facts_or_reason(image: dict[str, Any] | None, name: str) -> Facts | str:
    try:
        return read_facts(image, name)
    except ImageDecodeError as error:
        return str(error)
    except Exception as error:  # whatever else a damaged file makes a decoder raise, it would end training too
        return f"{_with_path(image, name)}: {type(error).__name__}: {' '.join(str(error).split())}"


def _with_path(image: dict[str, Any] | None, name: str) -> str:
    """As `decode_rgb` names a picture."""
    return f"{image['path']} ({name})" if image and image["path"] else name


# Facts of a split


@dataclass(frozen=True)
class Audited:
    """A split whose pictures were read."""

    labels: np.ndarray  # (n,), indices into the class names
    pictures: np.ndarray  # (n,) of PICTURE
    kinds: list[str]  # by `kind` of PICTURE
    reasons: list[str]  # sentences on undecodable pictures, the first ones
    place: Callable[[int], str]  # the name of a picture by its index


def audit_split(
    data: PictureFacts,
    labels: np.ndarray,
    *,
    num_workers: int,
    max_listed: int,
    progress: Callable[[int], Any] = lambda images: None,
) -> Audited:
    """Read all pictures of a split, in order.

    Args:
        data: the split.
        labels: of its samples.
        num_workers: loader processes; they change nothing about the result.
        max_listed: reasons to keep.
        progress: called with the number of pictures of each batch.
    """
    pictures = np.zeros(len(data), PICTURE)
    kinds, reasons = {"undecodable": 0}, []
    index = 0
    for batch in DataLoader(data, batch_size=BATCH, num_workers=num_workers, collate_fn=list):
        for facts in batch:
            if isinstance(facts, Facts):
                kind = kinds.setdefault(facts.kind, len(kinds))
                odd = (name in facts.oddities for name in ODDITIES)
                pictures[index] = (facts.digest, facts.width, facts.height, kind, *odd)
            elif len(reasons) < max_listed:
                reasons.append(facts)
            index += 1
        progress(len(batch))
    return Audited(labels, pictures, list(kinds), reasons, data.place)


# From facts to a summary, which is what --report writes


def summarize(train: Audited, validation: Audited, class_names: list[str], max_listed: int) -> dict[str, Any]:
    """Counts and findings of both splits, as JSON values; at most `max_listed` names for each finding."""
    splits = {"train": train, "validation": validation}
    counts = [np.bincount(split.labels, minlength=len(class_names)).tolist() for split in splits.values()]
    return {
        "splits": {name: split_summary(split) for name, split in splits.items()},
        "classes": [
            {"class": name, "train": in_train, "validation": in_validation}
            for name, in_train, in_validation in zip(class_names, *counts, strict=True)
        ],
        "alphabetical": class_names == sorted(class_names),
        "undecodable": (train.reasons + validation.reasons)[:max_listed],
        "odd": {name: _odd_places((train, validation), name, max_listed) for name in ODDITIES},
        "duplicates": duplicates(train, validation, class_names, max_listed),
    }


def split_summary(split: Audited) -> dict[str, Any]:
    """Counts of one split; sizes are None where no picture can be decoded."""
    good = split.pictures[split.pictures["kind"] > 0]
    counts = np.bincount(split.pictures["kind"], minlength=len(split.kinds))
    by_kind = dict(zip(split.kinds, counts.tolist(), strict=True))
    sizes = None
    if len(good):
        sizes = {
            side: {
                "min": int(good[side].min()),
                "median": float(np.median(good[side])),
                "max": int(good[side].max()),
            }
            for side in ("width", "height")
        }
    return {
        "pictures": len(split.pictures),
        "undecodable": by_kind.pop("undecodable"),
        "sizes": sizes,
        "small": int((np.minimum(good["width"], good["height"]) < SMALL).sum()),
        "kinds": by_kind,
        "odd": {name: int(split.pictures[name].sum()) for name in ODDITIES},
    }


def _odd_places(splits: Sequence[Audited], oddity: str, max_listed: int) -> list[str]:
    places = [(split, index) for split in splits for index in np.flatnonzero(split.pictures[oddity])[:max_listed]]
    return [split.place(int(index)) for split, index in places[:max_listed]]


def duplicates(train: Audited, validation: Audited, class_names: list[str], max_listed: int) -> dict[str, Any]:
    """Pictures of the same encoded bytes; those that cannot be decoded are left out.

    Returns:
        - train, validation: `count` of pictures that repeat another one of their split, and the largest groups.
        - leaks: `count` of validation pictures that are training pictures too, and pairs of names.
        - labels: `count` of groups with several labels, and a picture of each label for the largest groups.
    """
    splits = (train, validation)
    indices = [np.flatnonzero(split.pictures["kind"]) for split in splits]
    digests, labels = (
        np.concatenate([values[chosen] for values, chosen in zip(columns, indices, strict=True)])
        for columns in ([split.pictures["digest"] for split in splits], [split.labels for split in splits])
    )
    num_train = len(indices[0])
    is_train = np.arange(len(digests)) < num_train

    # Groups of equal digests. Training pictures come before the others, in their groups too.
    _, first, group, size = np.unique(digests, return_index=True, return_inverse=True, return_counts=True)
    members, starts = np.argsort(group, kind="stable"), np.cumsum(size) - size
    train_size = np.bincount(group[is_train], minlength=len(size))
    num_labels = np.bincount(np.unique(group * len(class_names) + labels) // len(class_names))

    def place(position: int) -> str:
        if position < num_train:
            return train.place(int(indices[0][position]))
        return validation.place(int(indices[1][position - num_train]))

    def largest(found: np.ndarray, sizes: np.ndarray) -> list[np.ndarray]:
        """Positions of the members of the largest groups found; of groups of one size, the earliest."""
        order = np.lexsort((first[found], -sizes[found]))[:max_listed]
        return [members[starts[g] : starts[g] + size[g]] for g in found[order]]

    def copies(inside: np.ndarray, sizes: np.ndarray) -> dict[str, Any]:
        repeated = np.flatnonzero(sizes > 1)
        groups = [positions[inside[positions]] for positions in largest(repeated, sizes)]
        listed = [{"pictures": len(g), "names": [place(position) for position in g[:max_listed]]} for g in groups]
        return {"count": int((sizes[repeated] - 1).sum()), "groups": len(repeated), "listed": listed}

    leaked = np.flatnonzero(~is_train & (train_size[group] > 0))
    pairs = [{"validation": place(p), "train": place(first[group[p]])} for p in leaked[:max_listed]]
    contradictory = np.flatnonzero(num_labels > 1)
    contradictions = []
    for positions in largest(contradictory, size):
        _, one_of_each = np.unique(labels[positions], return_index=True)
        chosen = positions[np.sort(one_of_each)][:max_listed]
        names = [{"label": class_names[labels[position]], "name": place(position)} for position in chosen]
        contradictions.append({"pictures": len(positions), "names": names})
    return {
        "train": copies(is_train, train_size),
        "validation": copies(~is_train, size - train_size),
        "leaks": {"count": len(leaked), "listed": pairs},
        "labels": {"count": len(contradictory), "listed": contradictions},
    }


def num_undecodable(summary: dict[str, Any]) -> int:
    return sum(split["undecodable"] for split in summary["splits"].values())


# From a summary to text


def report(summary: dict[str, Any]) -> str:
    """The tables and findings, in sections."""
    sections = {
        "Pictures": _pictures(summary),
        _classes_title(summary): _classes(summary),
        "Class order": _class_order(summary),
        "Sizes of good pictures, upright, in pixels": _sizes(summary),
        "Formats and modes of good pictures": _kinds(summary),
        "Odd but good, and what training makes of it": _oddities(summary),
        "Undecodable": _undecodable(summary),
        "Duplicates: the same file, byte for byte": _duplicates(summary),
    }
    return "\n\n".join("\n".join([title, *(f"  {line}" for line in lines)]) for title, lines in sections.items())


def verdict(summary: dict[str, Any]) -> str:
    """One line: whether training would stop, and all that is worth a look."""
    splits, copies = summary["splits"], summary["duplicates"]
    findings = [
        ("in both splits", copies["leaks"]["count"]),
        *((f"repeated within {name}", copies[name]["count"]) for name in splits),
        ("under several labels", copies["labels"]["count"]),
        *((f"classes absent from {name}", len(_absent(summary, name))) for name in splits),
        *((name, _num_odd(summary, name)) for name in ODDITIES),
    ]
    found = ", ".join(f"{words} ({count:,})" for words, count in findings if count)
    warning = f"; warnings: {found}" if found else ""
    total, bad = sum(split["pictures"] for split in splits.values()), num_undecodable(summary)
    if bad:
        return f"verdict: training would stop: {bad:,} of {total:,} pictures cannot be decoded{warning}"
    return f"verdict: nothing stops training: all {total:,} pictures can be decoded{warning}"


def _num_odd(summary: dict[str, Any], oddity: str) -> int:
    return sum(split["odd"][oddity] for split in summary["splits"].values())


def _absent(summary: dict[str, Any], split: str) -> list[str]:
    return [row["class"] for row in summary["classes"] if not row[split]]


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    name_width, *widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (
        "  ".join([name.ljust(name_width), *(cell.rjust(width) for cell, width in zip(cells, widths, strict=True))])
        for name, *cells in rows
    )
    return [line.rstrip() for line in lines]


def _split_table(summary: dict[str, Any], rows: dict[str, list[int]]) -> list[str]:
    """A line for each of the rows, which hold a number for each split."""
    cells = [(name, *(f"{number:,}" for number in numbers)) for name, numbers in rows.items()]
    return _table([("", *summary["splits"]), *cells])


def _pictures(summary: dict[str, Any]) -> list[str]:
    splits = summary["splits"].values()
    rows = {
        "good": [split["pictures"] - split["undecodable"] for split in splits],
        "undecodable": [split["undecodable"] for split in splits],
        "all": [split["pictures"] for split in splits],
    }
    return _split_table(summary, rows)


def _classes_title(summary: dict[str, Any]) -> str:
    number = len(summary["classes"])
    if number <= MAX_CLASSES:
        return f"Pictures of all {number} classes"
    return f"Pictures of the {CLASSES_AT_EACH_END} largest and {CLASSES_AT_EACH_END} smallest of {number:,} classes"


def _classes(summary: dict[str, Any]) -> list[str]:
    rows = sorted(summary["classes"], key=lambda row: -row["train"])
    if len(rows) > MAX_CLASSES:
        rows = rows[:CLASSES_AT_EACH_END] + rows[-CLASSES_AT_EACH_END:]
    lines = _split_table(summary, {row["class"]: [row[split] for split in summary["splits"]] for row in rows})
    for split in summary["splits"]:
        if absent := _absent(summary, split):
            more = f" and {len(absent) - MAX_CLASSES:,} more" if len(absent) > MAX_CLASSES else ""
            lines.append(f"absent from {split}: {', '.join(absent[:MAX_CLASSES])}{more}")
    return lines


def _class_order(summary: dict[str, Any]) -> list[str]:
    names = [row["class"] for row in summary["classes"]]
    order = "alphabetical" if summary["alphabetical"] else "not alphabetical, but the training split's own"
    return [
        f"0 is {names[0]!r}, {len(names) - 1} is {names[-1]!r}; the order is {order}",
        "validation labels are mapped by name",
    ]


def _sizes(summary: dict[str, Any]) -> list[str]:
    rows, shares = [("", "min", "median", "max")], []
    for name, split in summary["splits"].items():
        if split["sizes"] is None:
            continue
        for side, values in split["sizes"].items():
            rows.append((f"{name}, {side}", *(f"{value:,.10g}" for value in values.values())))
        good = split["pictures"] - split["undecodable"]
        share = f"{split['small']:,} of {good:,} = {100 * split['small'] / good:.1f} %"
        shares.append(f"{name}, shorter side below {SMALL}: {share}")
    return [*_table(rows), *shares]


def _kinds(summary: dict[str, Any]) -> list[str]:
    kinds = dict.fromkeys(kind for split in summary["splits"].values() for kind in split["kinds"])
    rows = {kind: [split["kinds"].get(kind, 0) for split in summary["splits"].values()] for kind in kinds}
    return _split_table(summary, dict(sorted(rows.items(), key=lambda row: -sum(row[1]))))


def _oddities(summary: dict[str, Any]) -> list[str]:
    rows = {name: [split["odd"][name] for split in summary["splits"].values()] for name in ODDITIES}
    header, *counts = _split_table(summary, rows)
    lines = [header]
    for line, (name, treatment) in zip(counts, ODDITIES.items(), strict=True):
        lines += [f"{line}  {treatment}", *_listed(summary["odd"][name], _num_odd(summary, name))]
    return lines


def _undecodable(summary: dict[str, Any]) -> list[str]:
    count = num_undecodable(summary)
    return [f"{count:,} in all", *_listed(summary["undecodable"], count)]


def _duplicates(summary: dict[str, Any]) -> list[str]:
    found = summary["duplicates"]
    lines = []
    for name in summary["splits"]:
        copies = found[name]
        lines.append(f"repeated within {name}: {copies['count']:,}, in groups of one picture: {copies['groups']:,}")
        lines += _listed_groups([(group["names"], group["pictures"]) for group in copies["listed"]], copies["groups"])
    pairs = [([leak["validation"], leak["train"]], 2) for leak in found["leaks"]["listed"]]
    lines.append(f"leaks, validation pictures that are training pictures too: {found['leaks']['count']:,}")
    lines += _listed_groups(pairs, found["leaks"]["count"])
    groups = [
        ([f"{one['label']!r}: {one['name']}" for one in group["names"]], group["pictures"])
        for group in found["labels"]["listed"]
    ]
    lines.append(f"the same picture under several labels: {found['labels']['count']:,}")
    return lines + _listed_groups(groups, found["labels"]["count"])


def _listed(names: Sequence[str], count: int, indent: str = "    ") -> list[str]:
    """The names, and how many of the `count` are not among them."""
    more = [f"... and {count - len(names):,} more"] if count > len(names) else []
    return [f"{indent}{line}" for line in [*names, *more]]


def _listed_groups(groups: list[tuple[list[str], int]], count: int) -> list[str]:
    """Groups of (names, number of equal pictures), and how many of the `count` groups are not among them."""
    lines = []
    for (first, *others), number in groups:
        lines += [f"    {first}", *_listed(others, number - 1, indent="      = ")]
    return lines + _listed([], count - len(groups))


# Command line

EPILOG = """\
what it looks for:
  undecodable pictures (empty, damaged, web pages named .jpg, floating-point pixels, ...): each would end a run
  leaks: validation pictures that are training pictures too, byte for byte, so that the accuracy is too good
  copies within a split, and the same picture under several labels
  classes that are small, or absent from a split, and the order of the classes
  sizes, formats and modes, and what training changes: EXIF rotation, frames, transparency, 16 bit

A sample's number is the one that train.py names in its messages. Labels that are missing or out of range are refused
as train.py refuses them. A data set cannot be streamed here: all of it is read.

exit code:
  0  nothing stops training; there may be warnings
  1  pictures cannot be decoded
  2  a flag is wrong, or the data set cannot be trained on at all; one sentence says why

examples:
  python -m training.audit --dataset pictures
  python -m training.audit --dataset ILSVRC/imagenet-1k --num_workers 16 --report audit.json --list 1000
"""


def whole_number(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be a whole number of 0 or more, got {text!r}")
    return int(text)


def output_file(text: str) -> Path:
    """Checked before the pictures are read, not after it."""
    path = Path(text)
    if path.is_dir() or not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise argparse.ArgumentTypeError(f"{text} must be a file in a folder that can be written to")
    return path


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m training.audit",
        description=__doc__.splitlines()[0],
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    data = parser.add_argument_group("data, as for train.py")
    for name in DATA_FLAGS:
        field, required = FIELDS[name], name == "dataset"
        default = "" if required or field.default is None else f" (default: {short_text(field.default)})"
        data.add_argument(
            f"--{name}",
            required=required,
            default=field.default,
            metavar="X" if name == "validation_fraction" else "TEXT",
            help=field.metadata["help"] + default,
        )
    running = parser.add_argument_group("running")
    running.add_argument(
        "--num_workers",
        type=whole_number,
        default=default_num_workers(1),
        metavar="N",
        help="loader processes; 0 reads in this one (default: by CPU cores, here %(default)s)",
    )
    results = parser.add_argument_group("results")
    results.add_argument("--report", type=output_file, metavar="FILE.json", help="write counts and findings as JSON")
    results.add_argument(
        "--list",
        type=whole_number,
        default=10,
        metavar="N",
        dest="max_listed",
        help="names for each finding, here and in --report (default: %(default)s)",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Print the report. Returns the exit code: 0; 1 if pictures cannot be decoded; 2 after a sentence on a mistake."""
    parser = build_parser()
    options = parser.parse_args(argv)
    try:
        config = TrainConfig(**{name: getattr(options, name) for name in DATA_FLAGS})
    except ValueError as error:
        parser.error(str(error))
    try:
        splits = load_splits(config.dataset, **config.source())
    except DataError as error:
        print(f"audit: {error}", file=sys.stderr)
        return 2
    print(splits.description, end="\n\n", flush=True)  # or loader workers, which are forks, print it too

    audited = {}
    total = len(splits.train) + len(splits.validation)
    with tqdm(total=total, desc="audit", unit=" images", dynamic_ncols=True) as bar:
        for name, split in (("train", splits.train), ("validation", splits.validation)):
            labels = split.select_columns([splits.label_column]).with_format("arrow")[:][splits.label_column]
            audited[name] = audit_split(
                PictureFacts(split, splits.image_column, name),
                labels.to_numpy(),
                num_workers=options.num_workers,
                max_listed=options.max_listed,
                progress=bar.update,
            )
    summary = summarize(audited["train"], audited["validation"], splits.class_names, options.max_listed)
    print(report(summary), verdict(summary), sep="\n\n")
    if options.report:
        try:
            write_summary(options.report, {"data": splits.description, **summary, "verdict": verdict(summary)})
        except OSError as error:
            print(f"audit: --report {options.report} cannot be written: {error.strerror}", file=sys.stderr)
            return 2
    return 1 if num_undecodable(summary) else 0


if __name__ == "__main__":
    sys.exit(main())
