"""The folder of a prepared copy: Parquet shards with `prepared.json` beside them, which says what they are.

While it is made it is called `<name>.partial`, so that nobody trains on half of a dataset; complete and verified, it
is renamed. A shard is written aside, forced to the disk and renamed, and only then entered into `prepared.json`: an
interrupted copy continues with the shards that are there and have the hash that was written down.
"""

import hashlib
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from training.data.fingerprint import is_other
from training.errors import UserError
from training.prepare.shrinking import COPIED, ENCODED, RESIZED, ShrunkenImage
from training.reporting.metrics import write_atomically, write_summary

MANIFEST = "prepared.json"
FORMAT = 2  # of the manifest; the first one counted `pictures`, and had no number
ROW_GROUP = 256  # images that a stream reads at once


class PrepareError(UserError, ValueError):
    """A copy cannot be made. The message is one sentence and says what to do."""


@dataclass(frozen=True)
class Shard:
    """Which samples of the source a file holds."""

    name: str
    split: str
    start: int
    stop: int


def plan_shards(split: str, num_samples: int, shard_size: int) -> list[Shard]:
    """Shards of at most `shard_size` samples, named as `datasets` recognizes splits."""
    count = math.ceil(num_samples / shard_size)
    return [
        Shard(
            f"{split}-{number:05}-of-{count:05}.parquet",
            split,
            num_samples * number // count,
            num_samples * (number + 1) // count,
        )
        for number in range(count)
    ]


def require_apart(dataset: str, output: Path) -> None:
    """Refuse an output inside the folder of the dataset, where it would be read as the dataset from then on.

    Raises:
        PrepareError: one lies inside the other, with links followed or not.
    """
    source = Path(dataset).expanduser()
    if not source.is_dir():  # a dataset of the Hub, or a file
        return
    for follow in (os.path.abspath, os.path.realpath):
        folder, copy = Path(follow(source)), Path(follow(output.expanduser()))
        partial = copy.with_name(f"{copy.name}.partial")
        if folder == copy or folder in copy.parents:
            raise PrepareError(f"--output {output} lies inside the dataset {dataset}: choose a folder outside of it")
        if copy in folder.parents or folder == partial or partial in folder.parents:
            raise PrepareError(f"the dataset {dataset} lies inside --output {output}: choose another folder")


class PreparedCopy:
    """A copy that is being made, or is complete.

    Args:
        output: the folder, complete.
        identity: what the copy is made of and how, as JSON values. One that was begun resumes where it is the same.

    Raises:
        PrepareError: something else is in the way, or a copy with another identity, or the folder cannot be made.
        OSError: the folder cannot be read or written.
    """

    def __init__(self, output: Path, identity: dict[str, Any]) -> None:
        self.output = output
        self.partial = output.with_name(f"{output.name}.partial")
        self.identity = {"format": FORMAT, **identity}
        self.is_complete = output.exists() and (not output.is_dir() or any(output.iterdir()))
        self.folder = output if self.is_complete else self.partial
        self.shards: dict[str, dict[str, Any]] = {}  # facts of the finished ones by name
        if self.folder.exists() and (self.is_complete or any(self.folder.iterdir())):
            manifest = _read_manifest(self.folder)
            self._require_this_format(manifest["identity"])
            _require_same(self.folder, manifest["identity"], self.identity)
            self.shards = {facts["name"]: facts for facts in manifest["shards"]}
        else:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
            except OSError as failure:
                raise PrepareError(
                    f"{self.folder} cannot be made: {failure.strerror}; choose another --output"
                ) from failure
            self._write_manifest({})

    def has(self, shard: Shard) -> bool:
        """Whether the shard is finished, and its file the one that was written."""
        facts = self.shards.get(shard.name)
        path = self.folder / shard.name
        return facts is not None and path.is_file() and _sha256(path) == facts["sha256"]

    def add(
        self, shard: Shard, images: Sequence[ShrunkenImage], labels: np.ndarray, features: datasets.Features
    ) -> None:
        """Write a shard and enter it into the manifest.

        Args:
            images: of its samples, in order. Those without data are left out, and named in the manifest.
            labels: of its samples, int64.
            features: column of images, column of labels.

        Raises:
            OSError: it could not be written; what there was is intact.
        """
        is_good = np.array([image.data is not None for image in images], dtype=bool)
        kept = [image for image in images if image.data is not None]
        encoded = pa.StructArray.from_arrays(
            [
                pa.array([image.data for image in kept], pa.binary()),
                pa.array([image.path for image in kept], pa.string()),
            ],
            names=["bytes", "path"],
        )
        # The schema tells `datasets` that these are images, and the names of the classes.
        table = pa.Table.from_arrays([encoded, pa.array(labels[is_good])], schema=features.arrow_schema)
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, row_group_size=ROW_GROUP, compression="none")  # JPEG is compressed already
        data = sink.getvalue().to_pybytes()
        write_atomically(self.folder / shard.name, data)
        how = [image.how for image in kept]
        self.shards[shard.name] = {
            "name": shard.name,
            "split": shard.split,
            "images": len(kept),
            **{kind: how.count(kind) for kind in (COPIED, ENCODED, RESIZED)},
            "source_bytes": sum(image.source_size for image in images),
            "bytes": len(data),
            "sha256": hashlib.sha256(data).hexdigest(),
            "left_out": [
                {"sample": sample, "reason": image.how}
                for sample, image in enumerate(images, shard.start)
                if image.data is None
            ],
        }
        self._write_manifest({})

    def verify(self, plan: Sequence[Shard], labels: dict[str, np.ndarray], label_column: str) -> dict[str, np.ndarray]:
        """Read all shards again, and compare hashes, and labels one by one, with what must be there.

        Args:
            plan: the shards of all splits, in order.
            labels: of the source's samples, by split.

        Returns:
            The labels of the copy, by split.

        Raises:
            PrepareError: they are not what they must be; it names the file.
        """
        found: dict[str, list[np.ndarray]] = {split: [] for split in labels}
        for shard in plan:
            path = self.folder / shard.name
            if not self.has(shard):
                raise PrepareError(f"{path} is damaged or missing; delete {self.folder} and make the copy again")
            in_copy = pq.read_table(path, columns=[label_column])[label_column].to_numpy()
            left_out = [facts["sample"] for facts in self.shards[shard.name]["left_out"]]
            expected = np.delete(labels[shard.split][shard.start : shard.stop], np.array(left_out, int) - shard.start)
            if not np.array_equal(in_copy, expected):
                raise PrepareError(f"{path} has other labels than its source; delete {self.folder} and start again")
            found[shard.split].append(in_copy)
        return {split: np.concatenate(parts) for split, parts in found.items()}

    def finish(self, facts: dict[str, Any]) -> None:
        """Complete the manifest with `facts` and give the folder its name."""
        self._write_manifest(facts)
        os.replace(self.partial, self.output)
        self.is_complete, self.folder = True, self.output

    def _require_this_format(self, found: dict[str, Any]) -> None:
        if found.get("format") == FORMAT:
            return
        advice = (
            f"train on it as it is with --dataset {self.output}, or choose another --output"
            if self.is_complete
            else f"delete {self.folder}, and the same command starts over"
        )
        raise PrepareError(f"{self.folder / MANIFEST} was written by another version of training.prepare: {advice}")

    def _write_manifest(self, facts: dict[str, Any]) -> None:
        shards = [self.shards[name] for name in sorted(self.shards)]
        write_summary(self.folder / MANIFEST, {"identity": self.identity, **facts, "shards": shards})


def _read_manifest(folder: Path) -> dict[str, Any]:
    damaged = PrepareError(f"{folder / MANIFEST} is damaged: delete {folder} and make the copy again")
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise PrepareError(f"{folder} exists and is not a prepared copy: choose another --output") from None
    except ValueError:  # UnicodeDecodeError is one
        raise damaged from None
    if not (
        isinstance(manifest, dict)
        and isinstance(manifest.get("identity"), dict)
        and isinstance(manifest.get("shards"), list)
    ):
        raise damaged
    return manifest


def _require_same(folder: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    changed = [name for name in wanted if is_other(found, name, wanted[name])]
    if changed:
        differences = [
            f"{name} {found.get(name)} -> {wanted[name]}" if len(str(wanted[name])) < 80 else name for name in changed
        ]
        raise PrepareError(
            f"{folder} is a copy of other data or with other arguments ({', '.join(differences)}): choose another "
            "--output, or delete it"
        )


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
