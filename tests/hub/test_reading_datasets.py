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

# Reads a dataset for each line, (token, id), and answers with what it was or what was wrong, and seconds.
READ = """
import json, os, sys, time
from training.errors import DataError
from training.data.sources import load_splits

for line in sys.stdin:
    token, dataset = json.loads(line)
    os.environ.pop("HF_TOKEN", None)
    if token:
        os.environ["HF_TOKEN"] = token
    started_at = time.perf_counter()
    try:
        said = load_splits(dataset).description
    except DataError as error:
        said = str(error)
    print("SAID " + json.dumps([said, time.perf_counter() - started_at]), flush=True)
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
    """A gated dataset whose terms `another` accepted, a private one of `me`, and one in two configurations."""
    files = {"data/train-00000-of-00001.parquet": parquet(), "README.md": b"# Images\n"}
    card = "---\nconfigs:\n" + "".join(
        f"- config_name: {name}\n  data_files: {name}/*.parquet\n" for name in ("first", "second")
    )
    parts = {f"{name}/train.parquet": files["data/train-00000-of-00001.parquet"] for name in ("first", "second")}
    hub.add_repository("me/parts", parts | {"README.md": f"{card}---\n".encode()}, "dataset")
    hub.add_repository("me/trouble", files, "dataset")
    hub.users[NARROW_TOKEN] = User("another", "read", may_read_gated=False)
    hub.add_repository("owner/gated", files, "dataset").accepted_by = frozenset({"another"})
    hub.add_repository("me/secret", files, "dataset").private = True
    return hub


def client(hub: Hub, home: Path) -> dict[str, str]:
    return os.environ | hub.environment(None, home) | {"PYTHONPATH": str(ROOT)}


class Reader:
    """A process that reads datasets, in the folder `home`. No token may show in what it prints."""

    def __init__(self, hub: Hub, home: Path, **environment: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", READ],
            cwd=home,
            env=client(hub, home) | environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, *error: object) -> None:
        self.process.stdin.close()
        assert "hf_canary" not in self.process.stdout.read()
        assert self.process.wait() == 0

    def read(self, token: str | None, dataset: str) -> tuple[str, float]:
        """What `load_splits` says, and seconds."""
        print(json.dumps([token, dataset]), file=self.process.stdin, flush=True)
        for line in self.process.stdout:
            assert "hf_canary" not in line
            if line.startswith("SAID "):
                return tuple(json.loads(line.removeprefix("SAID ")))
        raise AssertionError(f"no answer on {dataset}")


def test_what_the_hub_refuses_says_what_to_do(gated_hub, tmp_path):
    page = f"{gated_hub.endpoint}/datasets/owner/gated"
    log_in = "log in with `hf auth login`, or set HF_TOKEN"
    misspelled = "is not a folder here, and not a public Hub dataset: check the spelling; for a private one, "
    gated_hub.inject(Fault("HEAD", "/me/trouble/resolve/", status=403), times=9)
    gated_hub.inject(Fault("GET", "/me/trouble/auth-check", status=503))
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
        (None, "me/secret"): f"me/secret {misspelled}{log_in}",
        (None, "owner/gatde"): f"owner/gatde {misspelled}{log_in}",
        (OTHER_TOKEN, "me/secret"): (
            "me/secret is not a folder here, and not a Hub dataset that your token can read: check the spelling, or "
            "whether the token has the right to read it"
        ),
        (None, "me/parts"): "me/parts has several configurations: choose one of first, second with dataset_name",
        (None, "me/trouble"): "the Hub cannot hand out me/trouble now (HTTP status 503): try again later",
    }
    with Reader(gated_hub, tmp_path) as reader:
        assert {asked: reader.read(*asked)[0] for asked in expected} == expected
        for asked in ((READ_TOKEN, "me/secret"), (OTHER_TOKEN, "owner/gated")):
            assert "2 training and 2 validation images" in reader.read(*asked)[0]


def test_train_ends_with_that_sentence(gated_hub, tmp_path):
    process = subprocess.run(
        [sys.executable, "train.py", *RECIPE, "--dataset", "owner/gated", "--output_dir", str(tmp_path)],
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
    (tmp_path / "there").mkdir()
    with Reader(gated_hub, tmp_path) as reader:
        reader.read(TOKEN, "me/secret")
    gated_hub.shutdown()
    gated_hub.server_close()
    with Reader(gated_hub, tmp_path) as reader:
        for name in ("missing", "not/there"):
            sentence, seconds = reader.read(None, name)
            assert seconds < 5
            assert sentence.startswith(
                f"there is no folder {name} here, and the Hub, which may have a dataset of this name, cannot be "
                f"reached at {gated_hub.endpoint}: "
            )
        assert reader.read(None, "there/not")[0] == "folder there/not does not exist"
    with Reader(gated_hub, tmp_path, HF_HUB_OFFLINE="1") as reader:
        assert "2 training and 2 validation images" in reader.read(None, "me/secret")[0]
        assert reader.read(None, "me/other")[0] == (
            "there is no folder me/other here, and no dataset of the Hub with this name in the cache: HF_HUB_OFFLINE "
            "keeps it from being fetched"
        )
