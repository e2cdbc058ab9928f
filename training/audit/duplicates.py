"""Images of a dataset that are the same file, byte for byte."""

from typing import Any

import numpy as np
import pandas as pd

from training.audit.facts import Audited


def duplicates(train: Audited, validation: Audited, class_names: list[str], max_listed: int) -> dict[str, Any]:
    """Images of the same encoded bytes; those that cannot be decoded are left out.

    Returns:
        - train, validation: `count` of images that repeat another one of their split, and the largest groups.
        - leaks: `count` of validation images that are training images too, and pairs of names.
        - labels: `count` of groups with several labels, and an image of each label for the largest groups.
    """
    splits = {"train": train, "validation": validation}
    images = pd.concat([_good_images(name, split) for name, split in splits.items()], ignore_index=True)
    # Numbers follow the first images of the groups, so that of groups of one size the earliest is listed first.
    images["group"] = pd.factorize(images["digest"])[0]

    def names(rows: pd.DataFrame) -> list[str]:
        return [splits[split].place(index) for split, index in zip(rows["split"], rows["image"].tolist(), strict=True)]

    def copies(rows: pd.DataFrame) -> dict[str, Any]:
        repeated = rows[rows.duplicated("group", keep=False)]
        sizes = _largest_first(repeated)
        listed = [
            {"images": size, "names": names(repeated[repeated["group"] == group][:max_listed])}
            for group, size in sizes[:max_listed].items()
        ]
        return {"count": len(repeated) - len(sizes), "groups": len(sizes), "listed": listed}

    by_split = {name: images[images["split"] == name] for name in splits}
    originals = by_split["train"].drop_duplicates("group").set_index("group")
    leaked = by_split["validation"][by_split["validation"]["group"].isin(originals.index)]
    shown = leaked[:max_listed]
    pairs = zip(names(shown), names(originals.loc[shown["group"]]), strict=True)

    one_of_each_label = images.drop_duplicates(["group", "label"])
    labeled_twice = one_of_each_label[one_of_each_label.duplicated("group", keep=False)]
    sizes = _largest_first(images[images["group"].isin(labeled_twice["group"])])
    contradictions = []
    for group, size in sizes[:max_listed].items():
        rows = labeled_twice[labeled_twice["group"] == group][:max_listed]
        named = zip(rows["label"], names(rows), strict=True)
        contradictions.append(
            {"images": size, "names": [{"label": class_names[label], "name": name} for label, name in named]}
        )
    return {
        **{name: copies(rows) for name, rows in by_split.items()},
        "leaks": {"count": len(leaked), "listed": [{"validation": one, "train": other} for one, other in pairs]},
        "labels": {"count": len(sizes), "listed": contradictions},
    }


def _good_images(name: str, split: Audited) -> pd.DataFrame:
    """A row for each image of a split that can be decoded, in order."""
    good = np.flatnonzero(split.images["kind"])
    columns = {"digest": split.images["digest"][good], "label": split.labels[good], "image": good}
    return pd.DataFrame({"split": name, **columns})


def _largest_first(images: pd.DataFrame) -> pd.Series:
    """The number of images of each group; of groups of one size, the earliest first."""
    return images.groupby("group").size().sort_values(ascending=False, kind="stable")
