"""The benchmark of start-up and memory, with few pictures: it makes what it says, and measures all of it."""

import json
import os
import time

import pytest

from benchmarks.scale import MAKERS, start
from training.sources import load_splits


@pytest.mark.parametrize("kind", MAKERS)
def test_data_sets_are_as_large_as_asked_for(kind, tmp_path, capsys):
    root = tmp_path / "data"
    MAKERS[kind](root, 700, 10)
    splits = load_splits(str(root))
    assert (len(splits.train), len(splits.validation), len(splits.class_names)) == (700, 10, 10)
    if kind == "tree":
        first, second, *_ = (root / "train" / "n00000003").iterdir()
        assert os.path.samefile(first, second)

    start(str(root), "1", str(time.time() - 1))
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert list(result["seconds_by_part"]) == ["imports", "splits", "fingerprints", "first_batch"]
    assert result["seconds"] == pytest.approx(sum(result["seconds_by_part"].values()))
    assert result["seconds"] >= 1
    assert len(result["memory_mb_of_workers"]) == 1
    for memory in (result["memory_mb"], *result["memory_mb_of_workers"]):
        assert memory["peak"] > memory["own"] > 0
