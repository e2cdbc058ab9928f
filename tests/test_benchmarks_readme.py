"""Tables are made of results whose code can be looked up."""

import json
from collections.abc import Callable

import pytest

from benchmarks import readme
from benchmarks.readme import FROM_CHANGED_TREES, RESULTS, origin, results

ENVIRONMENT = {
    "commit": "0123abc",
    "date": "2026-11-25",
    "processor": "AMD EPYC",
    "cpu_cores": 2,
    "vector_extensions": ["avx2", "avx512f"],
    "gpu": None,
    "versions": {"torch": "2.14.1", "transformers": "5.24.0"},
}


@pytest.fixture
def write(tmp_path, monkeypatch) -> Callable[[str, str | None], None]:
    monkeypatch.setattr(readme, "RESULTS", tmp_path)
    return lambda name, commit: (tmp_path / f"{name}.json").write_text(
        json.dumps({"environment": ENVIRONMENT | {"commit": commit}})
    )


def test_results_of_a_commit_are_read(write):
    write("model", "0123abc")
    assert results("model")["environment"]["commit"] == "0123abc"


@pytest.mark.parametrize("commit", ["0123abc-dirty", None])
@pytest.mark.parametrize("name", ["model", *FROM_CHANGED_TREES])
def test_results_of_a_changed_tree_are_refused(name, commit, write):
    write(name, commit)
    with pytest.raises(SystemExit, match=rf"{name}\.json: its commit is {commit}"):
        results(name)


def test_results_to_measure_again_are_those_that_still_come_from_changed_trees():
    commits = {
        path.stem: json.loads(path.read_text()).get("environment", {}).get("commit") for path in RESULTS.glob("*.json")
    }
    assert {
        name: commit for name, commit in commits.items() if (commit or "").endswith("-dirty")
    } == FROM_CHANGED_TREES


def test_the_small_print_tells_vector_extensions():
    small_print = (
        "<sub>AMD EPYC (avx2 avx512f), 2 cores; torch 2.14.1, transformers 5.24.0; commit 0123abc, 2026-11-25</sub>"
    )
    assert origin(ENVIRONMENT) == small_print
    assert "(" not in origin({name: value for name, value in ENVIRONMENT.items() if name != "vector_extensions"})
