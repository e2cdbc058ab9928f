"""The benchmark of start-up and memory, with few images: it makes what it says, and measures all of it."""

import json
import os
import time
from pathlib import Path

import pytest

from benchmarks.scale import MAKERS, START
from tests import launcher
from training.data.sources import load_splits

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("kind", MAKERS)
def test_data_sets_are_as_large_as_asked_for(kind, tmp_path):
    root = tmp_path / "data"
    MAKERS[kind](root, 700, 10)
    splits = load_splits(str(root))
    assert (len(splits.train), len(splits.validation), len(splits.class_names)) == (700, 10, 10)
    if kind == "tree":
        first, second, *_ = (root / "train" / "n00000003").iterdir()
        assert os.path.samefile(first, second)

    # In a process of its own, as the benchmark starts it: this one may have workers of other tests.
    answer = launcher.run(["-m", "benchmarks.scale", START, root, "1", time.time() - 1])
    assert answer.returncode == 0, answer.stderr
    result = json.loads(answer.stdout.splitlines()[-1])
    assert list(result["seconds_by_part"]) == ["imports", "splits", "fingerprints", "first_batch"]
    assert result["seconds"] == pytest.approx(sum(result["seconds_by_part"].values()))
    assert result["seconds"] >= 1
    assert len(result["memory_mb_of_workers"]) == 1
    for memory in (result["memory_mb"], *result["memory_mb_of_workers"]):
        assert memory["peak"] > memory["own"] > 0
