"""Datasets that the Hub does not hand out: one sentence that says what to do, from unmodified clients."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import datasets
import PIL.Image
import pytest

from tests.hub.conftest import OTHER_TOKEN, READ_TOKEN, TOKEN
from tests.hub.http_handler import Fault
from tests.hub.repositories import User
from tests.hub.server import Hub
from tests.training_jobs import RECIPE

ROOT = Path(__file__).parents[2]
NARROW_TOKEN, WRONG_TOKEN = "hf_canary_without_gated", "hf_canary_of_nobody"

# Reads a dataset with each token in turn, and says what it was or what was wrong.
READ = """
import json, os, sys
from training.data_error import DataError
from training.sources import load_splits

for token, dataset in json.load(sys.stdin):
    os.environ.pop("HF_TOKEN", None)
    if token:
        os.environ["HF_TOKEN"] = token
    try:
        print("SAID " + json.dumps(load_splits(dataset).description))
    except DataError as error:
        print("SAID " + json.dumps(str(error)))
"""


def parquet() -> bytes:
    file = io.BytesIO()
    PIL.Image.new("RGB", (8, 8)).save(file, "PNG")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["ant", "bee"])})
    rows = {"image": [{"bytes": file.getvalue(), "path": None}] * 4, "label": [0, 1, 0, 1]}
    stored = io.BytesIO()
    datasets.Dataset.from_dict(rows, features=features).to_parquet(stored)
    return stored.getvalue()


@pytest.fixture
def gated_hub(hub: Hub) -> Hub:
    """A gated dataset whose terms `another` accepted, and a private one of `me`."""
    files = {"data/train-00000-of-00001.parquet": parquet(), "README.md": b"# Images\n"}
    hub.users[NARROW_TOKEN] = User("another", "read", may_read_gated=False)
    hub.add_repository("owner/gated", files, "dataset").accepted_by = frozenset({"another"})
    hub.add_repository("me/secret", files, "dataset").private = True
    return hub


def client(hub: Hub, home: Path) -> dict[str, str]:
    return os.environ | hub.environment(None, home) | {"PYTHONPATH": str(ROOT)}


def answers(hub: Hub, home: Path, *asked: tuple[str | None, str]) -> list[str]:
    """What `load_splits` says of each (token, dataset). No token may show in the output."""
    process = subprocess.run(
        [sys.executable, "-c", READ],
        cwd=home,
        env=client(hub, home),
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        check=True,
    )
    assert "hf_canary" not in process.stdout + process.stderr
    return [json.loads(line.removeprefix("SAID ")) for line in process.stdout.splitlines() if line.startswith("SAID ")]


def test_what_the_hub_refuses_says_what_to_do(gated_hub, tmp_path):
    page = f"{gated_hub.endpoint}/datasets/owner/gated"
    log_in = "log in with `hf auth login`, or set HF_TOKEN"
    expected = {
        (None, "owner/gated"): f"owner/gated is gated: accept the terms on {page}, and {log_in}",
        (TOKEN, "owner/gated"): (
            f"owner/gated is gated, and your token's account has no access: accept the terms on {page} with it"
        ),
        (NARROW_TOKEN, "owner/gated"): (
            "your token may not read owner/gated (Please enable access to public gated repositories in your "
            f"fine-grained token settings): give it the right on {gated_hub.endpoint}/settings/tokens, or take another"
        ),
        (WRONG_TOKEN, "owner/gated"): (
            f"the Hub does not know your token, which may have expired or been revoked: {log_in}"
        ),
        (None, "me/secret"): (
            "me/secret is no folder here and no public dataset of the Hub: check the spelling; for a private one, "
            f"{log_in}"
        ),
        (OTHER_TOKEN, "me/secret"): (
            "me/secret is no folder here and no dataset of the Hub that your token may read: check the spelling, or "
            "whether the token has the right to read it"
        ),
        (None, "owner/gatde"): (
            "owner/gatde is no folder here and no public dataset of the Hub: check the spelling; for a private one, "
            f"{log_in}"
        ),
    }
    found = answers(gated_hub, tmp_path, *expected, (READ_TOKEN, "me/secret"), (OTHER_TOKEN, "owner/gated"))
    assert found[: len(expected)] == list(expected.values())
    assert [said.partition(":")[0] for said in found[len(expected) :]] == ["me/secret", "owner/gated"]
    assert all("2 training and 2 validation" in said for said in found[len(expected) :])


def test_a_hub_in_trouble_is_not_taken_for_a_misspelled_name(gated_hub, tmp_path):
    gated_hub.inject(Fault("HEAD", "/resolve/", status=403), times=20)
    gated_hub.inject(Fault("GET", "/auth-check", status=503))
    (said,) = answers(gated_hub, tmp_path, (TOKEN, "me/secret"))
    assert said == "the Hub cannot hand out me/secret now (HTTP status 503): try again later"


def test_train_and_audit_end_with_that_sentence(gated_hub, tmp_path):
    flags = ["--dataset", "owner/gated"]
    for command in (
        ["train.py", *RECIPE, *flags, "--output_dir", str(tmp_path)],
        ["-m", "training.audit", *flags],
    ):
        process = subprocess.run(
            [sys.executable, *command],
            cwd=ROOT,
            env=client(gated_hub, tmp_path) | {"HF_TOKEN": TOKEN},
            capture_output=True,
            text=True,
        )
        assert process.returncode == 2
        assert "Traceback" not in process.stderr and TOKEN not in process.stdout + process.stderr
        assert process.stderr.splitlines()[-1] == (
            "error: owner/gated is gated, and your token's account has no access: accept the terms on "
            f"{gated_hub.endpoint}/datasets/owner/gated with it"
        )


def test_without_a_hub_a_missing_folder_is_told_at_once_and_the_cache_is_used(gated_hub, tmp_path):
    """The witness is the clock: the Hub's client tries for 23 seconds."""
    answers(gated_hub, tmp_path, (TOKEN, "me/secret"))
    gated_hub.shutdown()
    gated_hub.server_close()
    (tmp_path / "there").mkdir()
    asked = [(None, "missing"), (None, "not/there"), (None, "there/not")]
    timed = READ.replace("    try:", "    started_at = time.perf_counter()\n    try:").replace(
        "import json", "import time, json"
    )
    timed += "    print('TOOK', time.perf_counter() - started_at)\n"
    process = subprocess.run(
        [sys.executable, "-c", timed],
        cwd=tmp_path,
        env=client(gated_hub, tmp_path),
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        check=True,
    )
    lines = process.stdout.splitlines()
    said = [json.loads(line.removeprefix("SAID ")) for line in lines if line.startswith("SAID ")]
    for name, sentence in zip(("missing", "not/there"), said, strict=False):
        assert sentence.startswith(
            f"there is no folder {name} here, and the Hub, which may have a dataset of this name, cannot be reached "
            f"at {gated_hub.endpoint}: "
        )
    assert said[2] == "folder there/not does not exist"
    assert max(float(line.split()[1]) for line in lines if line.startswith("TOOK")) < 5
    # Another machine that is told to stay offline, with what was read before.
    offline = subprocess.run(
        [sys.executable, "-c", READ],
        cwd=tmp_path,
        env=client(gated_hub, tmp_path) | {"HF_HUB_OFFLINE": "1"},
        input=json.dumps([(None, "me/secret"), (None, "me/other")]),
        capture_output=True,
        text=True,
        check=True,
    )
    said = [json.loads(line.removeprefix("SAID ")) for line in offline.stdout.splitlines() if line.startswith("SAID ")]
    assert "2 training and 2 validation" in said[0]
    assert said[1] == (
        "there is no folder me/other here, and no dataset of the Hub with this name in the cache: HF_HUB_OFFLINE "
        "keeps it from being fetched"
    )
