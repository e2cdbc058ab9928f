"""An audit's findings as text: tables in sections, and a verdict of one line."""

from collections.abc import Sequence
from typing import Any

from training.audit.facts import ODDITIES
from training.audit.summary import SMALL, num_undecodable
from training.reporting.text_table import aligned

MAX_CLASSES, CLASSES_AT_EACH_END = 20, 5  # all of so many, or else the largest and the smallest


def report(summary: dict[str, Any]) -> str:
    """The tables and findings, in sections."""
    sections = {
        "Images": _images(summary),
        _classes_title(summary): _classes(summary),
        "Class order": _class_order(summary),
        "Sizes of good images, upright, in pixels": _sizes(summary),
        "Formats and modes of good images": _kinds(summary),
        "Odd but good, and what training makes of it": _oddities(summary),
        "Undecodable": _undecodable(summary),
        "Duplicates: the same file, byte for byte": _duplicates(summary),
    }
    return "\n\n".join("\n".join([title, *(f"  {line}" for line in lines)]) for title, lines in sections.items())


def verdict(summary: dict[str, Any]) -> str:
    """One line: whether training would stop, and all that is worth a look."""
    splits, copies = summary["splits"], summary["duplicates"]
    findings = [
        ("hidden or non-image files", summary["other_files"]),
        ("in both splits", copies["leaks"]["count"]),
        *((f"repeated within {name}", copies[name]["count"]) for name in splits),
        ("under several labels", copies["labels"]["count"]),
        *((f"classes absent from {name}", len(_absent(summary, name))) for name in splits),
        *((name, _num_odd(summary, name)) for name in ODDITIES),
    ]
    found = ", ".join(f"{words} ({count:,})" for words, count in findings if count)
    warning = f"; warnings: {found}" if found else ""
    total, bad = sum(split["images"] for split in splits.values()), num_undecodable(summary)
    if bad:
        return f"verdict: training would stop: {bad:,} of {total:,} images cannot be decoded{warning}"
    return f"verdict: nothing stops training: all {total:,} images can be decoded{warning}"


def _num_odd(summary: dict[str, Any], oddity: str) -> int:
    return sum(split["odd"][oddity] for split in summary["splits"].values())


def _absent(summary: dict[str, Any], split: str) -> list[str]:
    return [row["class"] for row in summary["classes"] if not row[split]]


def _split_table(summary: dict[str, Any], rows: dict[str, list[int]]) -> list[str]:
    """A line for each of the rows, which hold a number for each split."""
    cells = [(name, *(f"{number:,}" for number in numbers)) for name, numbers in rows.items()]
    return aligned([("", *summary["splits"]), *cells], right=True)


def _images(summary: dict[str, Any]) -> list[str]:
    splits = summary["splits"].values()
    rows = {
        "good": [split["images"] - split["undecodable"] for split in splits],
        "undecodable": [split["undecodable"] for split in splits],
        "all": [split["images"] for split in splits],
    }
    return _split_table(summary, rows)


def _classes_title(summary: dict[str, Any]) -> str:
    number = len(summary["classes"])
    if number <= MAX_CLASSES:
        return f"Images of all {number} classes"
    return f"Images of the {CLASSES_AT_EACH_END} largest and {CLASSES_AT_EACH_END} smallest of {number:,} classes"


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
    rows: list[Sequence[str]] = [("", "min", "median", "max")]
    shares = []
    for name, split in summary["splits"].items():
        if split["sizes"] is None:
            continue
        for side, values in split["sizes"].items():
            rows.append((f"{name}, {side}", *(f"{value:,.10g}" for value in values.values())))
        good = split["images"] - split["undecodable"]
        share = f"{split['small']:,} of {good:,} = {100 * split['small'] / good:.1f} %"
        shares.append(f"{name}, shorter side below {SMALL}: {share}")
    return [*aligned(rows, right=True), *shares]


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
        lines.append(f"repeated within {name}: {copies['count']:,}, in groups of one image: {copies['groups']:,}")
        lines += _listed_groups([(group["names"], group["images"]) for group in copies["listed"]], copies["groups"])
    pairs = [([leak["validation"], leak["train"]], 2) for leak in found["leaks"]["listed"]]
    lines.append(f"leaks, validation images that are training images too: {found['leaks']['count']:,}")
    lines += _listed_groups(pairs, found["leaks"]["count"])
    groups = [
        ([f"{one['label']!r}: {one['name']}" for one in group["names"]], group["images"])
        for group in found["labels"]["listed"]
    ]
    lines.append(f"the same image under several labels: {found['labels']['count']:,}")
    return lines + _listed_groups(groups, found["labels"]["count"])


def _listed(names: Sequence[str], count: int, indent: str = "    ") -> list[str]:
    """The names, and how many of the `count` are not among them."""
    more = [f"... and {count - len(names):,} more"] if count > len(names) else []
    return [f"{indent}{line}" for line in [*names, *more]]


def _listed_groups(groups: list[tuple[list[str], int]], count: int) -> list[str]:
    """Groups of (names, number of equal images), and how many of the `count` groups are not among them."""
    lines = []
    for (first, *others), number in groups:
        lines += [f"    {first}", *_listed(others, number - 1, indent="      = ")]
    return lines + _listed([], count - len(groups))
