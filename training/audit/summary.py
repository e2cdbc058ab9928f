"""The counts and findings of an audited dataset as JSON values, which is what --report writes."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from training.audit.duplicates import duplicates
from training.audit.facts import ODDITIES, Audited

SMALL = 64  # pixels; a shorter side below it is counted


def summarize(train: Audited, validation: Audited, class_names: list[str], max_listed: int) -> dict[str, Any]:
    """Counts and findings of both splits; at most `max_listed` names for each finding."""
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
    """Counts of one split; sizes are None where no image can be decoded."""
    good = split.images[split.images["kind"] > 0]
    counts = np.bincount(split.images["kind"], minlength=len(split.kinds))
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
        "images": len(split.images),
        "undecodable": by_kind.pop("undecodable"),
        "sizes": sizes,
        "small": int((np.minimum(good["width"], good["height"]) < SMALL).sum()),
        "kinds": by_kind,
        "odd": {name: int(split.images[name].sum()) for name in ODDITIES},
    }


def _odd_places(splits: Sequence[Audited], oddity: str, max_listed: int) -> list[str]:
    places = [(split, index) for split in splits for index in np.flatnonzero(split.images[oddity])[:max_listed]]
    return [split.place(int(index)) for split, index in places[:max_listed]]


def num_undecodable(summary: dict[str, Any]) -> int:
    return sum(split["undecodable"] for split in summary["splits"].values())
